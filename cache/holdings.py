"""What the store holds, piece by piece: answers and derived answers, with their sizes; deleting and naming them.

An answer's manifest names the runs (`clean`, `corrupt`) and the row sets (`pairs` × `parts`) that it is made of;
several answers may share them. Knows that, and SQL; not what an answer says.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from . import shelves
from .borrowed import WAIT_SECONDS, Borrowed
from .database import Database
from .migrations import Cursor


@dataclass(frozen=True)
class Held:
    """One answer. `model`: as it was written; `label`: the name that a person gave it, or empty; `bytes`: of its
    manifest, runs and row sets, those that it shares with others too; `whole`: none of them was evicted; `stored`:
    microseconds since 1970."""

    key: str
    model: str
    label: str
    manifest: Mapping[str, Any]
    bytes: int
    whole: bool
    stored: int


@dataclass(frozen=True)
class HeldDerived:
    """One derived answer: what `Store.put_derived` was told about it."""

    key: str
    kind: str
    model: str
    info: Mapping[str, Any]
    bytes: int
    stored: int


class Holdings(Borrowed):
    """The answers of one store. Methods may be called from any thread; what they raise for a person is a StoreError."""

    def __init__(self, path: str | os.PathLike[str] | None = None, *, wait_seconds: float = WAIT_SECONDS) -> None:
        super().__init__(path, wait_seconds=wait_seconds)
        self._lock = threading.Lock()
        self._known: tuple[tuple, list[Held]] | None = None

    def answers(self) -> list[Held]:
        """Every answer, the latest first. Reading thousands takes a moment, so they are kept until one comes or
        goes."""
        stamp = self._read(_STAMP)[0]
        with self._lock:
            if self._known is not None and self._known[0] == stamp:
                return self._known[1]

        def work(cursor: Cursor, database: Database) -> tuple[tuple, list[Held]]:
            now = cursor.execute(_STAMP).fetchall()[0]
            return now, _answers(cursor)

        known = self._with(lambda database: database.read(lambda cursor: work(cursor, database)))
        with self._lock:
            self._known = known
        return known[1]

    def derived(self) -> list[HeldDerived]:
        """Every derived answer, the latest first."""
        rows = self._read("SELECT key, kind, model, info, bytes, id FROM derived ORDER BY id DESC")
        return [HeldDerived(key, kind, model, json.loads(info), size, at) for key, kind, model, info, size, at in rows]

    def delete(self, keys: Iterable[str]) -> int:
        """Remove answers with the runs and row sets that no other one is made of, and their labels; how many there
        were."""
        gone = list(keys)

        def work(cursor: Cursor, database: Database) -> int:
            texts = cursor.execute("SELECT key, manifest FROM manifests").fetchall()
            mine = [json.loads(text) for key, text in texts if key in set(gone)]
            others = [json.loads(text) for key, text in texts if key not in set(gone)]
            runs, pairs = _parts(mine)
            used_runs, used_pairs = _parts(others)
            _drop_row_sets(cursor, pairs - used_pairs)
            _drop_runs(cursor, runs - used_runs)
            cursor.execute("DELETE FROM manifests WHERE key IN $keys", {"keys": gone})
            cursor.execute("DELETE FROM labels WHERE key IN $keys", {"keys": gone})
            return len(mine)

        return self._write(work) if gone else 0

    def delete_derived(self, keys: Iterable[str]) -> int:
        """Remove derived answers; how many there were."""
        gone = list(keys)

        def work(cursor: Cursor, database: Database) -> int:
            found = cursor.execute("SELECT id FROM derived WHERE key IN $keys", {"keys": gone}).fetchall()
            for (entry,) in found:
                shelves.drop(cursor, entry)
            cursor.execute("DELETE FROM derived WHERE key IN $keys", {"keys": gone})
            return len(found)

        return self._write(work) if gone else 0

    def label(self, key: str, label: str) -> None:
        """Name an answer; an empty name takes it away. It outlives the answer's eviction, not its deletion."""

        def work(cursor: Cursor, database: Database) -> None:
            cursor.execute("DELETE FROM labels WHERE key = ?", [key])
            if label:
                cursor.execute("INSERT INTO labels VALUES (?, ?)", [key, label])

        self._write(work)


_STAMP = """
    SELECT count(*), coalesce(max(id), 0),
           (SELECT coalesce(bit_xor(hash(key, label)), 0)::VARCHAR FROM labels),
           (SELECT count(*) FROM runs), (SELECT count(*) FROM row_sets)
    FROM manifests"""
"""Another one whenever an answer, a part of one or a label came or went."""


def _answers(cursor: Cursor) -> list[Held]:
    labels = dict(cursor.execute("SELECT key, label FROM labels").fetchall())
    run_bytes = dict(cursor.execute("SELECT key, bytes FROM runs").fetchall())
    rows = cursor.execute("SELECT pair_key, part, bytes FROM row_sets").fetchall()
    row_bytes = {(pair, part): size for pair, part, size in rows}
    query = "SELECT key, model, manifest, bytes, id FROM manifests ORDER BY id DESC"
    out = []
    for key, model, text, size, stored in cursor.execute(query).fetchall():
        manifest = json.loads(text)
        runs, pairs = _parts([manifest])
        size += sum(run_bytes.get(run, 0) for run in runs) + sum(row_bytes.get(pair, 0) for pair in pairs)
        whole = runs <= run_bytes.keys() and pairs <= row_bytes.keys()
        out.append(Held(key, model, labels.get(key, ""), manifest, size, whole, stored))
    return out


def _parts(manifests: Iterable[Mapping[str, Any]]) -> tuple[set[str], set[tuple[str, str]]]:
    """(keys of runs, (pair key, part) of row sets) that answers are made of."""
    runs: set[str] = set()
    pairs: set[tuple[str, str]] = set()
    for manifest in manifests:
        runs |= {manifest["clean"], *manifest["corrupt"]}
        pairs.update(itertools.product(manifest["pairs"], manifest["parts"]))
    return runs, pairs


def _drop_row_sets(cursor: Cursor, pairs: set[tuple[str, str]]) -> None:
    rows = cursor.execute("SELECT id, pair_key, part FROM row_sets").fetchall()
    ids = [row_set for row_set, pair, part in rows if (pair, part) in pairs]
    if ids:
        cursor.execute("DELETE FROM result_rows WHERE row_set IN $ids", {"ids": ids})
        cursor.execute("DELETE FROM row_sets WHERE id IN $ids", {"ids": ids})


def _drop_runs(cursor: Cursor, keys: set[str]) -> None:
    """A shelf goes when its last run does."""
    if not keys:
        return
    by_shelf: dict[int, list[int]] = {}
    rows = cursor.execute("SELECT id, shelf FROM runs WHERE key IN $keys", {"keys": list(keys)}).fetchall()
    for run, shelf in rows:
        by_shelf.setdefault(shelf, []).append(run)
    for shelf, runs in by_shelf.items():
        cursor.execute("DELETE FROM routing WHERE run IN $runs", {"runs": runs})
        cursor.execute("DELETE FROM runs WHERE id IN $runs", {"runs": runs})
        if cursor.execute("SELECT 1 FROM runs WHERE shelf = ? LIMIT 1", [shelf]).fetchall():
            shelves.take(cursor, shelf, runs)
        else:
            shelves.drop(cursor, shelf)
