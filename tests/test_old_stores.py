"""Stores of every earlier schema, opened by the code of today: each answer in them is there, with the same numbers."""

from __future__ import annotations

import io
import json
import zipfile

import duckdb
import old_stores
import pandas as pd
import pytest
from old_stores import (
    ANSWERS,
    BROUGHT,
    DERIVED,
    KEPT,
    LABEL,
    LIST,
    LIST_FACTS,
    STUDY,
    assert_the_first_traces,
    plain,
)

from cache import Store, migrations
from cache.fact_lists import FactLists
from cache.holdings import Holdings
from cache.studies import Studies
from core.derived import unpack
from core.fact_lists import FactListDesk
from core.requests import Fact
from core.stored import StoredDesk
from core.study import archive, data
from core.trace import recalled

EVERY = range(1, migrations.LATEST + 1)


@pytest.fixture
def opened(tmp_path, request):
    """(path, open store) of a store that was written with the schema `request.param`."""
    path = tmp_path / "store.duckdb"
    old_stores.make(path, request.param)
    with duckdb.connect(str(path), read_only=True) as before:
        assert migrations.applied(before.cursor()) == list(range(1, request.param + 1))
    with Store.open(path) as store:
        yield path, store


def assert_schema_2(path, store) -> None:
    run = store.get_run("run of schema 2")
    assert run.payload == b"\x00abc" and run.info == {"draw": 0}
    routing = run.routing[["expert", "margin", "near_tie"]]
    assert plain(routing) == [[3, 0.125, False], [7, None, None], [1, 0.001, True]]


def assert_schema_3(path, store) -> None:
    book = Studies(path)
    record = book.get(STUDY)
    assert record.state == data.DONE and record.model.startswith("demo")
    study = data.load(book, STUDY)
    said = pd.read_parquet(KEPT / "3_study_rows.parquet")
    pd.testing.assert_frame_equal(study.rows[said.columns], said, check_exact=True, check_dtype=False)
    assert study.funnel.enough and len(study.kept) == 10


def assert_schema_4(path, store) -> None:
    rows = store.get_rows("pair of schema 4", "experts@2")
    assert plain(rows) == [
        ["expert", 4, 2, 7, True, 0.5, None, 1.5, -2.5, 0.0625],
        ["shared", 4, 2, None, None, None, None, 1.25, -2.0, None],
    ]
    assert store.get_provenance("pair of schema 4", "experts@2") == {"v": 1}


def assert_schema_5(path, store) -> None:
    payload = store.get_derived(DERIVED["key"])
    assert payload == (KEPT / "5_derived.zip").read_bytes()
    answer = unpack(payload)
    with zipfile.ZipFile(io.BytesIO(payload)) as archive_:
        said = json.loads(archive_.read("answer.json"))
        tables = [pd.read_parquet(io.BytesIO(archive_.read(f"{n}.parquet"))) for n in range(len(said["tables"]))]
    assert answer.values == said["values"] and list(answer.tables) == said["tables"]
    for table, wanted in zip(answer.tables.values(), tables, strict=True):
        pd.testing.assert_frame_equal(table, wanted, check_exact=True)
    assert [fact.subject for fact in answer.request.facts] == [fact["subject"] for fact in said["request"]["facts"]]
    (listed,) = StoredDesk(Holdings(path), store, lambda: None).derived()
    assert (listed.kind, listed.facts, listed.settings["noise"]) == ("routing", 2, 3.0)


def assert_schema_6(path, store) -> None:
    assert FactListDesk(FactLists(path)).get(LIST) == tuple(Fact(**fact) for fact in LIST_FACTS)
    assert [trace.label for trace in StoredDesk(Holdings(path), store, lambda: None).traces()] == ["", LABEL]


THERE = {
    1: assert_the_first_traces, 2: assert_schema_2, 3: assert_schema_3, 4: assert_schema_4, 5: assert_schema_5,
    6: assert_schema_6,
}  # fmt: skip
"""By schema: what to find of what it brought. Every migration has to have one."""


def test_every_migration_has_an_old_store_with_something_in_it():
    assert list(EVERY) == [number for number, _, _ in migrations.MIGRATIONS]
    assert list(THERE) == [1, *BROUGHT] == list(EVERY), "a new migration needs its entry in BROUGHT and in THERE"


def test_what_a_schema_brought_is_filled_in(tmp_path):
    """Else a step would be tested with empty tables: each step's values lie in columns that were empty or not there."""
    path = tmp_path / "store.duckdb"
    old_stores.make(path, 1)
    with duckdb.connect(str(path)) as connection:
        full = _full_columns(connection)
        for number in EVERY[1:]:
            migrations.migrate(connection.cursor(), upto=number)
            BROUGHT[number](connection.cursor())
            before, full = full, _full_columns(connection)
            assert before < full, number


def _full_columns(connection) -> set[tuple[str, str]]:
    """(table, column) of every column with a value in it, but of the payloads' own tables."""
    query = """
        SELECT table_name, column_name FROM duckdb_columns()
        WHERE NOT internal AND NOT starts_with(table_name, 'shelf_')"""
    return {
        (table, column)
        for table, column in connection.execute(query).fetchall()
        if connection.execute(f"SELECT count({column}) FROM {table}").fetchone() != (0,)
    }


@pytest.mark.parametrize("opened", EVERY, indirect=True, ids="schema {}".format)
def test_a_store_of_an_earlier_schema_says_what_it_said(opened, request):
    path, store = opened
    schema = request.node.callspec.params["opened"]
    for number in range(1, schema + 1):
        THERE[number](path, store)
    store.close()
    with duckdb.connect(str(path)) as after:
        assert migrations.applied(after.cursor()) == list(EVERY)


@pytest.mark.parametrize("opened", [1, migrations.LATEST], indirect=True, ids="schema {}".format)
def test_it_is_worked_with_as_any_other_and_still_says_the_same(opened, tmp_path):
    """Naming, exporting, importing, studies, lists, compacting: none of it changes what was there."""
    path, store = opened
    desk = StoredDesk(Holdings(path), store, lambda: None)
    first = desk.traces()[-1]
    packed = desk.export([trace.key for trace in desk.traces()])
    assert desk.import_file(packed) == 2
    desk.rename(first.key, LABEL)
    FactListDesk(FactLists(path)).put("new", [Fact("{} is", "a", "b", "c")])
    book = Studies(path)
    if book.find(STUDY) is not None:
        assert archive.unpack(book, archive.pack(book, STUDY), name="a copy") == "a copy"
        study = data.load(book, "a copy")
        pd.testing.assert_frame_equal(study.rows, data.load(book, STUDY).rows, check_exact=True)
    store.compact()
    assert_the_first_traces(path, store)
    with Store.open(tmp_path / "other.duckdb") as other:
        there = StoredDesk(Holdings(other.path), other, lambda: None)
        assert there.import_file(packed) == 2
        for trace in there.traces():
            result = recalled(other, trace.request, other.get_manifest(trace.key))
            said = next(one for one in ANSWERS["traces"] if one["drop"] == result.drop)
            at = said["frame"]["columns"].index("rescue")
            assert plain(result.frame[["rescue"]]) == [[row[at]] for row in said["frame"]["rows"]]
