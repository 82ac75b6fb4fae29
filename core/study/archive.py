"""A study as one file: a zip of JSON and Parquet with its settings, plan, provenance, state and every batch.

So a study runs on one machine and is looked at on another. Reading trusts nothing: sizes, names, columns and settings
are checked, and nothing in the file is executed. Loads no torch.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from .. import parquet_files
from ..errors import ExpertScopeError, InputError
from . import data
from . import rows as table
from .plan import Plan
from .scan import MEASURED, OBJECTS, SCAN_COLUMNS, UNUSABLE, facts_from_bytes, to_parquet
from .settings import StudySettings

FORMAT = 1
SUFFIX = ".zip"
_HEAD, _ROWS = "study.json", "rows.parquet"
_PART = re.compile(r"parts/([a-z]{1,20})-([0-9]{1,7})\.parquet")
_MOST_BYTES = 4 * 2**30  # unpacked, in all
_MOST_RATIO = 20  # unpacked ÷ the file: what `pack` writes is not compressed, Parquet is already
_MOST_ROWS = 20_000_000  # of all tables together
_MOST_VALUES = 2 * 2**30  # bytes of all tables together when each value stands for itself
_MOST_HEAD = 16 * 2**20
_NAMES = ("name", "model", "settings", "plan", "provenance", "state", "progress", "created")
_PROVENANCE = dict.fromkeys(("model", "identity", "fingerprint", "dtype", "device"), str) | {
    "implementation": dict,
    "versions": dict,
}
_ENDED = (data.DONE, data.CANCELLED, data.FAILED)


def pack(book: Any, name: str) -> bytes:
    """The study `name` of a `cache.studies.Studies` as the content of one file. `rows.parquet` in it is there for other
    programs to read; it follows from the parts."""
    record, parts = book.get(name), book.parts(name)
    if not record.provenance:
        raise InputError(f"The study {name!r} has not begun: there is nothing in it.", "Run it first.", field="name")
    rows = data.assemble(record, parts).rows
    head = {key: getattr(record, key) for key in _NAMES} | {"format": FORMAT}
    if head["state"] not in _ENDED:
        head["state"] = data.CANCELLED
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:  # Parquet is compressed already
        entries: dict[str, str | bytes] = {_HEAD: json.dumps(head, indent=1), _ROWS: to_parquet(rows)}
        entries |= {f"parts/{stage}-{number}.parquet": payload for (stage, number), payload in sorted(parts.items())}
        for entry, content in entries.items():
            archive.writestr(zipfile.ZipInfo(entry), content)  # without the time, so that equal studies are equal files
    return out.getvalue()


def unpack(book: Any, source: Path | bytes, *, name: str | None = None) -> str:
    """Put a packed study into `book`, under `name` or its own; the name. Raises `InputError` where the file is not a
    study, is damaged, or the name is taken."""
    try:
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        with zipfile.ZipFile(io.BytesIO(source) if isinstance(source, bytes) else source) as archive:
            head, parts, rows = _read(archive, most=min(_MOST_BYTES, _MOST_RATIO * size + _MOST_HEAD))
    except FileNotFoundError:
        raise InputError(f"There is no file {source}.", "Check the path.", field="file") from None
    except ExpertScopeError:
        raise
    except Exception as error:  # noqa: BLE001 - zipfile's decompressors raise what they like
        raise _refused(f"it cannot be read as a zip file ({error})") from None
    _check(head, parts, rows)
    chosen = name if name is not None else head["name"]
    book.add(
        chosen,
        **{key: head[key] for key in ("model", "settings", "plan", "provenance", "state", "progress", "created")},
        parts=[(stage, number, payload) for (stage, number), payload in parts.items()],
    )
    return chosen.strip()


def _read(archive: zipfile.ZipFile, *, most: int) -> tuple[dict[str, Any], dict[tuple[str, int], bytes], bytes]:
    infos = archive.infolist()
    if sum(info.file_size for info in infos) > most:
        raise _refused("it is too large")
    names = [info.filename for info in infos]
    if len(set(names)) != len(names) or not {_HEAD, _ROWS} <= set(names):
        raise _refused(f"{_HEAD} or {_ROWS} is not in it once")
    if archive.getinfo(_HEAD).file_size > _MOST_HEAD:
        raise _refused(f"{_HEAD} is too large")
    try:
        head = json.loads(archive.read(_HEAD).decode("utf-8"))
    except (ValueError, RecursionError):
        raise _refused(f"{_HEAD} is no JSON") from None
    parts = {}
    for entry in names:
        if entry in (_HEAD, _ROWS):
            continue
        found = _PART.fullmatch(entry)
        if found is None:
            raise _refused(f"it holds {entry[:60]!r}, which belongs to no study")
        parts[found[1], int(found[2])] = archive.read(entry)
    return head, parts, archive.read(_ROWS)


def _check(head: Any, parts: dict[tuple[str, int], bytes], rows: bytes) -> None:
    """Everything that will be relied upon later, now. Raises `InputError`."""
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise _refused("it was written by another version, or is no study")
    types = dict.fromkeys(("settings", "plan", "provenance", "progress"), dict)
    wrong = [key for key in _NAMES if not isinstance(head.get(key), types.get(key, int if key == "created" else str))]
    wrong += [
        key for key, kind in _PROVENANCE.items() if not wrong and not isinstance(head["provenance"].get(key), kind)
    ]
    if wrong or head["state"] not in _ENDED or isinstance(head["created"], bool):
        raise _refused(f"{_HEAD} lacks {wrong[0] if wrong else 'a state'}")
    StudySettings.from_dict(head["settings"])
    Plan.from_dict(head["plan"])
    _check_sizes([*parts.values(), rows])
    stages = (data.FACTS, data.SCAN, *data.MEASURING)
    for (stage, number), payload in parts.items():
        if stage not in stages or (stage == data.FACTS and number):
            raise _refused(f"there is no stage {stage!r}")
        try:
            _check_part(stage, payload)
        except ExpertScopeError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a damaged Parquet file makes pyarrow and pandas raise
            raise _refused(f"part {number} of {stage} is damaged ({type(error).__name__})") from None
    record = SimpleNamespace(**head)
    try:
        again = data.assemble(record, parts).rows
        same = again.equals(table.table(pd.read_parquet(io.BytesIO(rows))))
    except ExpertScopeError:
        raise
    except Exception as error:  # noqa: BLE001 - parts that do not fit together
        raise _refused(f"its parts do not fit together ({type(error).__name__})") from None
    if not same:
        raise _refused(f"{_ROWS} does not follow from its parts")


def _check_sizes(tables: list[bytes]) -> None:
    """A few bytes of Parquet can stand for any number of rows, and a row for any number of bytes."""
    left, room = _MOST_ROWS, _MOST_VALUES
    try:
        for content in tables:
            n, size = parquet_files.size(content, max_rows=left, max_bytes=room)
            left, room = left - n, room - size
    except parquet_files.TooLarge:
        raise _refused("it is too large") from None
    except Exception as error:  # noqa: BLE001 - as above
        raise _refused(f"a table in it is damaged ({type(error).__name__})") from None


def _check_part(stage: str, payload: bytes) -> None:
    if stage == data.FACTS:
        facts_from_bytes(payload)
        return
    expected = SCAN_COLUMNS if stage == data.SCAN else data.MEASURED_COLUMNS
    schema = pq.read_schema(io.BytesIO(payload))
    if set(schema.names) != set(expected):
        raise _refused(f"a part of {stage} has other columns")
    frame = pd.read_parquet(io.BytesIO(payload))
    types = SCAN_COLUMNS if stage == data.SCAN else table.COLUMNS
    frame.astype({name: types[name] for name in expected})
    if stage == data.SCAN and not set(frame.outcome) <= {UNUSABLE, OBJECTS, MEASURED}:
        raise _refused("the scan has an unknown outcome")


def _refused(why: str) -> InputError:
    return InputError(
        f"This is not the file of a study: {why}.", "Give a file that `study export` wrote.", field="file"
    )
