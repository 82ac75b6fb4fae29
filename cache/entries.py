"""Putting entries into the tables and finding them: runs, row sets, and the JSON of manifests and verdicts.

Knows SQL, bytes and data frames; every function works inside the caller's transaction. `tick` gives a new number at
every call; ids are ticks, so they rise in the order of writing and are never used again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import pyarrow as pa

from . import frames, shelves
from .migrations import Cursor

Tick = Callable[[], int]

_ROW_BYTES = 48
"""About what one result or routing row takes in the file, for counting against the limit."""

_JSON_COLUMN = {"manifests": "manifest", "verdicts": "verdict"}
_TABLES = ("runs", "row_sets", "manifests", "verdicts", "derived")


def put_runs(
    cursor: Cursor, model: str, runs: Mapping[str, tuple[bytes | None, str, pd.DataFrame]], tick: Tick
) -> None:
    """Add those runs, key → (payload, info as JSON, normalised routing), that are not there; mark the others used."""
    query = "SELECT key, id FROM runs WHERE key IN $keys"
    known = dict(cursor.execute(query, {"keys": list(runs)}).fetchall())
    mark_used(cursor, {("runs", run): tick() for run in known.values()})
    ids = {key: tick() for key in runs if key not in known}
    if not ids:
        return
    shelf = tick()
    payloads = [(run, runs[key][0]) for key, run in ids.items()]
    if any(payload is not None for _, payload in payloads):
        shelves.put(cursor, shelf, [(run, payload) for run, payload in payloads if payload is not None])
    else:
        shelf = -shelf
    _insert_heads(
        cursor,
        "runs",
        [
            {
                "id": run,
                "key": key,
                "model": model,
                "shelf": shelf,
                "info": runs[key][1],
                "bytes": len(runs[key][0] or b"") + len(runs[key][1]) + _ROW_BYTES * len(runs[key][2]),
            }
            for key, run in ids.items()
        ],
    )
    tables = [(run, runs[key][2]) for key, run in ids.items()]
    shelves.insert(cursor, "routing", frames.to_arrow(tables, frames.ROUTING_COLUMNS, owner="run"))


def put_rows(cursor: Cursor, model: str, rows: Mapping[tuple[str, str], tuple[pd.DataFrame, str]], tick: Tick) -> None:
    """Add those row sets, (pair key, part) → (normalised frame, provenance as JSON), that are not there."""
    known = find_row_sets(cursor, list(rows))
    mark_used(cursor, {("row_sets", row_set): tick() for row_set, _ in known.values()})
    ids = {pair: tick() for pair in rows if pair not in known}
    if not ids:
        return
    _insert_heads(
        cursor,
        "row_sets",
        [
            {
                "id": row_set,
                "pair_key": pair[0],
                "part": pair[1],
                "model": model,
                "provenance": rows[pair][1],
                "bytes": len(rows[pair][1]) + _ROW_BYTES * len(rows[pair][0]),
            }
            for pair, row_set in ids.items()
        ],
    )
    tables = [(row_set, rows[pair][0]) for pair, row_set in ids.items()]
    shelves.insert(cursor, "result_rows", frames.to_arrow(tables, frames.ROW_COLUMNS, owner="row_set"))


def put_derived(cursor: Cursor, key: str, head: Mapping[str, Any], payload: bytes, tick: Tick) -> None:
    """Put a derived answer in place of what was there under `key`; `head`: its kind, model and info (JSON)."""
    for (entry,) in cursor.execute("SELECT id FROM derived WHERE key = ?", [key]).fetchall():
        shelves.drop(cursor, entry)
    cursor.execute("DELETE FROM derived WHERE key = ?", [key])
    entry = tick()
    shelves.put(cursor, entry, [(entry, payload)])
    _insert_heads(cursor, "derived", [{"id": entry, "key": key, **head, "bytes": len(payload) + len(head["info"])}])


def get_derived(cursor: Cursor, key: str) -> tuple[int, bytes] | None:
    """(id, payload) of a derived answer, or None."""
    found = cursor.execute("SELECT id FROM derived WHERE key = ?", [key]).fetchall()
    payload = shelves.get(cursor, found[0][0], found[0][0]) if found else None
    return None if payload is None else (found[0][0], payload)


def put_json(cursor: Cursor, table: str, key: str, model: str, text: str, tick: Tick) -> None:
    """Put the JSON of a manifest or verdict (`table` says which) in place of what was there under `key`."""
    now = tick()
    cursor.execute(f"DELETE FROM {table} WHERE key = ?", [key])
    cursor.execute(
        f"INSERT INTO {table} (id, key, model, {_JSON_COLUMN[table]}, bytes, last_used) VALUES (?, ?, ?, ?, ?, ?)",
        [now, key, model, text, len(text), now],
    )


def get_json(cursor: Cursor, table: str, key: str) -> tuple[int, str] | None:
    """(id, JSON text) of a manifest or verdict, or None."""
    query = f"SELECT id, {_JSON_COLUMN[table]} FROM {table} WHERE key = ?"
    found = cursor.execute(query, [key]).fetchall()
    return found[0] if found else None


def find_row_sets(cursor: Cursor, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], tuple[int, str]]:
    """By (pair key, part): id and provenance text of those that are there."""
    if not pairs:
        return {}
    query = "SELECT pair_key, part, id, provenance FROM row_sets WHERE pair_key IN $keys"
    found = cursor.execute(query, {"keys": list({pair_key for pair_key, _ in pairs})}).fetchall()
    wanted = set(pairs)
    return {(key, part): (row_set, text) for key, part, row_set, text in found if (key, part) in wanted}


def result_rows(cursor: Cursor, row_sets: list[int]) -> dict[int, pd.DataFrame]:
    """The rows of each row set."""
    return _tables(cursor, "result_rows", "row_set", row_sets, frames.ROW_COLUMNS)


def routing(cursor: Cursor, runs: list[int]) -> dict[int, pd.DataFrame]:
    """The routing table of each run."""
    return _tables(cursor, "routing", "run", runs, frames.ROUTING_COLUMNS)


def mark_used(cursor: Cursor, used: Mapping[tuple[str, int], int]) -> None:
    """Set when entries were last used: (table, id) → tick. Ids that are gone do not matter."""
    for table in _TABLES:
        chosen = [(entry, tick) for (name, entry), tick in used.items() if name == table]
        if not chosen:
            continue
        ids, ticks = zip(*chosen, strict=True)
        cursor.register(
            "used_entries", pa.table({"id": pa.array(ids, pa.int64()), "tick": pa.array(ticks, pa.int64())})
        )
        try:
            cursor.execute(
                f"UPDATE {table} SET last_used = greatest(last_used, used_entries.tick) "
                f"FROM used_entries WHERE {table}.id = used_entries.id"
            )
        finally:
            cursor.unregister("used_entries")


def latest_tick(cursor: Cursor) -> int:
    """The highest tick in the file, 0 if there is none."""
    union = " UNION ALL ".join(f"SELECT last_used FROM {table}" for table in _TABLES)
    return int(cursor.execute(f"SELECT coalesce(max(last_used), 0) FROM ({union})").fetchall()[0][0])


def _insert_heads(cursor: Cursor, table: str, heads: list[dict[str, Any]]) -> None:
    shelves.insert(cursor, table, pa.Table.from_pylist([{**head, "last_used": head["id"]} for head in heads]))


def _tables(cursor: Cursor, table: str, owner: str, ids: list[int], columns: dict[str, str]) -> dict[int, pd.DataFrame]:
    """One frame per owner id, all in one query."""
    if not ids:
        return {}
    # The range lets DuckDB skip storage units by their minima and maxima.
    result = cursor.sql(
        f"SELECT {owner}, {', '.join(columns)} FROM {table} "
        f"WHERE {owner} BETWEEN $low AND $high AND {owner} IN $ids ORDER BY {owner}, ordinal",
        params={"low": min(ids), "high": max(ids), "ids": ids},
    ).to_arrow_table()
    found = frames.split(result, owner, columns)
    return {entry: found[entry] if entry in found else frames.empty(columns) for entry in ids}
