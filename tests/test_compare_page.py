"""The Compare page without a browser: two questions, what the sidebar changes, what cannot be compared. Made-up results
stand for the engine's."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import threading
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import pytest
import test_trace_page
from fake_cells import fake_answer
from fake_results import FRANCE, fake_result
from streamlit.testing.v1 import AppTest
from test_trace_page import JAPAN, bench, engine, finished, params_of, shown  # noqa: F401 - the fixtures

from core import views
from core.browsing import Browsing
from core.cells.asking import ask
from core.compare import words
from core.compare.link import Pair, from_query, to_query
from core.compare.tables import Compared
from core.errors import ModelError
from core.links import Link, View
from core.links import to_query as trace_query
from core.requests import ModelSpec, TraceRequest
from pages.parts import display

ROOT = Path(__file__).resolve().parent.parent
BASE = TraceRequest(fact=FRANCE)


@pytest.fixture(autouse=True)
def small(engine):  # noqa: F811
    engine.shape |= {"n_layers": 3, "n_experts": 4}


def pair_of(a=BASE, b=BASE, **more) -> Pair:
    return Pair(Link(a, View(), True), Link(b, View(), True), **more)


def opened(pair: Pair | dict[str, str] | None = None):
    page = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60).switch_page("pages/Compare.py")
    params = pair if isinstance(pair, dict) else to_query(pair) if pair else {}
    for name, value in params.items():
        page.query_params[name] = value
    return page.run()


def compared_of(bench, pair: Pair) -> Compared:  # noqa: F811
    return Compared(bench.lookup(pair.a.request), bench.lookup(pair.b.request), pair.same_model)


def charts(page) -> list[str]:
    return [chart.proto.spec for chart in page.get("vega_lite_chart")]


def button(page, label):
    return next(b for b in page.button if b.label == label)


def read(page) -> Pair:
    return from_query(params_of(page), bundled={17: FRANCE, 18: JAPAN}.get, default=FRANCE)


def test_two_noise_levels_stand_side_by_side_with_links_scripts_and_report(bench, engine):  # noqa: F811
    pair = pair_of(b=BASE.replace(noise=1.0, draws=2))
    page = finished(opened(pair), bench)
    assert engine.asked == [pair.a.request, pair.b.request]
    assert params_of(page) == to_query(pair)
    compared = compared_of(bench, pair)
    text = html.unescape(shown(page))
    for sentence in words.sentences(compared):
        assert sentence in text
    for row in words.numbers(compared)[1]:
        assert all(value in text for value in row)
    assert len(charts(page)) == 8
    last = compared.cells[compared.cells.pos_a == views.last_pos(compared.a)]
    row = last.loc[last.rescue_a.idxmax()]
    assert re.search(f"Layer patch at layer {row.layer}: a at “.*is.*5.*” rescue", text)
    assert f"b − a rescue {row.rescue_difference:+.3f}".replace("-", "−") in text
    links = [dict(parse_qsl(e.proto.query_string)) for e in page.get("page_link") if "Open on" in e.proto.label]
    assert links == [trace_query(link.request, link.view, bundled=True) for link in (pair.a, pair.b)]
    codes = [code.value for code in page.code]
    assert any(urlencode(to_query(pair)) in code and code.startswith("python -m core compare") for code in codes)
    assert any("noise=1.0" in code and "import core" in code for code in codes)
    noted = [one.part for one in page.session_state["es_noted"].values()]
    assert len(noted) == 8 and all(part.picture is not None and part.table is not None for part in noted)


def test_the_sidebar_changes_one_side_and_the_address_says_so(bench, engine):  # noqa: F811
    page = finished(opened(pair_of()), bench)
    assert any("Both sides ask the same question" in info.value for info in page.info)
    assert engine.asked == [BASE], "the same question is asked once"
    next(n for n in page.number_input if n.label == "Noise level").set_value(1.5).run()
    page = finished(page, bench)
    assert engine.asked == [BASE, BASE.replace(noise=1.5)]
    assert params_of(page)["b.noise"] == "1.5"
    next(c for c in page.segmented_control if c.label == "Settings of").set_value("a").run()
    next(n for n in page.number_input if n.label == "Seed").set_value(7).run()
    page = finished(page, bench)
    assert read(page).a.request == BASE.replace(seed=7) and read(page).b.request == BASE.replace(noise=1.5)
    assert params_of(page)["edit"] == "a"
    button(page, "Swap").click().run()
    page = finished(page, bench)
    assert read(page).a.request == BASE.replace(noise=1.5) and read(page).b.request == BASE.replace(seed=7)
    assert len(engine.asked) == 3, "swapping asks nothing new"
    fields = {field.label: field.value for field in page.number_input}
    assert (fields["Noise level"], fields["Seed"]) == (1.5, 0), "the sidebar says what side a asks now"


def test_each_side_leafs_through_facts_of_its_own_and_the_address_says_so(bench, engine):  # noqa: F811
    page = finished(opened(pair_of(b=BASE.replace(noise=1.0))), bench)
    next(t for t in page.text_input if t.label == "Search").set_value("Japan").run()
    assert read(page).b.browsing == Browsing(words="Japan") and read(page).a.browsing == Browsing()
    next(c for c in page.segmented_control if c.label == "Settings of").set_value("a").run()
    assert next(t for t in page.text_input if t.label == "Search").value == ""
    next(c for c in page.segmented_control if c.label == "Where the fact comes from").set_value("typed").run()
    assert read(page).a.browsing == Browsing(source="typed") and read(page).b.browsing == Browsing(words="Japan")
    page = finished(opened(params_of(page)), bench)
    assert any(field.label == "Prompt" for field in page.text_input), "the link opens what was open"
    assert len(engine.asked) == 2
    (script,) = (code.value for code in page.code if code.value.startswith("python -m core compare"))
    assert "choose" not in script, "a script need not know what was leafed through"


def test_one_job_can_be_waited_for_on_both_sides(bench, engine):  # noqa: F811
    engine.gate = threading.Event()
    page = opened(pair_of())
    assert not page.exception
    assert len([b for b in page.button if b.label == "Cancel"]) == 2 and len(bench.jobs.all()) == 1
    engine.gate.set()
    assert len(charts(finished(page, bench))) == 8


def test_another_fact_lets_go_of_the_chosen_cell(bench, engine):  # noqa: F811
    view = View(pos=5, layer=2)
    page = finished(opened(to_query(Pair(Link(BASE, view, True), Link(BASE, view, True)))), bench)
    assert "Layer patch at layer 2" in shown(page)
    box = next(b for b in page.selectbox if b.label == "Fact")
    box.select(18).run()
    page = finished(page, bench)
    assert engine.asked[-1].fact == JAPAN
    back = read(page)
    assert (back.a.request.fact, back.b.request.fact) == (FRANCE, JAPAN)
    assert (back.a.view.pos, back.b.view.pos) == (None, None)


def test_the_trace_page_leads_here_with_its_question_twice(bench, engine):  # noqa: F811
    page = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
    for name, value in trace_query(BASE.replace(noise=2.5), View(pos=5, layer=2, expert=1), bundled=True).items():
        page.query_params[name] = value
    page = finished(page.run(), bench)
    (found,) = [e.proto.query_string for e in page.get("page_link") if e.proto.label.startswith("Compare with")]
    pair = from_query(dict(parse_qsl(found)), bundled={17: FRANCE}.get, default=FRANCE)
    assert pair.a.request == pair.b.request == BASE.replace(noise=2.5)
    assert (pair.a.view.layer, pair.a.view.pos) == (2, 5) and not pair.problems


def test_the_maps_are_those_of_another_site_on_both_sides_or_on_one(bench, engine):  # noqa: F811
    requests = [BASE, BASE.replace(noise=1.0)]
    page = finished(opened(pair_of(b=requests[1])), bench)
    plain = compared_of(bench, pair_of(b=requests[1]))
    next(c for c in page.segmented_control if c.label.startswith("What layer")).set_value("attention").run()
    page = finished(finished(page, bench), bench)
    asked = [ask("site_map", request, site="attention", window=1) for request in requests]
    assert engine.derived == asked
    assert params_of(page)["a.site"] == "attention" and "b.site" not in params_of(page)
    text = html.unescape(shown(page))
    assert "Patching attention: " in text and "Patch of attention at layer" in text
    found = Compared(plain.a, plain.b, False, *(fake_answer(one, **engine.shape) for one in asked))
    for sentence in words.sentences(found):
        assert sentence in text
    table = page.session_state["es_noted"]["compare-difference"].part.table
    assert list(table.rescue_difference) == pytest.approx(list(found.cells.rescue_difference))
    assert len(charts(page)) == 8
    next(b for b in page.selectbox if b.label == "Layer × token patches").select("moe").run()
    page = finished(page, bench)
    assert (params_of(page)["a.site"], params_of(page)["b.site"]) == ("attention", "moe")
    assert "layer × token map attention → MoE output" in shown(page) and len(engine.derived) == 2
    assert any("b.site=moe" in code.value and code.value.startswith("python -m core") for code in page.code)
    next(b for b in page.sidebar.selectbox if b.label == "In a window of").select(2).run()
    page = finished(finished(page, bench), bench)
    params = params_of(page)
    assert [params.get(f"{side}.window", "1") for side in "ab"] == ["1", "2"] and params["a.site"] == "attention"
    assert engine.derived[2:] == [ask("site_map", requests[1], site="moe", window=2)]


def test_a_window_of_more_layers_than_there_are_is_the_whole_model(bench, engine):  # noqa: F811
    pair = pair_of(b=BASE.replace(noise=1.0)).showing("a", window=99)
    page = finished(finished(opened(pair), bench), bench)
    assert engine.derived == [ask("site_map", BASE, site="moe", window=3)], "the made-up model has three layers"
    text = shown(page)
    assert "a: a window of 99 layers is more than the model has; 3 are used." in text
    assert "MoE output, 3 layers at once → MoE output" in text


def test_while_a_map_is_computed_the_rest_is_there(bench, engine):  # noqa: F811
    pair = pair_of(b=BASE.replace(noise=1.0)).showing(site="residual")
    finished(opened(pair_of(b=BASE.replace(noise=1.0))), bench)
    engine.gate = threading.Event()
    page = opened(pair)
    assert not page.exception
    text = shown(page)
    assert "From a to b: corruption noise 3 → noise 1." in text and "restores most" not in text
    assert len(charts(page)) == 5, "experts and routing, but no layer × token map"
    engine.gate.set()
    page = finished(finished(page, bench), bench)
    assert "Patching residual: " in shown(page) and len(charts(page)) == 8


def test_two_models_say_why_and_can_be_declared_versions(bench, engine, monkeypatch):  # noqa: F811
    def answered(*, request, **shape):
        found = fake_result(request=request, **shape)
        marks = dataclasses.replace(found.provenance, fingerprint=request.model.name)
        return dataclasses.replace(found, provenance=marks)

    monkeypatch.setattr(test_trace_page, "fake_result", answered)
    other = ModelSpec("org/other")
    pair = pair_of(b=BASE.replace(model=other))
    page = opened(pair)
    for job in bench.jobs.all():
        assert job.wait(10)
    assert engine.asked == [BASE], "another model is not loaded without a click"
    button(page.run(), "Load the model and trace").click().run()
    page = finished(page, bench)
    assert engine.loaded == ["demo", "org/other"]
    text = shown(page)
    assert "two different models do not correspond" in text
    assert len(charts(page)) == 3
    next(t for t in page.toggle if t.label.startswith("Two versions")).set_value(True).run()
    page = finished(page, bench)
    assert params_of(page)["same_model"] == "1"
    assert len(charts(page)) == 8


def test_a_side_that_fails_says_what_to_do_and_leaves_the_other_there(bench, engine):  # noqa: F811
    good = BASE.replace(noise=2.0, draws=2)
    damaged = BASE.replace(model=ModelSpec("org/damaged", revision="v2"))
    finished(opened(pair_of(good, good)), bench)
    engine.error = ModelError("The weights cannot be read.", "Copy the model again.")
    page = opened(pair_of(damaged, good))
    assert "org/damaged (v2) has not been asked this yet." in re.sub(r"\\(.)", r"\1", shown(page))
    button(page, "Load the model and trace").click().run()
    page = finished(page, bench)
    text = html.unescape(shown(page))
    assert "The weights cannot be read" in text and "Copy the model again" in text
    result = bench.lookup(good)
    for sentence in words.alone("b", result, result):
        assert sentence in text
    assert "**org/damaged** · **revision v2**" in re.sub(r"\\(.)", r"\1", text)
    assert "**noise 3**" in text and "**noise 2** · **draws 2**" in text
    cells = views.layer_cells(result)
    (noted,) = [one.part for one in page.session_state["es_noted"].values()]
    assert list(noted.table.rescue) == list(cells.rescue) and len(charts(page)) == 1
    last = cells[cells.pos == views.last_pos(result)]
    row = last.loc[last.rescue.idxmax()]
    assert f"Layer patch at layer {row.layer}: b at “" in text and "b − a" not in text
    assert f"rescue **{row.rescue:+.3f}**".replace("-", "−") in text
    scripts = [code.value for code in page.code if not code.value.startswith("http")]
    assert scripts[0].startswith("python -m core trace") and not any("damaged" in script for script in scripts)


def test_layers_that_do_not_correspond_are_not_subtracted(bench, engine, monkeypatch):  # noqa: F811
    made = {"demo": {"n_layers": 3}, "org/deep": {"n_layers": 5}}
    monkeypatch.setattr(
        test_trace_page, "fake_result", lambda *, request, **_: fake_result(request=request, **made[request.model.name])
    )
    view = View(pos=5, layer=1)
    links = [Link(BASE.replace(model=ModelSpec(name)), view, True) for name in made]
    page = opened(Pair(*links))
    button(page, "Load the model and trace").click().run()
    page = finished(page, bench)
    text = shown(page)
    assert "One model has 3 layers" in re.sub(r"\\(.)", r"\1", text)
    assert re.search("Layer patch at layer 1: a at .*; b at .*restoration", text) and "b − a rescue" not in text


def test_where_restoration_is_missing_the_page_says_so_and_what_there_is(bench, engine, monkeypatch):  # noqa: F811
    monkeypatch.setattr(
        test_trace_page, "fake_result",
        lambda *, request, **more: fake_result(request=request, **more, drop=5.0 if request.noise > 1 else 0.01),
    )  # fmt: skip
    page = finished(opened(pair_of(b=BASE.replace(noise=1.0))), bench)
    captions = [caption.value for caption in page.caption if "restoration is missing" in caption.value]
    assert len(captions) == 2 and all(" b: the drop is below 0.05 logits" in caption for caption in captions)
    assert re.search(r"b − a rescue [+−]\d\.\d{3}\.", shown(page)), "no difference of what is missing"
    next(c for c in page.segmented_control if c.label == "What the colours show").set_value("rescue").run()
    assert not any("restoration is missing" in caption.value for caption in finished(page, bench).caption)


def test_a_wrong_link_is_answered_with_sentences(bench, engine):  # noqa: F811
    page = finished(opened({"a.fact": "17", "b.noise": "-3", "a.pos": "999", "a.layer": "77"}), bench)
    assert any("noise" in w.value for w in page.warning)
    assert len(charts(page)) == 8, "what is not there is not chosen"


def test_large_type_is_one_switch_for_all_pages_and_in_the_link(bench, engine):  # noqa: F811
    page = finished(opened(pair_of(b=BASE.replace(noise=1.0))), bench)
    before = [json.loads(spec)["config"]["axis"]["labelFontSize"] for spec in charts(page)]
    switch = next(t for t in page.toggle if t.label == "Large type")
    page = finished(switch.set_value(True).run(), bench)
    after = [json.loads(spec)["config"]["axis"]["labelFontSize"] for spec in charts(page)]
    assert after == pytest.approx([display.FACTOR * size for size in before])
    assert params_of(page)["type"] == "large"
    assert f"font-size: {16 * display.FACTOR:g}px" in shown(page)
    page = finished(page.switch_page(str(ROOT / "app.py")).run(), bench)
    assert params_of(page)["type"] == "large", "it stays on from page to page"
    page = finished(next(t for t in page.toggle if t.label == "Large type").set_value(False).run(), bench)
    assert "type" not in params_of(page) and "font-size: 20.8px" not in shown(page)
    other = finished(opened(to_query(pair_of()) | {"type": "large"}), bench)
    assert next(t for t in other.toggle if t.label == "Large type").value is True
