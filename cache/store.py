"""The store as the engine and the pages see it: verdicts, runs, row sets, manifests, derived answers; size, clearing.

Knows bytes, data frames and JSON; not what they mean, no torch, no Streamlit. All methods may be called from any
thread. Everything raised for a person is a `core.errors.StoreError`.

Words: a *run* is one forward pass (the clean one, or a corrupt one with one noise draw) with its activations as
opaque bytes, its `info` (JSON) and its routing table; a *row set* holds the result rows of one (pair key, part) with
their provenance (JSON); a *manifest* (JSON) says for one request which runs and row sets answer it; a *derived* answer
is one opaque file. JSON values come back as `json` reads them: tuples as lists, keys as text.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import pandas as pd

from core.errors import StoreError

from . import entries, eviction, frames, shelves
from .database import acquire, release
from .location import default_path
from .migrations import Cursor

DEFAULT_LIMIT = 2 * 1024**3
"""Bytes of contents that the store keeps unless told otherwise."""

_FLUSH_SECONDS = 60.0
"""Reads after this long write down what was used meanwhile, so that a killed process forgets no more than that."""

T = TypeVar("T")


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
        self._flushed = time.monotonic()
        self._known: dict[str, tuple[int, Any]] = {}

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None = None, *, limit_bytes: int | None = None) -> Store:
        """Open the store, making or migrating it if needed. `limit_bytes`, if given, becomes its limit.

        Several opens of one file in one process share it. Raises StoreError: in use by another process, damaged (it
        is then set aside under another name, and the next open makes a new one), written by a newer version, no
        permission, disk full.
        """
        store = cls(Path(path) if path is not None else default_path())
        try:
            store._database.tick(after=store._database.read(entries.latest_tick))
            if limit_bytes is not None and limit_bytes != store.limit:
                store.set_limit(limit_bytes)
        except BaseException:
            store.close()
            raise
        return store

    def lend(self) -> None:
        """Let other processes have the file in turn: it is closed for a moment when one waits and nobody here uses it.
        For a process that keeps the store open for long."""
        self._check_open()
        self._database.lend()

    def close(self) -> None:
        """Write down what was used when, and close. A second call does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            if self._touched:
                self._write(lambda cursor: None)
        finally:
            release(self._database)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- verdicts ---------------------------------------------------------------------------------------------

    def get_verdict(self, key: str) -> dict[str, Any] | None:
        """The load-time verdict stored under `key` (model fingerprint and library versions), or None."""
        return self._get_json("verdicts", key)

    def put_verdict(self, key: str, model: str, verdict: dict[str, Any]) -> None:
        """Store a verdict; one that was there under the same key is replaced."""
        self._check_open()
        text, name, tick = _dump(verdict), _text(model), self._database.tick
        self._write(lambda cursor: entries.put_json(cursor, "verdicts", key, name, text, tick))

    # -- reading ----------------------------------------------------------------------------------------------

    def get_manifest(self, key: str) -> dict[str, Any] | None:
        """The manifest of a request, or None."""
        return self._get_json("manifests", key)

    def get_run(self, key: str) -> StoredRun | None:
        """One run with its payload, or None (also for one that was stored without)."""
        self._check_open()

        def work(cursor: Cursor) -> tuple[int, StoredRun] | None:
            found = cursor.execute("SELECT id, shelf, info FROM runs WHERE key = ?", [key]).fetchall()
            if not found:
                return None
            run, shelf, info = found[0]
            payload = shelves.get(cursor, shelf, run)
            if payload is None:
                return None
            return run, StoredRun(payload, json.loads(info), entries.routing(cursor, [run])[run])

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
            return found, entries.routing(cursor, [run for run, _, _ in found])

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
        found = self._row_sets(pairs, entries.result_rows)
        return {pair: table for pair, (table, _) in found.items()}

    def get_many_provenance(self, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
        """The provenance of those row sets that are there, by (pair key, part)."""
        found = self._row_sets(pairs, lambda cursor, ids: dict.fromkeys(ids))
        return {pair: json.loads(provenance) for pair, (_, provenance) in found.items()}

    def get_provenance(self, pair_key: str, part: str) -> dict[str, Any] | None:
        """Where the rows of a row set come from, or None."""
        return self.get_many_provenance([(pair_key, part)]).get((pair_key, part))

    def get_derived(self, key: str) -> bytes | None:
        """A derived answer as it was given, or None."""
        self._check_open()
        found = self._database.read(lambda cursor: entries.get_derived(cursor, key))
        if found is None:
            return None
        self._touch("derived", [found[0]])
        return found[1]

    # -- writing ----------------------------------------------------------------------------------------------

    def put_derived(self, key: str, *, model: str, kind: str, payload: bytes, info: dict[str, Any]) -> None:
        """Store a derived answer, in place of what was there under `key`. `kind`, `info`: what lists of answers say
        about it; `model` as in `write`, and as there the store is then brought within its limit."""
        self._check_open()
        head = {"kind": kind, "model": _text(model), "info": _dump(info)}
        limit, tick = self.limit, self._database.tick

        def work(cursor: Cursor) -> None:
            start = tick()
            entries.put_derived(cursor, key, head, bytes(payload), tick)
            eviction.evict(cursor, limit=limit, keep_from=start)

        self._write(work)

    def write(
        self,
        *,
        model: str,
        runs: Iterable[tuple[str, bytes | None, dict[str, Any], pd.DataFrame]] = (),
        rows: Iterable[tuple[str, str, pd.DataFrame, dict[str, Any]]] = (),
        manifests: Iterable[tuple[str, dict[str, Any]]] = (),
    ) -> None:
        """Store one answer in one transaction: all of it is there afterwards, or, if this raises, nothing.

        `model`: display name and fingerprint, by which the store is shown and cleared. `runs`: (key, payload, info,
        routing), payload None where the activations are not to be had; `rows`: (pair key, part, frame, provenance);
        `manifests`: (key, manifest). A run or row set whose key is there already stays as it is (equal keys mean equal
        numbers); a manifest is replaced. Then the least recently used of the rest is dropped until the contents fit
        the limit.
        """
        self._check_open()
        new_runs = {
            key: (
                None if payload is None else bytes(payload),
                _dump(info),
                frames.normalise(routing, frames.ROUTING_COLUMNS),
            )
            for key, payload, info, routing in runs
        }
        new_rows = {
            (pair_key, part): (frames.normalise(frame, frames.ROW_COLUMNS), _dump(provenance))
            for pair_key, part, frame, provenance in rows
        }
        new_manifests = {key: _dump(manifest) for key, manifest in manifests}
        limit, name, tick = self.limit, _text(model), self._database.tick

        def work(cursor: Cursor) -> None:
            start = tick()
            entries.put_runs(cursor, name, new_runs, tick)
            entries.put_rows(cursor, name, new_rows, tick)
            for key, text in new_manifests.items():
                entries.put_json(cursor, "manifests", key, name, text, tick)
            eviction.evict(cursor, limit=limit, keep_from=start)

        self._write(work)

    # -- size, limit, clearing ----------------------------------------------------------------------------------

    @property
    def limit(self) -> int:
        """Bytes of contents that the store keeps; more is evicted, least recently used first."""
        self._check_open()
        query = "SELECT value FROM settings WHERE name = 'limit_bytes'"
        found = self._unchanged("limit", lambda cursor: cursor.execute(query).fetchall())
        return int(found[0][0]) if found else DEFAULT_LIMIT

    def set_limit(self, limit_bytes: int) -> None:
        """Set the limit for now and later, and evict what is over it."""
        self._check_open()
        limit = int(limit_bytes)
        if limit <= 0:
            raise StoreError(f"The store's limit is {limit_bytes} bytes.", "Give a number above 0.")

        def work(cursor: Cursor) -> None:
            cursor.execute("DELETE FROM settings WHERE name = 'limit_bytes'")
            cursor.execute("INSERT INTO settings VALUES ('limit_bytes', ?)", [str(limit)])
            eviction.evict(cursor, limit=limit, keep_from=self._database.tick())

        self._write(work)

    def size(self) -> int:
        """Bytes that the file (with its log) takes on the disk. Freed space is reused, but only `compact` and
        `clear` make the file smaller."""
        self._check_open()
        return self._database.size()

    def contents_bytes(self) -> int:
        """Bytes of contents, as counted against the limit."""
        self._check_open()
        return self._unchanged("contents", eviction.total_bytes)

    def usage(self) -> pd.DataFrame:
        """One row per model, most bytes first: model, runs, row_sets, manifests, derived, bytes, last_used (UTC; the
        uses of the last minute may be missing)."""
        counted = ("runs", "row_sets", "manifests", "derived")
        table = pd.DataFrame(self._shares(), columns=["model", *counted, "bytes", "last_used"])
        table["model"] = table["model"].astype("str")
        table["last_used"] = pd.to_datetime(table["last_used"], unit="us", utc=True)
        return table.astype(dict.fromkeys((*counted, "bytes"), "int64"))

    def shares(self) -> list[tuple[str, int]]:
        """(model, bytes) of `usage` alone: every page shows them."""
        return [(model, size) for model, *_, size, _ in self._shares()]

    def _shares(self) -> list[tuple]:
        self._check_open()
        query = """
            SELECT model, count(*) FILTER (kind = 'run') AS runs, count(*) FILTER (kind = 'row_set') AS row_sets,
                   count(*) FILTER (kind = 'manifest') AS manifests, count(*) FILTER (kind = 'derived') AS derived,
                   sum(bytes)::BIGINT AS bytes, max(last_used) AS last_used
            FROM (SELECT 'run' AS kind, model, bytes, last_used FROM runs
                  UNION ALL SELECT 'row_set', model, bytes, last_used FROM row_sets
                  UNION ALL SELECT 'manifest', model, bytes, last_used FROM manifests
                  UNION ALL SELECT 'verdict', model, bytes, last_used FROM verdicts
                  UNION ALL SELECT 'derived', model, bytes, last_used FROM derived)
            GROUP BY model ORDER BY bytes DESC, model"""
        return self._unchanged("usage", lambda cursor: cursor.execute(query).fetchall())

    def clear(self, model: str | None = None) -> None:
        """Delete everything of a model (verdicts too), or of all models; settings stay. The file is then compacted."""
        self._check_open()
        name = None if model is None else _text(model)

        def work(cursor: Cursor) -> None:
            eviction.drop(cursor, eviction.candidates(cursor, model=name))
            cursor.execute("DELETE FROM verdicts WHERE $model IS NULL OR model = $model", {"model": name})

        self._write(work)
        self.compact()

    def compact(self) -> None:
        """Rewrite the file without free space (needs room for a second copy meanwhile)."""
        self.flush()
        self._database.compact()

    def flush(self) -> None:
        """Write down what was used when; writing and closing do it too."""
        self._check_open()
        if self._touched:
            self._write(lambda cursor: None)

    # -- inside -------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("The store was closed.", "Open it again.")

    def _unchanged(self, name: str, work: Callable[[Cursor], T]) -> T:
        """What `work` reads, which is the same until something is written here or the file was away: every page shows
        how full the store is."""
        version = self._database.version
        known = self._known.get(name)
        if known is None or known[0] != version:
            known = self._known[name] = version, self._database.read(work)
        return known[1]

    def _touch(self, table: str, ids: Iterable[int]) -> None:
        """Remember that these were used. Reads stay reads; a later write puts it into the file."""
        tick = self._database.tick()
        with self._lock:
            self._touched |= dict.fromkeys([(table, entry) for entry in ids], tick)
            due = time.monotonic() - self._flushed > _FLUSH_SECONDS
        if due:
            self.flush()

    def _write(self, work: Callable[[Cursor], None]) -> None:
        """Run `work` as one write, together with what was used since the last one."""
        with self._lock:
            touched = dict(self._touched)
            self._flushed = time.monotonic()

        def both(cursor: Cursor) -> None:
            entries.mark_used(cursor, touched)
            work(cursor)

        self._database.write(both)
        with self._lock:
            self._touched = {entry: tick for entry, tick in self._touched.items() if touched.get(entry) != tick}

    def _get_json(self, table: str, key: str) -> dict[str, Any] | None:
        self._check_open()
        found = self._database.read(lambda cursor: entries.get_json(cursor, table, key))
        if found is None:
            return None
        self._touch(table, [found[0]])
        return json.loads(found[1])

    def _row_sets(
        self, pairs: Sequence[tuple[str, str]], tables: Callable[[Cursor, list[int]], dict[int, T]]
    ) -> dict[tuple[str, str], tuple[T, str]]:
        """By (pair key, part): what `tables` gave for the row set's id, and its provenance as text."""
        self._check_open()
        wanted = list(dict.fromkeys(pairs))
        if not wanted:
            return {}

        def work(cursor: Cursor) -> tuple[dict[tuple[str, str], tuple[int, str]], dict[int, T]]:
            found = entries.find_row_sets(cursor, wanted)
            return found, tables(cursor, [row_set for row_set, _ in found.values()])

        found, made = self._database.read(work)
        self._touch("row_sets", [row_set for row_set, _ in found.values()])
        return {pair: (made[found[pair][0]], found[pair][1]) for pair in wanted if pair in found}


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
