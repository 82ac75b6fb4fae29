"""A result's tables: made once, equal to tables made anew, untouched by what their readers do to them."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import pandas as pd
import pytest
from fake_results import FRANCE, fake_result

from core import remembered, views
from core.requests import TraceRequest

TABLES = [
    (views.patches_of, (("layer",),)),
    (views.patches_of, (("expert", "shared"),)),
    (views.layer_cells, ()),
    (views.margins, ()),
    (views.expert_grid, (3,)),
    (views.active_experts, (1, 3)),
    (views.routing_strip, (1,)),
]


@pytest.fixture
def result():
    return fake_result(request=TraceRequest(fact=FRANCE, draws=2, experts="all"), dense=(2,), shared=True)


@pytest.mark.parametrize(("make", "arguments"), TABLES, ids=lambda part: getattr(part, "__name__", str(part)))
def test_a_table_is_what_it_would_be_without_remembering(result, make, arguments):
    wanted = make.__wrapped__(dataclasses.replace(result), *arguments)
    for _ in range(2):
        pd.testing.assert_frame_equal(make(result, *arguments), wanted)


def test_a_table_is_made_once_for_each_result_and_arguments():
    made = []

    @remembered.remembered
    def table(result, number):
        made.append((result.name, number))
        return pd.DataFrame({"value": [number]})

    @dataclasses.dataclass(frozen=True)
    class Result:
        name: str

    one, other = Result("one"), Result("one")
    for result, number in ((one, 1), (one, 1), (one, 2), (other, 1), (one, 2), (other, 1)):
        assert table(result, number).value.tolist() == [number]
    assert made == [("one", 1), ("one", 2), ("one", 1)]
    for number in range(3 * remembered.KEPT):
        assert table(one, number).value.tolist() == [number]
    assert len(remembered._of(one)) <= remembered.KEPT


def test_what_a_reader_does_to_his_table_stays_with_him(result):
    untouched = views.layer_cells(result).copy()
    mine = views.layer_cells(result)
    mine["value"] = 1.0
    mine.loc[:, "rescue"] = -7.0
    mine.iloc[0, mine.columns.get_loc("layer")] = 99
    pd.testing.assert_frame_equal(views.layer_cells(result), untouched)


def test_reading_a_table_often_leaves_little_behind(result):
    """pandas notes every table that shares its values with another, in a list that it clears rarely."""

    def references() -> int:
        return sum(type(thing) is weakref.ReferenceType for thing in gc.get_objects())

    views.layer_cells(result)
    before = references()
    for _ in range(200):
        views.layer_cells(result)
    assert references() <= before + 200 * 4, "one or two for each of its axes, none for its columns"


def test_the_tables_go_with_their_result():
    result = fake_result()
    number = id(result)
    views.layer_cells(result)
    kept = [weakref.ref(table) for table in remembered._of(result).values() if isinstance(table, pd.DataFrame)]
    assert kept and all(table() is not None for table in kept)
    assert not remembered._of(dataclasses.replace(result))
    del result
    gc.collect()
    assert not any(table() is not None for table in kept)
    assert number not in remembered._made


def test_patches_at_one_position_are_those_rows_of_all(result):
    every = views.patches(result, ("layer",))
    for pos in sorted(set(every.pos)):
        pd.testing.assert_frame_equal(
            views.patches(result, ("layer",), pos), every[every.pos == pos].reset_index(drop=True)
        )
