"""Result tables → files and bytes: CSV, Parquet, JSON. Knows the long table, not how it came about.

Heavy libraries are imported where they are used, so that the command line's help does not wait for them.
"""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ExpertScopeError, InputError

if TYPE_CHECKING:
    import pandas as pd

    from .results import TraceResult

SUFFIXES = (".parquet", ".csv", ".json")
_WHOLE_NUMBERS = ("draw", "layer", "pos", "token_id", "expert")


def check_out(path: str | Path) -> Path:
    """The path of an output table, if it can be written; called before any computing."""
    return check_place(path, SUFFIXES, option="--out")


def check_place(path: str | Path, suffixes: Sequence[str], *, option: str) -> Path:
    """The path of an output file in one of those formats, if it can be written; `option`: what it was given as."""
    path = Path(path).expanduser()
    field = option.removeprefix("--").lower()
    if path.suffix.lower() not in suffixes:
        raise InputError(
            f"{option} {path}: unknown format.", f"The name has to end in {', '.join(suffixes)}.", field=field
        )
    if path.is_dir():
        raise InputError(f"{option} {path} is a folder.", "Name a file.", field=field)
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError(f"{option} {path}: there is no folder {folder}.", "Make it first.", field=field)
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise InputError(f"{option} {path} cannot be written: permission denied.", "Choose another place.", field=field)
    return path


def long_table(results: Sequence[TraceResult]) -> pd.DataFrame:
    """The frames of all results, one below the other, and what was asked in columns at the end."""
    import numpy as np
    import pandas as pd

    asked = []
    for result in results:
        request, fact, where = result.request, result.request.fact, result.provenance
        asked.append(
            {
                "prompt": fact.prompt,
                "subject": fact.subject,
                "true": fact.true,
                "foil": fact.foil if fact.foil is not None else where.foil_token.strip(),
                "true_token": where.true_token,
                "foil_token": where.foil_token,
                "true_id": where.true_id,
                "foil_id": where.foil_id,
                "relation": fact.relation,
                "model": where.model,
                "revision": where.revision,
                "dtype": where.dtype,
                "corruption": request.corruption,
                "noise": request.noise if request.corruption == "noise" else None,
                "seed": request.seed,
                "special_tokens": request.special_tokens,
                "object_tokens": request.object_tokens,
                "first_token": request.first_token,
                "notes": "; ".join(where.notes),
            }
        )
    frames = [result.frame for result in results]
    table = pd.concat(frames, ignore_index=True)
    table = table.astype({column: "Int64" for column in _WHOLE_NUMBERS if column in table})
    # one row of `asked` for each row of its frame: far quicker than adding columns to thousands of small frames
    repeated = pd.DataFrame(asked).iloc[np.repeat(np.arange(len(frames)), [len(frame) for frame in frames])]
    out = pd.concat([table, repeated.reset_index(drop=True)], axis=1)
    if any(result.provenance.replacements for result in results):
        names = [_replacements(result) for result in results]
        out.insert(out.columns.get_loc("corruption") + 1, "replacement", pd.concat(names, ignore_index=True))
    return out


def _replacements(result: TraceResult) -> pd.Series:
    """The subject in the subject's place: of each row's own draw, or all where a table runs over draws."""
    import pandas as pd

    names, frame = result.provenance.replacements, result.frame
    if "draw" in frame:
        return frame.draw.map(dict(enumerate(names))).astype(object)
    return pd.Series("; ".join(names), index=frame.index, dtype=object)


def provenance(results: Sequence[TraceResult]) -> list[dict[str, Any]]:
    """Request and provenance of every result, as plain JSON values."""
    import dataclasses

    return [{"request": r.request.to_dict(), "provenance": dataclasses.asdict(r.provenance)} for r in results]


def table_bytes(table: pd.DataFrame, suffix: str, *, metadata: Any = None) -> bytes:
    """`table` as a file's content. JSON is a list of records; missing values are empty (CSV) or null (JSON).

    `metadata` (JSON values) goes into a Parquet file's own metadata under `expertscope`; the others have no place
    for it.
    """
    if suffix == ".csv":
        text = table.to_csv(index=False)
        if "\r" in text:  # which Python's writer leaves bare, and readers take for the end of a row
            text = table.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)
        return text.encode("utf-8")
    if suffix == ".json":
        # double_precision: pandas cuts floats to 10 decimals unless told
        return table.to_json(orient="records", double_precision=15, force_ascii=False).encode("utf-8")
    if suffix != ".parquet":
        raise ValueError(f"unknown table format {suffix!r}")
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrow = pa.Table.from_pandas(table, preserve_index=False)
    if metadata is not None:
        own = {b"expertscope": json.dumps(metadata, ensure_ascii=False, default=str).encode("utf-8")}
        arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), **own})
    out = io.BytesIO()
    pq.write_table(arrow, out, compression="zstd")
    return out.getvalue()


def write_table(table: pd.DataFrame, path: Path, *, metadata: Any = None) -> None:
    """Write `table` to `path` (see `write_file`) in the format that its ending names."""
    write_file(table_bytes(table, path.suffix.lower(), metadata=metadata), path)


def write_file(content: bytes, path: Path) -> None:
    """Write `content` to `path`, whole or not at all: an older file stays until the new one is complete."""
    temporary = None
    try:
        if path.exists() and not path.is_file():  # /dev/stdout and its like cannot be replaced
            path.write_bytes(content)
            return
        with tempfile.NamedTemporaryFile(dir=path.absolute().parent, prefix=f".{path.name}.", delete=False) as handle:
            temporary = Path(handle.name)
            handle.write(content)
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # a temporary file is private; the result is not
        temporary.replace(path.resolve())
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise ExpertScopeError(f"{path} could not be written: {error.strerror or error}.", "Free the place.") from None
