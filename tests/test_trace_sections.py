"""The Trace page's further questions without a browser: sites, windows, spread. Engine and answers are made up."""

from __future__ import annotations

import numpy as np
import pytest
from fake_cells import LIFT
from fake_results import FRANCE, fake_result
from test_trace_page import bench, engine, finished, opened, params_of, shown, widget  # noqa: F401

from core import views
from core.cells.asking import ask
from core.links import View, to_query
from core.requests import TraceRequest

REQUEST = TraceRequest(fact=FRANCE, draws=2)


def values_of(page, chart: int) -> list[dict]:
    """All rows of a chart's largest table of cells."""
    import json

    import pyarrow as pa

    tables = []
    for data in page.get("vega_lite_chart")[chart].proto.datasets:
        tables.append(pa.ipc.open_stream(data.data.data).read_all().to_pandas())
    assert tables, json.loads(page.get("vega_lite_chart")[chart].proto.spec)
    return [table for table in tables if "pos" in table and "value" in table][0].to_dict("records")


def test_another_site_is_asked_for_after_the_trace_and_shown_in_the_map(bench, engine):  # noqa: F811
    page = finished(opened(to_query(REQUEST, View(measure="rescue", pos=5, layer=2), bundled=True)), bench)
    assert engine.derived == []
    before = {(row["layer"], row["pos"]): row["value"] for row in values_of(page, 0)}
    widget(page.segmented_control, "What layer × token patches").set_value("attention").run()
    page = finished(page, bench)
    assert engine.derived == [ask("site_map", REQUEST, site="attention", window=1)]
    after = {(row["layer"], row["pos"]): row["value"] for row in values_of(page, 0)}
    assert after == pytest.approx({key: value + LIFT for key, value in before.items()})
    assert params_of(page)["site"] == "attention"
    words = shown(page)
    assert "the attention sublayer's output there is put back" in words
    cells = views.layer_cells(fake_result(request=REQUEST)).set_index(["layer", "pos"])
    assert f"**attention** of layer 2, at “·is \\(5\\)”: rescue **{cells.rescue[2, 5] + LIFT:+.3f}** logits" in words
    assert f"The whole layer patch here: rescue **{cells.rescue[2, 5]:+.3f}** logits" in words
    widget(page.selectbox, "In a window of").set_value(3).run()
    page = finished(page, bench)
    assert engine.derived[-1] == ask("site_map", REQUEST, site="attention", window=3)
    assert "in a window of 3 layers at once (1 layers below to 1 above)" in shown(page)
    again = finished(opened(params_of(page)), bench)
    assert values_of(again, 0) == values_of(page, 0) and len(engine.derived) == 2


def test_a_dense_layer_can_be_looked_at_where_the_site_is_there(bench, engine):  # noqa: F811
    engine.shape = {"dense": (0, 3)}
    page = finished(opened({"site": "residual", "layer": "3", "pos": "4"}), bench)
    assert not page.warning
    assert "Layer 3 is dense: it has no experts" in shown(page)
    assert "Routing at layer 2" in shown(page)
    page = finished(opened({"layer": "3", "pos": "4"}), bench)
    assert any("it is dense" in warning.value for warning in page.warning)


def test_the_spread_over_draws_can_colour_the_maps(bench, engine):  # noqa: F811
    page = finished(opened(to_query(REQUEST, View(measure="rescue_sd"), bundled=True)), bench)
    cells = views.layer_cells(fake_result(request=REQUEST)).set_index(["layer", "pos"])
    assert {(r["layer"], r["pos"]): r["value"] for r in values_of(page, 0)} == pytest.approx(dict(cells.rescue_sd))
    one = finished(opened({"draws": "1", "show": "rescue_sd"}), bench)
    assert any("one draw has no spread" in caption.value for caption in one.caption)
    assert not any(row["defined"] for row in values_of(one, 0))
    assert np.isfinite([row["value"] for row in values_of(one, 0)]).all()
