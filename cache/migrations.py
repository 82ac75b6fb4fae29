"""The store's tables as a numbered list of steps, and the table of those applied.

A step is never changed after it was released; a new one is added at the end. Knows SQL only: no paths, no locks.
There are no primary keys: one writer at a time (`database.Database.write`) checks for a key before it inserts, and
DuckDB's indexes would turn updates into delete-and-insert and check uniqueness against rows already deleted.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import duckdb

from core.errors import StoreError

Cursor = duckdb.DuckDBPyConnection


def _01_tables(cursor: Cursor) -> None:
    """`id` and `last_used` are ticks: microseconds since 1970, strictly increasing, never given twice."""
    cursor.execute("CREATE TABLE settings (name VARCHAR NOT NULL, value VARCHAR NOT NULL)")
    cursor.execute("""
        CREATE TABLE verdicts (
            id BIGINT NOT NULL, key VARCHAR NOT NULL, model VARCHAR NOT NULL, verdict VARCHAR NOT NULL,
            bytes BIGINT NOT NULL, last_used BIGINT NOT NULL)""")
    # A run's payload lies in a table of its own shelf (see shelves.py), its routing in `routing`.
    cursor.execute("""
        CREATE TABLE runs (
            id BIGINT NOT NULL, key VARCHAR NOT NULL, model VARCHAR NOT NULL, shelf BIGINT NOT NULL,
            info VARCHAR NOT NULL, bytes BIGINT NOT NULL, last_used BIGINT NOT NULL)""")
    cursor.execute("""
        CREATE TABLE routing (
            run BIGINT NOT NULL, ordinal BIGINT NOT NULL, layer BIGINT NOT NULL, pos BIGINT NOT NULL,
            slot BIGINT NOT NULL, expert BIGINT NOT NULL, router_weight DOUBLE, margin DOUBLE)""")
    cursor.execute("""
        CREATE TABLE row_sets (
            id BIGINT NOT NULL, pair_key VARCHAR NOT NULL, part VARCHAR NOT NULL, model VARCHAR NOT NULL,
            provenance VARCHAR NOT NULL, bytes BIGINT NOT NULL, last_used BIGINT NOT NULL)""")
    cursor.execute("""
        CREATE TABLE result_rows (
            row_set BIGINT NOT NULL, ordinal BIGINT NOT NULL, kind VARCHAR NOT NULL, layer BIGINT, pos BIGINT,
            expert BIGINT, clean_active BOOLEAN, router_weight_clean DOUBLE, router_weight_corrupt DOUBLE,
            true_logit DOUBLE, foil_logit DOUBLE)""")
    cursor.execute("""
        CREATE TABLE manifests (
            id BIGINT NOT NULL, key VARCHAR NOT NULL, model VARCHAR NOT NULL, manifest VARCHAR NOT NULL,
            bytes BIGINT NOT NULL, last_used BIGINT NOT NULL)""")


def _02_near_tie(cursor: Cursor) -> None:
    """Whether the margin is within one bfloat16 step; unknown for what was stored before."""
    cursor.execute("ALTER TABLE routing ADD COLUMN near_tie BOOLEAN")


def _03_studies(cursor: Cursor) -> None:
    """A study and its parts: each part is what one batch of its plan left behind (see studies.py)."""
    cursor.execute("""
        CREATE TABLE studies (
            id BIGINT NOT NULL, name VARCHAR NOT NULL, model VARCHAR NOT NULL, settings VARCHAR NOT NULL,
            plan VARCHAR NOT NULL, provenance VARCHAR NOT NULL, state VARCHAR NOT NULL, note VARCHAR NOT NULL,
            progress VARCHAR NOT NULL, stop BOOLEAN NOT NULL, created BIGINT NOT NULL, updated BIGINT NOT NULL)""")
    cursor.execute("""
        CREATE TABLE study_parts (
            study BIGINT NOT NULL, stage VARCHAR NOT NULL, number BIGINT NOT NULL,
            payload BLOB NOT NULL USING COMPRESSION uncompressed)""")


def _04_direct(cursor: Cursor) -> None:
    """The direct part of an expert patch; unknown for what was stored before."""
    cursor.execute("ALTER TABLE result_rows ADD COLUMN direct DOUBLE")


def _05_derived(cursor: Cursor) -> None:
    """Answers that are more than one trace. The payload of each lies on a shelf of its own, numbered as its id."""
    cursor.execute("""
        CREATE TABLE derived (
            id BIGINT NOT NULL, key VARCHAR NOT NULL, kind VARCHAR NOT NULL, model VARCHAR NOT NULL,
            info VARCHAR NOT NULL, bytes BIGINT NOT NULL, last_used BIGINT NOT NULL)""")


def _06_library(cursor: Cursor) -> None:
    """Lists of facts (see fact_lists.py), and the names that people give to stored answers, by manifest key."""
    cursor.execute("""
        CREATE TABLE fact_lists (
            id BIGINT NOT NULL, name VARCHAR NOT NULL, n BIGINT NOT NULL, note VARCHAR NOT NULL, bytes BIGINT NOT NULL,
            created BIGINT NOT NULL, updated BIGINT NOT NULL,
            payload BLOB NOT NULL USING COMPRESSION uncompressed)""")
    cursor.execute("CREATE TABLE labels (key VARCHAR NOT NULL, label VARCHAR NOT NULL)")


MIGRATIONS: list[tuple[int, str, Callable[[Cursor], None]]] = [
    (1, "tables", _01_tables),
    (2, "near_tie", _02_near_tie),
    (3, "studies", _03_studies),
    (4, "direct", _04_direct),
    (5, "derived", _05_derived),
    (6, "library", _06_library),
]
LATEST = MIGRATIONS[-1][0]


def applied(cursor: Cursor) -> list[int]:
    """Numbers of the steps applied so far, in order; empty for a new file.

    Raises StoreError for a database that holds tables but is not a store.
    """
    tables = {name for (name,) in cursor.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    if "migrations" in tables:
        return [number for (number,) in cursor.execute("SELECT number FROM migrations ORDER BY number").fetchall()]
    if tables:
        raise StoreError(
            "The file is a DuckDB database, but not a store of ExpertScope; nothing in it was changed.",
            "Set EXPERTSCOPE_HOME to another folder, or move the file away.",
        )
    return []


def migrate(cursor: Cursor, *, upto: int = LATEST) -> list[int]:
    """Apply the steps that are missing, up to number `upto`, each in its own transaction; return their numbers.

    Raises StoreError, before anything is changed, if the file was written by a newer ExpertScope.
    """
    done = applied(cursor)
    newer = [number for number in done if number > LATEST]
    if newer:
        raise StoreError(
            f"The store was written by a newer ExpertScope (schema {max(newer)}; this one knows {LATEST}); "
            "nothing in it was changed.",
            "Update ExpertScope, or set EXPERTSCOPE_HOME to another folder for this version.",
        )
    new = [step for step in MIGRATIONS if step[0] not in done and step[0] <= upto]
    for number, name, step in new:
        cursor.execute("BEGIN TRANSACTION")
        try:
            cursor.execute(
                "CREATE TABLE IF NOT EXISTS migrations (number BIGINT NOT NULL, name VARCHAR NOT NULL, applied BIGINT)"
            )
            step(cursor)
            cursor.execute("INSERT INTO migrations VALUES (?, ?, ?)", [number, name, time.time_ns() // 1000])
            cursor.execute("COMMIT")
        except BaseException:
            cursor.execute("ROLLBACK")
            raise
    return [number for number, _, _ in new]
