"""What to drop when the store is over its limit, and dropping it. Knows the tables and their sizes only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from . import shelves
from .migrations import Cursor


class Entry(NamedTuple):
    """Something dropped as a whole. `kind`: shelf (the runs of one write), row_set, manifest or derived."""

    kind: str
    id: int
    last_used: int
    bytes: int


_ENTRIES = """
    SELECT 'shelf' AS kind, shelf AS id, max(last_used) AS last_used, sum(bytes)::BIGINT AS bytes
      FROM runs WHERE $model IS NULL OR model = $model GROUP BY shelf
    UNION ALL
    SELECT 'row_set', id, last_used, bytes FROM row_sets WHERE $model IS NULL OR model = $model
    UNION ALL
    SELECT 'manifest', id, last_used, bytes FROM manifests WHERE $model IS NULL OR model = $model
    UNION ALL
    SELECT 'derived', id, last_used, bytes FROM derived WHERE $model IS NULL OR model = $model
"""


def candidates(cursor: Cursor, *, model: str | None = None) -> list[Entry]:
    """All entries (of a model), least recently used first."""
    query = f"SELECT kind, id, last_used, bytes FROM ({_ENTRIES}) ORDER BY last_used, id"
    return [Entry(*row) for row in cursor.execute(query, {"model": model}).fetchall()]


def total_bytes(cursor: Cursor) -> int:
    """Bytes of all contents, as counted against the limit."""
    query = """
        SELECT coalesce(sum(bytes), 0)::BIGINT FROM (
            SELECT bytes FROM runs UNION ALL SELECT bytes FROM row_sets
            UNION ALL SELECT bytes FROM manifests UNION ALL SELECT bytes FROM verdicts
            UNION ALL SELECT bytes FROM derived)"""
    return int(cursor.execute(query).fetchall()[0][0])


def evict(cursor: Cursor, *, limit: int, keep_from: int) -> list[Entry]:
    """Drop least recently used entries until the contents fit `limit`; return what was dropped.

    Entries used at tick `keep_from` or later stay, also when the limit is then missed. Verdicts stay: they are
    small, and cost seconds.
    """
    over = total_bytes(cursor) - limit
    chosen: list[Entry] = []
    if over > 0:
        for entry in candidates(cursor):
            if over <= 0 or entry.last_used >= keep_from:
                break
            chosen.append(entry)
            over -= entry.bytes
        drop(cursor, chosen)
    return chosen


def drop(cursor: Cursor, chosen: Sequence[Entry]) -> None:
    """Remove entries with everything that belongs to them."""
    by_kind: dict[str, list[int]] = {"shelf": [], "row_set": [], "manifest": [], "derived": []}
    for entry in chosen:
        by_kind[entry.kind].append(entry.id)
    if by_kind["shelf"]:
        shelf_ids = by_kind["shelf"]
        cursor.execute("DELETE FROM routing WHERE run IN (SELECT id FROM runs WHERE shelf IN $ids)", {"ids": shelf_ids})
        cursor.execute("DELETE FROM runs WHERE shelf IN $ids", {"ids": shelf_ids})
        for shelf in shelf_ids:
            shelves.drop(cursor, shelf)
    if by_kind["row_set"]:
        cursor.execute("DELETE FROM result_rows WHERE row_set IN $ids", {"ids": by_kind["row_set"]})
        cursor.execute("DELETE FROM row_sets WHERE id IN $ids", {"ids": by_kind["row_set"]})
    if by_kind["manifest"]:
        cursor.execute("DELETE FROM manifests WHERE id IN $ids", {"ids": by_kind["manifest"]})
    if by_kind["derived"]:
        cursor.execute("DELETE FROM derived WHERE id IN $ids", {"ids": by_kind["derived"]})
        for entry in by_kind["derived"]:
            shelves.drop(cursor, entry)
