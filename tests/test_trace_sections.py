"""The Trace page's further questions without a browser: sites, the sections below a cell, neighbours, the other
corruption. Engine and answers are made up."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from fake_cells import LIFT
from fake_results import FRANCE, fake_result
from test_trace_page import JAPAN, bench, engine, finished, opened, params_of, shown, widget  # noqa: F401

from core import views
from core.agreement import agreement
from core.cells.asking import ask, ask_clean
from core.cells.words import logits
from core.links import View, to_query
from core.requests import TraceRequest
from pages.parts import present
from pages.parts.text import plain

REQUEST = TraceRequest(fact=FRANCE, draws=2)


def values_of(page, chart: int) -> list[dict]:
    """All rows of a chart's largest table of cells."""
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
    assert f"**attention** of layer 2, at “·is \\(5\\)”: rescue **{logits(cells.rescue[2, 5] + LIFT)}** logits" in words
    assert f"The whole layer patch here: rescue **{logits(cells.rescue[2, 5])}** logits" in words
    widget(page.selectbox, "In a window of").set_value(3).run()
    page = finished(page, bench)
    assert engine.derived[-1] == ask("site_map", REQUEST, site="attention", window=3)
    assert "in a window of 3 layers at once (1 layer below to 1 above)" in shown(page)
    assert len(engine.derived) == 2 and params_of(page)["window"] == "3"


def test_a_dense_layer_can_be_looked_at_where_the_site_is_there(bench, engine):  # noqa: F811
    engine.shape = {"dense": (0, 3)}
    page = finished(opened({"site": "residual", "layer": "3", "pos": "4"}), bench)
    assert not page.warning
    assert "Layer 3 is dense: it has no experts" in shown(page)
    assert "Routing at layer 2" in shown(page)


def test_the_spread_over_draws_can_colour_the_maps(bench, engine):  # noqa: F811
    page = finished(opened(to_query(REQUEST, View(measure="rescue_sd"), bundled=True)), bench)
    cells = views.layer_cells(fake_result(request=REQUEST)).set_index(["layer", "pos"])
    assert {(r["layer"], r["pos"]): r["value"] for r in values_of(page, 0)} == pytest.approx(dict(cells.rescue_sd))
    one = finished(opened({"draws": "1", "show": "rescue_sd"}), bench)
    assert any("one draw has no spread" in caption.value for caption in one.caption)
    assert not any(row["defined"] for row in values_of(one, 0))
    assert np.isfinite([row["value"] for row in values_of(one, 0)]).all()


LAYER, POS = 4, 5
AT = View(pos=POS, layer=LAYER)


def table_of(page, column: str):
    return next(table.value for table in page.dataframe if column in table.value)


def section(page, name: str, bench):  # noqa: F811
    """Open a section."""
    widget(page.segmented_control, "More about this cell").set_value(name).run()
    return finished(page, bench)


def active(layer: int = LAYER) -> pd.DataFrame:
    return views.active_experts(fake_result(request=REQUEST), layer, POS)


def test_ticked_experts_are_put_back_together(bench, engine, monkeypatch):  # noqa: F811
    findings = []
    monkeypatch.setattr(present, "say", findings.append)
    page = section(finished(opened(to_query(REQUEST, AT, bundled=True)), bench), "coalition", bench)
    assert engine.derived == [], "nothing is ticked"
    page = finished(next(b for b in page.button if b.label == "All clean-active").click().run(), bench)
    experts = sorted(int(e) for e in active()[active().status != views.CORRUPT_ONLY].expert)
    assert params_of(page)["coalition"] == ",".join(map(str, experts))
    assert engine.derived == [ask("coalition", REQUEST, layer=LAYER, pos=POS, experts=experts)]
    total = active().set_index("expert").rescue[experts].sum()
    whole = views.layer_cells(fake_result(request=REQUEST)).set_index(["layer", "pos"]).rescue[LAYER, POS]
    words = shown(page)
    assert f"**{len(experts)} experts together**: rescue **{total + LIFT:+.3f}** logits" in words
    assert f"of the layer patch ({whole:+.3f})" in words
    assert f"Their single rescues sum to {total:+.3f}: so together they do 1.000 more than that." in words
    assert findings[-1][0].startswith(f"{len(experts)} experts together: rescue {total + LIFT:+.3f} logits")
    assert any(f"experts={experts}" in code.value and "'coalition'" in code.value for code in page.code)
    page = finished(next(b for b in page.button if b.label == "None").click().run(), bench)
    assert "coalition" not in params_of(page) and " together**" not in shown(page)


def test_what_has_to_be_said_of_an_answer_stands_on_the_page(bench, engine):  # noqa: F811
    answered = engine.derive

    def derive(*args, **options):
        found = answered(*args, **options)
        found.provenance["notes"] = ["The corruption is [partial]."]
        return found

    bench._engine = dataclasses.replace(bench._engine, derive=derive)
    page = section(finished(opened(to_query(REQUEST, AT, bundled=True)), bench), "controls", bench)
    assert [c.value for c in page.caption].count(f"Note: {plain('The corruption is [partial].')}") == 1


def test_a_coalition_comes_by_link_and_goes_with_its_cell(bench, engine):  # noqa: F811
    one = int(active().expert[0])
    view = dataclasses.replace(AT, section="coalition", coalition=(one,))
    page = finished(opened(to_query(REQUEST, view, bundled=True)), bench)
    assert f"**1 expert together**: rescue **{active().rescue[0] + LIFT:+.3f}**" in shown(page)
    page = finished(widget(page.selectbox, "Layer").set_value(2).run(), bench)
    assert "coalition" not in params_of(page) and params_of(page)["section"] == "coalition"


def test_the_minimal_set_can_be_ticked(bench, engine):  # noqa: F811
    page = section(finished(opened(to_query(REQUEST, AT, bundled=True)), bench), "minimal", bench)
    assert engine.derived == [ask("minimal_set", REQUEST, layer=LAYER, pos=POS, target=0.8)]
    assert "A note" in shown(page)
    curve = table_of(page, "random_restoration")
    page = finished(next(b for b in page.button if b.label == "Tick these experts").click().run(), bench)
    found = params_of(page)
    assert found["section"] == "coalition" and found["coalition"] == ",".join(map(str, sorted(curve.expert)))


def test_what_a_minimal_set_is_made_of_can_be_chosen(bench, engine):  # noqa: F811
    view = dataclasses.replace(AT, section="minimal", target=0.5)
    page = finished(opened(to_query(REQUEST, view, bundled=True)), bench)
    page = finished(widget(page.segmented_control, "Experts of").set_value("model").run(), bench)
    assert engine.derived[-1] == ask("minimal_set", REQUEST, layer=None, pos=None, target=0.5)
    assert params_of(page)["scope"] == "model" and params_of(page)["target"] == "0.5"


def test_necessity_stands_beside_sufficiency(bench, engine):  # noqa: F811
    page = finished(opened(to_query(REQUEST, AT, bundled=True)), bench)
    assert engine.derived == [] and len(page.get("vega_lite_chart")) == 4
    page = section(page, "necessity", bench)
    assert params_of(page)["section"] == "necessity"
    assert engine.derived == [ask_clean("cell_knockouts", REQUEST, layer=LAYER, pos=POS)]
    clean = active()[active().status != views.CORRUPT_ONLY].set_index("name")
    needed = table_of(page, "zero").set_index("name")
    for name in clean.index:
        assert needed.rescue[name] == pytest.approx(clean.rescue[name])
        assert needed.direct[name] == pytest.approx(clean.direct[name])
    order = clean.sort_values("expert").index
    assert list(needed.zero[order]) == [1.0, 2.0] and list(needed.reroute_all[order]) == [1.0, 2.0]
    assert f"Most needed: **{order[-1]}**, without it the clean contrast of +6.000 loses 2.000" in shown(page)
    assert f"Most sufficient: **{clean.rescue.idxmax()}**" in shown(page)


def test_controls_are_of_the_marked_expert_or_of_the_best(bench, engine):  # noqa: F811
    page = section(finished(opened(to_query(REQUEST, AT, bundled=True)), bench), "controls", bench)
    clean = active()[active().status != views.CORRUPT_ONLY]
    best, other = (int(e) for e in clean.expert)
    assert engine.derived == [ask("cell_controls", REQUEST, layer=LAYER, pos=POS, expert=best)]
    assert any("No expert is marked" in caption.value for caption in page.caption)
    values = clean.set_index("expert").rescue
    assert f"Specificity for this fact: **{logits(values[best] - values[other])}**" in shown(page)
    view = dataclasses.replace(AT, expert=other, section="controls")
    page = finished(opened(to_query(REQUEST, view, bundled=True)), bench)
    assert engine.derived[-1] == ask("cell_controls", REQUEST, layer=LAYER, pos=POS, expert=other)
    assert f"Specificity for this fact: **{logits(values[other] - values[best])}**" in shown(page)


def test_one_draw_has_no_spread_and_more_can_be_taken(bench, engine):  # noqa: F811
    one = REQUEST.replace(draws=1)
    view = dataclasses.replace(AT, section="draws")
    page = finished(opened(to_query(one, view, bundled=True)), bench)
    page = finished(next(b for b in page.button if b.label == "Take 10 draws").click().run(), bench)
    assert engine.asked[-1] == REQUEST.replace(draws=10)
    assert params_of(page)["section"] == "draws" and params_of(page)["layer"] == str(LAYER)
    assert any("Rescue in each of 10 draws" in markdown.value for markdown in page.markdown)
    assert widget(page.number_input, "Draws").value == 10


def test_the_next_fact_of_the_relation_keeps_layer_and_expert(bench, engine):  # noqa: F811
    view = View("rescue", pos=5, layer=2, expert=int(active(2).expert[0]), site="residual", section="draws")
    page = finished(opened(to_query(REQUEST, view, bundled=True)), bench)
    assert "Fact 1 of 2: capital" in shown(page)
    (next_,) = [button for button in page.button if button.label == "Next"]
    assert next_.proto.shortcut == "n"
    page = finished(next_.click().run(), bench)
    assert engine.asked[-1] == REQUEST.replace(fact=JAPAN)
    expected = dataclasses.replace(view, pos=None)
    assert params_of(page) == to_query(REQUEST.replace(fact=JAPAN), expected, bundled=True)
    assert widget(page.selectbox, "Fact").value == JAPAN.case_id, "the sidebar names the fact that is on the page"
    (previous,) = [button for button in page.button if button.label == "Previous"]
    page = finished(previous.click().run(), bench)
    assert params_of(page) == to_query(REQUEST, expected, bundled=True)


def test_the_other_corruption_is_asked_for_by_a_click_and_a_disagreement_is_a_warning(bench, engine):  # noqa: F811
    page = finished(opened(to_query(REQUEST, View(), bundled=True)), bench)
    page = finished(next(b for b in page.button if b.label == "Check with another subject").click().run(), bench)
    other = REQUEST.replace(corruption="replace", draws=1)
    assert engine.asked == [REQUEST, other] and params_of(page)["check"] == "1"
    found = agreement(fake_result(request=REQUEST), fake_result(request=other))
    assert found is not None and found.agrees
    assert any(plain(found.sentence) in caption.value for caption in page.caption)
    engine.asked.clear()
    page = finished(opened({"draws": "2"}), bench)
    assert not engine.asked and any(plain(found.sentence) in caption.value for caption in page.caption)
    engine.shape = {"seed": 5, "subject": [1, 2]}
    stored = REQUEST.replace(seed=1, corruption="replace")
    engine.stored[stored] = elsewhere(stored)
    page = finished(opened({"draws": "2", "seed": "1"}), bench)
    assert any("Noise and another subject disagree" in warning.value for warning in page.warning)


def elsewhere(request: TraceRequest):
    """A result whose best cell is where the made-up ones restore nothing."""
    result = fake_result(request=request, seed=5, subject=[1, 2])
    frame = result.frame.copy()
    lifted = (frame.kind == "layer") & (frame.layer == 3) & (frame.pos == 3)
    frame.loc[frame.kind == "layer", "rescue"] = 0.0
    frame.loc[lifted, "rescue"] = 4.0
    return dataclasses.replace(result, frame=frame)
