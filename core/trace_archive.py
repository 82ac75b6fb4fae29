"""Stored traces as one file: a zip of JSON and Parquet, so that they are looked at where they were not computed.

The activations of the runs stay behind: they are large, and only needed to compute more. Reading trusts nothing:
sizes, names, types and ranges are checked, every answer is put together once, and nothing in the file is executed.
What comes from a file gets keys of its own and is marked, so it never stands in for what this machine computes.
Loads no torch.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from . import parquet_files
from .answers import assemble
from .errors import ExpertScopeError, InputError
from .identity import imported_key
from .requests import TraceRequest, digest
from .results import provenance_from_dict
from .tables import table_bytes

FORMAT = 1
SUFFIX = ".traces.zip"
MAX_LABEL = 120
IMPORTED = "imported"
"""What a manifest that came from a file has: when."""
_HEAD, _ROWS, _ROUTING = "traces.json", "rows.parquet", "routing.parquet"
_MOST_BYTES = 2**29  # unpacked, in all
_MOST_HEAD = 256 * 2**20
_MOST_ROWS = 5_000_000  # of a table: a few bytes of Parquet can stand for any number of rows,
_MOST_TABLE = 2 * 2**30  # and a row for any number of bytes
_KINDS = {"clean", "corrupt", "layer", "expert", "shared"}


@dataclass(frozen=True)
class Parcel:
    """What `cache.store.Store.write` takes of traces of one model, and their labels by key."""

    model: str
    runs: list[tuple[str, bytes | None, dict[str, Any], pd.DataFrame]] = field(default_factory=list)
    rows: list[tuple[str, str, pd.DataFrame, dict[str, Any]]] = field(default_factory=list)
    manifests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)


def pack(store: Any, traces: Sequence[tuple[str, dict[str, Any]]]) -> bytes:
    """Traces, (label, manifest) of each, as the content of one file. Those of which a part was evicted are left out;
    `InputError` where none is left."""
    entries, runs, rows = [], {}, {}
    for label, manifest in traces:
        keys = [manifest["clean"], *manifest["corrupt"]]
        pairs = [(pair, part) for pair in manifest["pairs"] for part in manifest["parts"]]
        infos, tables = store.get_many_run_info(keys), store.get_many_rows(pairs)
        if len(infos) < len(set(keys)) or len(tables) < len(set(pairs)):
            continue
        entries.append({"label": label, "manifest": manifest})
        runs |= infos
        rows |= tables
    if not entries:
        raise InputError("There is no complete trace to export.", "Trace the facts again.", field="file")
    head = {
        "format": FORMAT, "traces": entries, "runs": [{"key": key, "info": info} for key, (info, _) in runs.items()],
        "rows": [list(pair) for pair in rows],
    }  # fmt: skip
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        content: dict[str, str | bytes] = {
            _HEAD: json.dumps(head),
            _ROUTING: table_bytes(_stacked([table for _, table in runs.values()], "run"), ".parquet"),
            _ROWS: table_bytes(_stacked(list(rows.values()), "row_set"), ".parquet"),
        }
        for name, data in content.items():  # without the time, so that equal traces are equal files
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=zipfile.ZIP_DEFLATED)
    return out.getvalue()


def unpack(content: bytes, *, now: str | None = None) -> list[Parcel]:
    """What is in a file that `pack` made, one parcel per model, under keys of its own and marked as imported.

    Raises `InputError` where the file is none, or damaged. `now`: the time that the mark says (ISO, UTC).
    """
    now = now or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    try:
        head, routing, rows = _read(content)
        return _parcels(head, routing, rows, now, hashlib.sha256(content).hexdigest())
    except ExpertScopeError as error:
        raise error if isinstance(error, InputError) and error.field == "file" else _refused(str(error)) from None
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, OSError) as error:
        raise _refused(f"it cannot be read as a zip file ({error})") from None
    except Exception as error:  # noqa: BLE001 - whatever values of wrong types make json, pandas and pyarrow raise
        raise _refused(f"it is damaged ({type(error).__name__})") from None


def _read(content: bytes) -> tuple[dict[str, Any], list[pd.DataFrame], list[pd.DataFrame]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        infos = archive.infolist()
        names = [info.filename for info in infos]
        if sorted(names) != sorted((_HEAD, _ROWS, _ROUTING)):
            raise _refused(f"it does not hold just {_HEAD}, {_ROWS} and {_ROUTING}")
        if sum(i.file_size for i in infos) > _MOST_BYTES or archive.getinfo(_HEAD).file_size > _MOST_HEAD:
            raise _refused("it is too large")
        head = json.loads(archive.read(_HEAD).decode("utf-8"))
        if not isinstance(head, dict) or head.get("format") != FORMAT:
            raise _refused("it was written by another version, or holds no traces")
        routing = _split(_table(archive.read(_ROUTING)), "run", len(head["runs"]))
        rows = _split(_table(archive.read(_ROWS)), "row_set", len(head["rows"]))
    return head, routing, rows


def _table(content: bytes) -> pd.DataFrame:
    try:
        parquet_files.size(content, max_rows=_MOST_ROWS, max_bytes=_MOST_TABLE)
    except parquet_files.TooLarge:
        raise _refused("it is too large") from None
    return pd.read_parquet(io.BytesIO(content))


def _parcels(
    head: dict[str, Any], routing: list[pd.DataFrame], rows: list[pd.DataFrame], now: str, file: str
) -> list[Parcel]:
    """`file`: a digest of the file, so that what is in it never takes the place of what is in another one."""
    runs = {str(run["key"]): (dict(run["info"]), table) for run, table in zip(head["runs"], routing, strict=True)}
    row_sets = {(str(pair), str(part)): table for (pair, part), table in zip(head["rows"], rows, strict=True)}
    parcels: dict[str, Parcel] = {}
    for entry in head["traces"]:
        manifest = entry["manifest"]
        request = TraceRequest.from_dict(manifest["request"])
        name = f"{request.model.name} · imported"
        parcel = parcels.setdefault(name, Parcel(name))
        new_key = imported_key(request)
        if any(new_key == key for key, _ in parcel.manifests):
            continue  # the same question to the same model, answered by older versions
        mine = {key: runs[key] for key in (manifest["clean"], *manifest["corrupt"])}
        its_rows = {pair: row_sets[pair] for pair in _pairs(manifest)}
        _check(request, manifest, mine, its_rows)
        keys = {key: digest(IMPORTED, "run", file, key) for key in mine}
        pairs = {pair: digest(IMPORTED, "pair", file, pair) for pair in manifest["pairs"]}
        provenance = dict(manifest["provenance"])
        provenance["notes"] = [*provenance["notes"], f"Imported from a file ({now[:10]}); computed elsewhere."]
        new = manifest | {
            "clean": keys[manifest["clean"]], "corrupt": [keys[key] for key in manifest["corrupt"]],
            "pairs": [pairs[pair] for pair in manifest["pairs"]], "provenance": provenance, IMPORTED: now,
            "request": request.to_dict(),
        }  # fmt: skip
        parcel.runs.extend((keys[key], None, info, table) for key, (info, table) in mine.items())
        parcel.rows.extend((pairs[pair], part, table, provenance) for (pair, part), table in its_rows.items())
        parcel.manifests.append((new_key, new))
        if entry.get("label"):
            parcel.labels[new_key] = checked_label(str(entry["label"]))
    return list(parcels.values())


def checked_label(label: str) -> str:
    """A name for a trace, without white space at its ends; empty for none. Raises `InputError` for what is no name."""
    label = label.strip()
    if len(label) > MAX_LABEL or not label.isprintable():
        raise InputError(
            "This name cannot be given to a trace.", f"Give one of at most {MAX_LABEL} printable characters.",
            field="name",
        )  # fmt: skip
    return label


def _pairs(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    return [(pair, part) for pair in manifest["pairs"] for part in manifest["parts"]]


def _check(request: TraceRequest, manifest: dict[str, Any], runs: dict[str, Any], rows: dict[Any, Any]) -> None:
    """Everything that will be relied upon when this is shown."""
    where = provenance_from_dict(manifest["provenance"])
    n_tokens = len(where.token_ids)
    if not (len(where.tokens) == n_tokens > 0 and len(manifest["pairs"]) == len(manifest["corrupt"]) == request.draws):
        raise _refused("its tokens or draws do not fit together")
    limits = {"layer": where.n_layers, "pos": n_tokens, "expert": where.n_experts}
    for table in (*rows.values(), *(table for _, table in runs.values())):
        for name, limit in limits.items():
            there = table[name].dropna()
            if not there.between(0, limit - 1).all():
                raise _refused(f"a table names a {name} that the model does not have")
    if not all(set(table.kind) <= _KINDS for table in rows.values()):
        raise _refused("a table holds rows of an unknown kind")
    keys = [manifest["clean"], *manifest["corrupt"]]
    assemble(
        request,
        manifest["provenance"],
        draws=[[rows[pair, part] for part in manifest["parts"]] for pair in manifest["pairs"]],
        run_infos=[runs[key][0] for key in keys],
        routings=[runs[key][1] for key in keys],
        ranks=manifest["ranks"],
        cached=True,
    )


def _stacked(tables: Sequence[pd.DataFrame], owner: str) -> pd.DataFrame:
    """Tables one below the other, with the number of each."""
    return pd.concat([table.assign(**{owner: number}) for number, table in enumerate(tables)], ignore_index=True)


def _split(table: pd.DataFrame, owner: str, n: int) -> list[pd.DataFrame]:
    parts = dict(iter(table.groupby(owner, sort=False)))
    if not set(parts) <= set(range(n)):
        raise _refused("its tables do not fit its list")
    empty = table.iloc[:0]
    return [parts.get(number, empty).drop(columns=owner).reset_index(drop=True) for number in range(n)]


def _refused(why: str) -> InputError:
    return InputError(
        f"This is not a file of traces: {why}.", "Give a file that the Library page exported.", field="file"
    )
