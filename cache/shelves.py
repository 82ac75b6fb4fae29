"""Where payloads lie: one table (a shelf) per write, dropped as a whole.

DuckDB keeps a table's last 122,880 rows in one unit that it rewrites at every checkpoint, so one table of a few
hundred large BLOBs would be rewritten, whole, with every answer, take twice its room, and not shrink on DELETE
(measured: 0.8 s and 914 MB at 120 payloads of 3.9 MB; with shelves 0.05 s and 504 MB). Its default ZSTD makes point
reads of BLOBs slow, hence uncompressed. A negative number is that of a write without any payload: there is no table.
Knows SQL and bytes; not keys, not models.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from .migrations import Cursor


def put(cursor: Cursor, shelf: int, payloads: Sequence[tuple[int, bytes]]) -> None:
    """Make the shelf with number `shelf` and put (run id, payload) pairs on it."""
    name = _name(shelf)
    cursor.execute(f"CREATE TABLE {name} (run BIGINT NOT NULL, payload BLOB NOT NULL USING COMPRESSION uncompressed)")
    ids = pa.array([run for run, _ in payloads], pa.int64())
    data = pa.array([payload for _, payload in payloads], pa.large_binary())
    insert(cursor, name, pa.table([ids, data], names=["run", "payload"]))


def get(cursor: Cursor, shelf: int, run: int) -> bytes | None:
    """The payload of a run on a shelf, or None."""
    if shelf < 0:
        return None
    found = cursor.execute(f"SELECT payload FROM {_name(shelf)} WHERE run = ?", [run]).fetchall()
    return bytes(found[0][0]) if found else None


def drop(cursor: Cursor, shelf: int) -> None:
    """Remove a shelf with all that is on it; its space is reused."""
    if shelf >= 0:
        cursor.execute(f"DROP TABLE IF EXISTS {_name(shelf)}")


def take(cursor: Cursor, shelf: int, runs: Sequence[int]) -> None:
    """Remove the payloads of some runs from a shelf that others use too."""
    if shelf >= 0:
        cursor.execute(f"DELETE FROM {_name(shelf)} WHERE run IN $runs", {"runs": list(runs)})


def insert(cursor: Cursor, table: str, rows: pa.Table) -> None:
    """Append an Arrow table to a table of the store, columns by name."""
    cursor.register("incoming_rows", rows)
    try:
        cursor.execute(f"INSERT INTO {table} BY NAME SELECT * FROM incoming_rows")
    finally:
        cursor.unregister("incoming_rows")


def _name(shelf: int) -> str:
    return f"shelf_{int(shelf)}"
