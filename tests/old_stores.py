"""Stores as every earlier schema left them: the file kept from the first one, migrated step by step, with what each
step brought filled in by plain SQL, as the versions of then did it (see tests/old/README.md)."""

from __future__ import annotations

import hashlib
import json
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow.parquet as pq

from cache import Store, migrations
from cache.holdings import Holdings
from core.stored import StoredDesk
from core.trace import recalled

KEPT = Path(__file__).parent / "old"
ANSWERS = json.loads((KEPT / "1_answers.json").read_text("utf-8"))
"""What the first store says, as the version that wrote it said it."""
STUDY = "kept from schema 3"
DERIVED = json.loads((KEPT / "5_derived.json").read_text("utf-8"))
LIST, LABEL = "two capitals", "the first trace"
LIST_FACTS = [
    {"prompt": "The capital of {} is", "subject": "France", "true": "Paris", "foil": "Rome", "case_id": 11},
    {"prompt": "The capital of {} is", "subject": "日本", "true": "Tokyo", "case_id": 12, "foil_auto": True},
]

Cursor = duckdb.DuckDBPyConnection


def _near_tie(cursor: Cursor) -> None:
    cursor.execute("INSERT INTO runs VALUES (21, 'run of schema 2', 'demo · f', 20, '{\"draw\": 0}', 3, 21)")
    cursor.execute("CREATE TABLE shelf_20 (run BIGINT NOT NULL, payload BLOB NOT NULL USING COMPRESSION uncompressed)")
    cursor.execute("INSERT INTO shelf_20 VALUES (21, '\\x00abc'::BLOB)")
    for ordinal, (expert, margin, near_tie) in enumerate([(3, 0.125, False), (7, None, None), (1, 0.001, True)]):
        values = [21, ordinal, 4, 2, ordinal, expert, 0.25, margin, near_tie]
        cursor.execute("INSERT INTO routing VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)


def _studies(cursor: Cursor) -> None:
    for table, file in (("studies", "3_studies"), ("study_parts", "3_study_parts")):
        cursor.register("kept", pq.read_table(KEPT / f"{file}.parquet"))
        cursor.execute(f"INSERT INTO {table} BY NAME SELECT * FROM kept")
        cursor.unregister("kept")


def _direct(cursor: Cursor) -> None:
    head = [41, "pair of schema 4", "experts@2", "demo · f", '{"v": 1}', 96, 41]
    cursor.execute("INSERT INTO row_sets VALUES (?, ?, ?, ?, ?, ?, ?)", head)
    cursor.execute("INSERT INTO result_rows VALUES (41, 0, 'expert', 4, 2, 7, true, 0.5, NULL, 1.5, -2.5, 0.0625)")
    cursor.execute("INSERT INTO result_rows VALUES (41, 1, 'shared', 4, 2, NULL, NULL, NULL, NULL, 1.25, -2.0, NULL)")


def _derived(cursor: Cursor) -> None:
    shelf = f"shelf_{DERIVED['id']}"
    cursor.execute(f"CREATE TABLE {shelf} (run BIGINT NOT NULL, payload BLOB NOT NULL USING COMPRESSION uncompressed)")
    cursor.execute(f"INSERT INTO {shelf} VALUES (?, ?)", [DERIVED["id"], (KEPT / "5_derived.zip").read_bytes()])
    values = [DERIVED[name] for name in ("id", "key", "kind", "model", "info", "bytes")]
    cursor.execute("INSERT INTO derived VALUES (?, ?, ?, ?, ?, ?, ?)", [*values, DERIVED["id"]])


def _library(cursor: Cursor) -> None:
    payload = zlib.compress(json.dumps(LIST_FACTS).encode("ascii"), 6)
    values = [61, LIST, len(LIST_FACTS), "typed in", len(payload), 61, 62, payload]
    cursor.execute("INSERT INTO fact_lists VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
    (first,) = cursor.execute("SELECT key FROM manifests ORDER BY id LIMIT 1").fetchall()[0]
    cursor.execute("INSERT INTO labels VALUES (?, ?)", [first, LABEL])


BROUGHT: dict[int, Callable[[Cursor], None]] = {2: _near_tie, 3: _studies, 4: _direct, 5: _derived, 6: _library}
"""By schema: fills in what that schema can hold and the one before could not. Every migration has to have one."""


def make(path: Path, schema: int) -> None:
    """Put a store of that schema at `path`, with everything in it that it can hold."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.decompress((KEPT / "1_store.duckdb.xz").read_bytes()))
    with duckdb.connect(str(path)) as connection:
        cursor = connection.cursor()
        for number in range(2, schema + 1):
            assert migrations.migrate(cursor, upto=number) == [number]
            BROUGHT[number](cursor)


def plain(table: pd.DataFrame) -> list[list]:
    """The cells as JSON has them, missing ones as None."""
    return [[None if pd.isna(cell) else cell for cell in row] for row in table.astype(object).to_numpy().tolist()]


def assert_the_first_traces(path: Path, store: Store) -> None:
    """Tables, activations, verdicts and limit are those that the version which wrote them gave, bit for bit."""
    traces = StoredDesk(Holdings(path), store, lambda: None).traces()
    held = [trace for trace in traces if not trace.imported]
    assert [trace.whole for trace in held] == [True, True]
    results = [recalled(store, trace.request, store.get_manifest(trace.key)) for trace in held]
    assert [(result.request.draws, result.request.experts) for result in results] == [(1, "none"), (2, "last")]
    for result, said in zip(reversed(results), ANSWERS["traces"], strict=True):
        assert result.drop == said["drop"]
        for name in ("frame", "routing", "next_tokens", "runs"):
            table, columns = getattr(result, name), [c for c in said[name]["columns"] if c != "near_tie"]
            wanted = pd.DataFrame(said[name]["rows"], columns=said[name]["columns"], dtype=object)
            assert plain(table[columns]) == plain(wanted[columns])
        assert result.routing.near_tie.isna().all() and result.frame.direct.isna().all()  # unknown then
    for key, digest in ANSWERS["payloads"].items():
        assert hashlib.sha256(store.get_run(key).payload).hexdigest() == digest
    for key, verdict in ANSWERS["verdicts"].items():
        assert store.get_verdict(key) == verdict
    assert store.limit == ANSWERS["limit_bytes"]
