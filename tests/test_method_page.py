"""The Method page and the guided tour without a browser; the engine is made of made-up results."""

from __future__ import annotations

from streamlit.testing.v1 import AppTest
from test_trace_page import APP, JAPAN, bench, engine, finished, opened, params_of, shown  # noqa: F401

from core import method, tour
from core.links import View, to_query
from core.requests import TraceRequest


def method_page(params=None):
    page = AppTest.from_file(str(APP), default_timeout=60).switch_page("pages/Method.py")
    for name, value in (params or {}).items():
        page.query_params[name] = value
    return page.run()


def button(page, label):
    (found,) = [button for button in page.button if button.label == label]
    return found


def test_the_method_page_works_out_the_fact_of_its_link(bench, engine):  # noqa: F811
    request = TraceRequest(fact=JAPAN, noise=2.0, draws=2)
    page = finished(method_page(to_query(request, View(), bundled=True)), bench)
    assert engine.asked == [request]
    latex = "\n".join(element.value for element in page.latex)
    for step in method.worked_example(bench.lookup(request)):
        assert step.title.split(" (")[0].replace(",", "") in shown(page).replace("\\", "").replace(",", "")
        assert all(line in latex for line in (*step.formula, *step.worked))
    assert "Japan" in shown(page) and params_of(page) == to_query(request, View(), bundled=True)


def test_the_method_page_has_a_report_and_the_script_of_its_numbers(bench, engine):  # noqa: F811
    page = finished(method_page(), bench)
    result = bench.lookup(engine.asked[0])
    assert [b.proto.label for b in page.get("download_button")] == ["Report"]
    parts = [one.part for one in page.session_state["es_noted"].values()]
    steps = method.worked_example(result)
    assert [part.caption for part in parts[: len(steps)]] == [step.text for step in steps]
    assert [len(part.table) for part in parts[len(steps) :]] == [
        len(table) for table in (method.QUANTITIES, method.INTERVENTIONS, method.STUDY, method.CARE)
    ]
    command, program = [code.value for code in page.code]
    assert command.startswith("python -m core trace ") and "core.trace(model, request)" in program


def test_the_method_page_comes_up_cold_and_says_what_is_wrong_in_its_link(bench, engine):  # noqa: F811
    page = finished(method_page({"noise": "-1", "fact": "<script>"}), bench)
    assert "noise must be" in shown(page).replace("\\", "") and len(page.latex) > 8
    assert "<script>" not in shown(page)


def test_a_first_visitor_is_offered_the_tour_and_it_shows_what_it_says(bench, engine):  # noqa: F811
    page = finished(opened(), bench)
    button(page, "Take the tour").click()
    page = finished(page.run(), bench)
    stops = tour.stops(bench.lookup(TraceRequest(fact=next(iter(engine.asked)).fact)))
    for number, stop in enumerate(stops):
        assert f"{number + 1} of 5" in shown(page)
        chosen = {name: params_of(page).get(name) for name in ("layer", "pos", "expert")}
        wanted = {name: getattr(stop.view, name) for name in ("layer", "pos", "expert")}
        assert chosen == {name: None if value is None else str(value) for name, value in wanted.items()}
        if number < 4:
            page = finished(button(page, "Next step").click().run(), bench)
    page = finished(button(page, "Step back").click().run(), bench)
    assert "4 of 5" in shown(page)
    page = finished(button(page, "End the tour").click().run(), bench)
    assert "of 5" not in shown(page) and not [b for b in page.button if b.label == "Take the tour"]


def test_who_comes_by_link_is_not_offered_it_but_a_link_may_begin_it(bench, engine):  # noqa: F811
    page = finished(opened({"fact": str(JAPAN.case_id)}), bench)
    assert not [b for b in page.button if b.label == "Take the tour"]
    page = finished(opened({"tour": "1"}), bench)
    assert "1 of 5" in shown(page) and "tour" not in params_of(page)
