"""Pictures on a page: what the browser gets is what Streamlit would make of the tables, and is made once."""

from __future__ import annotations

import pandas as pd
import pytest
from fake_results import FRANCE, fake_result
from streamlit import dataframe_util

from core import charts, picture
from core.links import View
from core.requests import TraceRequest


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
    sent = picture.Picture({"layer": []}, {"t": table}, 1).for_page()["datasets"]["t"]
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
    assert len(made) == len(first["datasets"]) == 1
    charts.layer_token(fresh, view=View(pos=3, layer=0)).for_page()
    assert len(made) == 1, "another cell is marked in the same table"
    charts.layer_token(fresh, view=View(pos=3, layer=0, expert=1)).for_page()
    assert len(made) == 2, "the dots are a table of their own"
