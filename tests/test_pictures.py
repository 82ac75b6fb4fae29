"""Pictures on a page: what the browser gets is what Streamlit would make of the tables, and is made once."""

from __future__ import annotations

import gc
import weakref

import pandas as pd
import pytest
from fake_results import FRANCE, fake_result
from streamlit import dataframe_util

from core import charts, expert_charts, picture
from core.links import View
from core.requests import TraceRequest
from pages.parts import pictures


@pytest.fixture(scope="module")
def result():
    return fake_result(request=TraceRequest(fact=FRANCE, draws=2, experts="all"), dense=(2,), shared=True)


def test_the_browser_gets_the_bytes_that_streamlit_makes_of_the_tables(result):
    view = View(pos=5, layer=1, expert=3, coalition=(0, 3))
    for made in (
        charts.layer_token(result, view=view), charts.layer_expert(result, 5, view=view),
        charts.routing_strip(result, 1, view=view), charts.expert_bars(result, 1, 5, view=view),
    ):  # fmt: skip
        sent = made.for_page()["datasets"]
        assert list(sent) == list(made.tables) and sent
        for name, table in made.tables.items():
            assert sent[name] == dataframe_util.convert_anything_to_arrow_bytes(table)
            pd.testing.assert_frame_equal(dataframe_util.convert_arrow_bytes_to_pandas_df(sent[name]), table)


def test_a_column_of_mixed_types_is_left_to_streamlit():
    table = pd.DataFrame({"mixed": [1, "a", None]})
    sent = picture.Picture({"layer": []}, {"t": picture.packed(table)}, 1).for_page()["datasets"]["t"]
    pd.testing.assert_frame_equal(sent, table)


def test_a_table_is_turned_into_bytes_once_however_often_it_is_drawn(result, monkeypatch):
    made = []
    convert = picture.pa.Table.from_pandas

    class Counting:
        Table = type("Table", (), {"from_pandas": staticmethod(lambda t: made.append(len(t)) or convert(t))})
        ipc, BufferOutputStream = picture.pa.ipc, picture.pa.BufferOutputStream
        ArrowException = picture.pa.ArrowException

    monkeypatch.setattr(picture, "pa", Counting)
    fresh = fake_result(seed=3)
    first = charts.layer_token(fresh, view=View(pos=2, layer=1)).for_page()
    assert len(first["datasets"]) == 1 and made.pop(0) > 0 and made == [0], "the cells, and a place for dots"
    charts.layer_token(fresh, view=View(pos=3, layer=0)).for_page()
    assert len(made) == 1, "another cell is marked in the same table"
    charts.layer_token(fresh, view=View(pos=3, layer=0, expert=1)).for_page()
    assert len(made) == 2, "the dots are a table of their own"


def test_a_picture_is_built_once_for_a_result_and_keeps_neither_longer_than_the_result(monkeypatch):
    monkeypatch.setattr(pictures, "_cache", pictures.Bounded())
    one, built = fake_result(seed=4), []

    def build(result, *, marked):
        built.append(marked)
        return charts.layer_token(result)

    first = pictures.kept(build, one, marked=1)
    assert pictures.kept(build, one, marked=1) is first and pictures.kept(build, one, marked=2) is not first
    other = fake_result(seed=4)
    assert pictures.kept(build, other, marked=1) is not first and built == [1, 2, 1]
    result, picture = weakref.ref(one), weakref.ref(first)
    del one, first
    gc.collect()
    assert result() is None, "the pictures do not hold what they were made of"
    pictures.kept(build, other, marked=2)
    gc.collect()
    assert picture() is None and len(pictures._cache) == 2


@pytest.mark.parametrize(
    ("mark", "picked"),
    [({"layer": 1, "expert": 2}, [{"layer": 1, "expert": 2}]), ({"layer": 0}, []), ({"layer": 0, "expert": None}, [])],
    ids=["an expert", "a dense layer", "a dense layer, said with null"],
)
def test_a_click_on_a_dense_layers_row_chooses_nothing(monkeypatch, mark, picked):
    table = pd.DataFrame({"layer": [1], "expert": [2], "name": "L1E002", "mean_all": 0.1, "mean_active": 0.1,
                          "n_active": 1, "n": 1})  # fmt: skip
    picture = expert_charts.expert_map(table, n_layers=2, moe_layers=[1], n_experts=4)
    drawn = {}
    monkeypatch.setattr(pictures.address, "callback", lambda key, change: change)
    monkeypatch.setattr(pictures.st, "vega_lite_chart", lambda spec, **options: drawn.update(options))
    monkeypatch.setattr(pictures.st, "session_state", {"k": {"selection": {"expert": [mark]}}})
    chosen = []
    pictures.show(picture, key="k", selection="expert", on_pick=chosen.append, alt="")
    drawn["on_select"]()
    assert chosen == picked
