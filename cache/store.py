"""The store as the engine and the pages see it: verdicts, runs, row sets, manifests; size, limit, clearing.

Knows bytes, data frames and JSON; not what they mean, no torch, no Streamlit. All methods may be called from any
thread. Everything raised for a person is a `core.errors.StoreError`.

Words: a *run* is one forward pass (the clean one, or a corrupt one with one noise draw) with its activations as
opaque bytes, its `info` (JSON) and its routing table; a *row set* holds the result rows of one (pair key, part) with
their provenance (JSON); a *manifest* (JSON) says for one request which runs and row sets answer it. JSON values come
back as `json` reads them: tuples as lists, keys as text.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pandas as pd
import pyarrow as pa

from core.errors import StoreError

from . import eviction, frames, shelves
from .database import acquire, release
from .location import default_path
from .migrations import Cursor

DEFAULT_LIMIT = 2 * 1024**3
"""Bytes of contents that the store keeps unless told otherwise."""

_ROW_BYTES = 48
"""About what one result or routing row takes in the file, for counting against the limit."""

_MAX_TOUCHES = 5_000


@dataclass(frozen=True)
class StoredRun:
    """One run: `payload` as it was given, `info`, and `routing` with `frames.ROUTING_COLUMNS`."""

    payload: bytes
    info: dict[str, Any]
    routing: pd.DataFrame


class Store:
    """One open store. Use `Store.open`; close it, or use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = acquire(path)
        self._lock = threading.Lock()
        self._closed = False
        self._touched: dict[tuple[str, int], int] = {}
        self._last_tick = 0

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None = None, *, limit_bytes: int | None = None) -> Store:
        """Open the store, making or migrating it if needed. `limit_bytes`, if given, becomes its limit.

        Several opens of one file in one process share it. Raises StoreError: in use by another process, damaged (it
        is then set aside under another name, and the next open makes a new one), written by a newer version, no
        permission, disk full.
        """
        store = cls(Path(path) if path is not None else default_path())
        try:
            store._last_tick = store._database.read(_latest_tick)
            if limit_bytes is not None and limit_bytes != store.limit:
                store.set_limit(limit_bytes)
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Write down what was used when, and close. A second call does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            if self._touched:
                self._database.write(self._write_touches)
        finally:
            release(self._database)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- verdicts ---------------------------------------------------------------------------------------------

    def get_verdict(self, key: str) -> dict[str, Any] | None:
        """The load-time verdict stored under `key` (model fingerprint and library versions), or None."""
        return self._get_json("verdicts", "verdict", key)

    def put_verdict(self, key: str, model: str, verdict: dict[str, Any]) -> None:
        """Store a verdict; one that was there under the same key is replaced."""
        self._check_open()
        text = _dump(verdict)
        self._database.write(lambda cursor: self._put_json(cursor, "verdicts", "verdict", key, model, text))

    # -- reading ----------------------------------------------------------------------------------------------

    def get_manifest(self, key: str) -> dict[str, Any] | None:
        """The manifest of a request, or None."""
        return self._get_json("manifests", "manifest", key)

    def get_run(self, key: str) -> StoredRun | None:
        """One run with its payload, or None."""
        self._check_open()

        def work(cursor: Cursor) -> tuple[int, StoredRun] | None:
            found = cursor.execute("SELECT id, shelf, info FROM runs WHERE key = ?", [key]).fetchall()
            if not found:
                return None
            run, shelf, info = found[0]
            payload = shelves.get(cursor, shelf, run)
            if payload is None:
                return None
            return run, StoredRun(payload, json.loads(info), self._routing(cursor, [run])[run])

        found = self._database.read(work)
        if found is None:
            return None
        self._touch("runs", [found[0]])
        return found[1]

    def get_run_info(self, key: str) -> tuple[dict[str, Any], pd.DataFrame] | None:
        """A run's (info, routing) without reading its payload, or None."""
        return self.get_many_run_info([key]).get(key)

    def get_many_run_info(self, keys: Sequence[str]) -> dict[str, tuple[dict[str, Any], pd.DataFrame]]:
        """(info, routing) of those runs that are there, by key, in two queries and without any payload."""
        self._check_open()
        keys = list(dict.fromkeys(keys))

        def work(cursor: Cursor) -> tuple[list[tuple[int, str, str]], dict[int, pd.DataFrame]]:
            found = cursor.execute("SELECT id, key, info FROM runs WHERE key IN $keys", {"keys": keys}).fetchall()
            return found, self._routing(cursor, [run for run, _, _ in found])

        if not keys:
            return {}
        found, routing = self._database.read(work)
        self._touch("runs", [run for run, _, _ in found])
        by_key = {key: (json.loads(info), routing[run]) for run, key, info in found}
        return {key: by_key[key] for key in keys if key in by_key}

    def get_rows(self, pair_key: str, part: str) -> pd.DataFrame | None:
        """One row set with `frames.ROW_COLUMNS`, in the order it was written, or None."""
        return self.get_many_rows([(pair_key, part)]).get((pair_key, part))

    def get_many_rows(self, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], pd.DataFrame]:
        """Those row sets that are there, by (pair key, part); the rows of all of them are read in one query."""

        def rows(cursor: Cursor, ids: list[int]) -> dict[int, pd.DataFrame]:
            return self._tables(cursor, "result_rows", "row_set", ids, frames.ROW_COLUMNS)

        found = self._row_sets(pairs, rows)
        return {pair: table for pair, (table, _) in found.items()}

    def get_many_provenance(self, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
        """The provenance of those row sets that are there, by (pair key, part)."""
        found = self._row_sets(pairs, lambda cursor, ids: dict.fromkeys(ids))
        return {pair: json.loads(provenance) for pair, (_, provenance) in found.items()}

    def get_provenance(self, pair_key: str, part: str) -> dict[str, Any] | None:
        """Where the rows of a row set come from, or None."""
        return self.get_many_provenance([(pair_key, part)]).get((pair_key, part))

    # -- writing ----------------------------------------------------------------------------------------------

    def write(
        self,
        *,
        model: str,
        runs: Iterable[tuple[str, bytes, dict[str, Any], pd.DataFrame]] = (),
        rows: Iterable[tuple[str, str, pd.DataFrame, dict[str, Any]]] = (),
        manifests: Iterable[tuple[str, dict[str, Any]]] = (),
    ) -> None:
        """Store one answer in one transaction: all of it is there afterwards, or, if this raises, nothing.

        `model`: display name and fingerprint, by which the store is shown and cleared. `runs`: (key, payload, info,
        routing); `rows`: (pair key, part, frame, provenance); `manifests`: (key, manifest). A run or row set whose key
        is there already stays as it is (equal keys mean equal numbers); a manifest is replaced. Then the least
        recently used of the rest is dropped until the contents fit the limit.
        """
        self._check_open()
        new_runs = {
            key: (bytes(payload), _dump(info), frames.normalise(routing, frames.ROUTING_COLUMNS))
            for key, payload, info, routing in runs
        }
        new_rows = {
            (pair_key, part): (frames.normalise(frame, frames.ROW_COLUMNS), _dump(provenance))
            for pair_key, part, frame, provenance in rows
        }
        new_manifests = {key: _dump(manifest) for key, manifest in manifests}
        limit = self.limit

        def work(cursor: Cursor) -> None:
            self._write_touches(cursor)
            tick = self._tick()
            self._put_runs(cursor, model, new_runs)
            self._put_rows(cursor, model, new_rows)
            for key, text in new_manifests.items():
                self._put_json(cursor, "manifests", "manifest", key, model, text)
            eviction.evict(cursor, limit=limit, keep_from=tick)

        self._database.write(work)

    def _put_runs(self, cursor: Cursor, model: str, runs: dict[str, tuple[bytes, str, pd.DataFrame]]) -> None:
        known = cursor.execute("SELECT key, id FROM runs WHERE key IN $keys", {"keys": list(runs)}).fetchall()
        self._use(cursor, "runs", [run for _, run in known])
        ids = {key: self._tick() for key in runs if key not in dict(known)}
        if not ids:
            return
        shelf = self._tick()
        shelves.put(cursor, shelf, [(run, runs[key][0]) for key, run in ids.items()])
        columns: dict[str, list[Any]] = {name: [] for name in ("id", "key", "model", "shelf", "info", "bytes")}
        for key, run in ids.items():
            payload, info, routing = runs[key]
            size = len(payload) + len(info) + _ROW_BYTES * len(routing)
            for name, value in zip(columns, (run, key, _text(model), shelf, info, size), strict=True):
                columns[name].append(value)
        shelves.insert(cursor, "runs", pa.table({**columns, "last_used": columns["id"]}))
        tables = [(run, runs[key][2]) for key, run in ids.items()]
        shelves.insert(cursor, "routing", frames.to_arrow(tables, frames.ROUTING_COLUMNS, owner="run"))

    def _put_rows(self, cursor: Cursor, model: str, rows: dict[tuple[str, str], tuple[pd.DataFrame, str]]) -> None:
        known = _find_row_sets(cursor, list(rows))
        self._use(cursor, "row_sets", [row_set for row_set, _ in known.values()])
        ids = {pair: self._tick() for pair in rows if pair not in known}
        if not ids:
            return
        columns: dict[str, list[Any]] = {
            name: [] for name in ("id", "pair_key", "part", "model", "provenance", "bytes")
        }
        for pair, row_set in ids.items():
            frame, provenance = rows[pair]
            size = len(provenance) + _ROW_BYTES * len(frame)
            for name, value in zip(columns, (row_set, *pair, _text(model), provenance, size), strict=True):
                columns[name].append(value)
        shelves.insert(cursor, "row_sets", pa.table({**columns, "last_used": columns["id"]}))
        tables = [(row_set, rows[pair][0]) for pair, row_set in ids.items()]
        shelves.insert(cursor, "result_rows", frames.to_arrow(tables, frames.ROW_COLUMNS, owner="row_set"))

    def _put_json(self, cursor: Cursor, table: str, column: str, key: str, model: str, text: str) -> None:
        tick = self._tick()
        cursor.execute(f"DELETE FROM {table} WHERE key = ?", [key])
        cursor.execute(
            f"INSERT INTO {table} (id, key, model, {column}, bytes, last_used) VALUES (?, ?, ?, ?, ?, ?)",
            [tick, key, _text(model), text, len(text), tick],
        )

    # -- size, limit, clearing ----------------------------------------------------------------------------------

    @property
    def limit(self) -> int:
        """Bytes of contents that the store keeps; more is evicted, least recently used first."""
        self._check_open()
        query = "SELECT value FROM settings WHERE name = 'limit_bytes'"
        found = self._database.read(lambda cursor: cursor.execute(query).fetchall())
        return int(found[0][0]) if found else DEFAULT_LIMIT

    def set_limit(self, limit_bytes: int) -> None:
        """Set the limit for now and later, and evict what is over it."""
        self._check_open()
        limit = int(limit_bytes)
        if limit <= 0:
            raise StoreError(f"The store's limit is {limit_bytes} bytes.", "Give a number above 0.")

        def work(cursor: Cursor) -> None:
            self._write_touches(cursor)
            cursor.execute("DELETE FROM settings WHERE name = 'limit_bytes'")
            cursor.execute("INSERT INTO settings VALUES ('limit_bytes', ?)", [str(limit)])
            eviction.evict(cursor, limit=limit, keep_from=self._tick())

        self._database.write(work)

    def size(self) -> int:
        """Bytes that the file (with its log) takes on the disk. Freed space is reused, but only `compact` and
        `clear` make the file smaller."""
        self._check_open()
        return self._database.size()

    def contents_bytes(self) -> int:
        """Bytes of contents, as counted against the limit."""
        self._check_open()
        return self._database.read(eviction.total_bytes)

    def usage(self) -> pd.DataFrame:
        """One row per model, most bytes first: model, runs, row_sets, manifests, bytes, last_used (UTC)."""
        self.flush()
        query = """
            SELECT model, count(*) FILTER (kind = 'run') AS runs, count(*) FILTER (kind = 'row_set') AS row_sets,
                   count(*) FILTER (kind = 'manifest') AS manifests, sum(bytes)::BIGINT AS bytes,
                   max(last_used) AS last_used
            FROM (SELECT 'run' AS kind, model, bytes, last_used FROM runs
                  UNION ALL SELECT 'row_set', model, bytes, last_used FROM row_sets
                  UNION ALL SELECT 'manifest', model, bytes, last_used FROM manifests
                  UNION ALL SELECT 'verdict', model, bytes, last_used FROM verdicts)
            GROUP BY model ORDER BY bytes DESC, model"""
        found = self._database.read(lambda cursor: cursor.execute(query).fetchall())
        table = pd.DataFrame(found, columns=["model", "runs", "row_sets", "manifests", "bytes", "last_used"])
        table["model"] = table["model"].astype("str")
        table["last_used"] = pd.to_datetime(table["last_used"], unit="us", utc=True)
        return table.astype({name: "int64" for name in ("runs", "row_sets", "manifests", "bytes")})

    def clear(self, model: str | None = None) -> None:
        """Delete everything of a model (verdicts too), or of all models; settings stay. The file is then compacted."""
        self._check_open()
        name = None if model is None else _text(model)

        def work(cursor: Cursor) -> None:
            eviction.drop(cursor, eviction.entries(cursor, model=name))
            cursor.execute("DELETE FROM verdicts WHERE $model IS NULL OR model = $model", {"model": name})

        self._database.write(work)
        self.compact()

    def compact(self) -> None:
        """Rewrite the file without free space (needs room for a second copy meanwhile)."""
        self.flush()
        self._database.compact()

    def flush(self) -> None:
        """Write down what was used when; writing and closing do it too."""
        self._check_open()
        if self._touched:
            self._database.write(self._write_touches)

    # -- inside -------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("The store was closed.", "Open it again.")

    def _tick(self) -> int:
        """A number never given before: microseconds since 1970, or one more than the last."""
        with self._lock:
            self._last_tick = max(self._last_tick + 1, time.time_ns() // 1000)
            return self._last_tick

    def _touch(self, table: str, ids: Iterable[int]) -> None:
        """Remember that these were used. Reads stay reads; a later write puts it into the file."""
        tick = self._tick()
        with self._lock:
            self._touched.update({(table, entry): tick for entry in ids})
            many = len(self._touched) > _MAX_TOUCHES
        if many:
            self.flush()

    def _write_touches(self, cursor: Cursor) -> None:
        with self._lock:
            touched, self._touched = self._touched, {}
        for table in ("runs", "row_sets", "manifests", "verdicts"):
            chosen = {entry: tick for (name, entry), tick in touched.items() if name == table}
            self._use(cursor, table, list(chosen), list(chosen.values()))

    def _use(self, cursor: Cursor, table: str, ids: list[int], ticks: list[int] | None = None) -> None:
        if not ids:
            return
        if ticks is None:
            ticks = [self._tick()] * len(ids)
        used = pa.table([pa.array(ids, pa.int64()), pa.array(ticks, pa.int64())], names=["id", "tick"])
        cursor.register("used_entries", used)
        try:
            cursor.execute(
                f"UPDATE {table} SET last_used = greatest(last_used, used_entries.tick) "
                f"FROM used_entries WHERE {table}.id = used_entries.id"
            )
        finally:
            cursor.unregister("used_entries")

    def _get_json(self, table: str, column: str, key: str) -> dict[str, Any] | None:
        self._check_open()
        query = f"SELECT id, {column} FROM {table} WHERE key = ?"
        found = self._database.read(lambda cursor: cursor.execute(query, [key]).fetchall())
        if not found:
            return None
        self._touch(table, [found[0][0]])
        return json.loads(found[0][1])

    def _row_sets(self, pairs: Sequence[tuple[str, str]], tables: Any) -> dict[tuple[str, str], tuple[Any, str]]:
        """By (pair key, part): what `tables` made for the row set's id, and its provenance as text."""
        self._check_open()
        wanted = list(dict.fromkeys((str(pair_key), str(part)) for pair_key, part in pairs))
        if not wanted:
            return {}

        def work(cursor: Cursor) -> tuple[dict[tuple[str, str], tuple[int, str]], dict[int, Any]]:
            found = _find_row_sets(cursor, wanted)
            return found, tables(cursor, [row_set for row_set, _ in found.values()])

        found, made = self._database.read(work)
        self._touch("row_sets", [row_set for row_set, _ in found.values()])
        return {pair: (made[found[pair][0]], found[pair][1]) for pair in wanted if pair in found}

    def _routing(self, cursor: Cursor, runs: list[int]) -> dict[int, pd.DataFrame]:
        return self._tables(cursor, "routing", "run", runs, frames.ROUTING_COLUMNS)

    @staticmethod
    def _tables(
        cursor: Cursor, table: str, owner: str, ids: list[int], columns: dict[str, str]
    ) -> dict[int, pd.DataFrame]:
        """One frame per id, in one query."""
        if not ids:
            return {}
        # The range lets DuckDB skip storage units by their minima and maxima; ids are in the order of writing.
        result = cursor.sql(
            f"SELECT {owner}, {', '.join(columns)} FROM {table} "
            f"WHERE {owner} BETWEEN $low AND $high AND {owner} IN $ids ORDER BY {owner}, ordinal",
            params={"low": min(ids), "high": max(ids), "ids": ids},
        ).to_arrow_table()
        found = frames.split(result, owner, columns)
        return {entry: found.get(entry, frames.empty(columns)) for entry in ids}


def _find_row_sets(cursor: Cursor, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], tuple[int, str]]:
    """By (pair key, part): id and provenance text of those that are there."""
    if not pairs:
        return {}
    query = "SELECT pair_key, part, id, provenance FROM row_sets WHERE pair_key IN $keys"
    found = cursor.execute(query, {"keys": list({pair_key for pair_key, _ in pairs})}).fetchall()
    wanted = set(pairs)
    return {(key, part): (row_set, text) for key, part, row_set, text in found if (key, part) in wanted}


def _latest_tick(cursor: Cursor) -> int:
    query = """
        SELECT coalesce(max(last_used), 0) FROM (
            SELECT last_used FROM runs UNION ALL SELECT last_used FROM row_sets
            UNION ALL SELECT last_used FROM manifests UNION ALL SELECT last_used FROM verdicts)"""
    return int(cursor.execute(query).fetchall()[0][0])


def _dump(value: Any) -> str:
    """JSON text. Non-ASCII characters are escaped, so that any string survives; NumPy numbers become plain ones."""
    return json.dumps(value, default=_plain)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # NumPy scalars and arrays
        return value.tolist()
    raise StoreError(f"A value of type {type(value).__name__} cannot be stored as JSON.")


def _text(name: str) -> str:
    """A name as DuckDB can hold it: file names that are not UTF-8 keep their odd bytes as escapes."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
