"""The Trace page without a browser: links, messages, jobs, escaping. The engine is made of made-up results."""

from __future__ import annotations

import dataclasses
import re
import threading
import time
from pathlib import Path
from urllib.parse import parse_qsl

import pytest
from fake_cells import fake_answer
from fake_results import FRANCE, fake_result
from page_on_model import params_of
from streamlit.testing.v1 import AppTest
from transformers import AutoTokenizer

from core import expert_link, views
from core.derived import DerivedRequest
from core.errors import InputError, ModelError
from core.jobs import JobRegistry
from core.links import View, to_query
from core.prompts import prepare
from core.requests import Fact, TraceRequest
from core.workbench import Engine, StoreStatus, Workbench
from pages.parts import base, pictures
from pages.parts.text import error, probability

WAIT = 10.0
APP = Path(__file__).resolve().parent.parent / "app.py"


class FakeEngine:
    """Answers with made-up results and keeps what it was asked. `error`: raised instead; `gate`: waited for."""

    def __init__(self, **shape) -> None:
        self.shape = shape
        self.asked: list[TraceRequest] = []
        self.derived: list[DerivedRequest] = []
        self.loaded: list[str] = []
        self.stored: dict[TraceRequest, object] = {}
        self.error: Exception | None = None
        self.gate: threading.Event | None = None
        self.begun = threading.Event()

    def load_model(self, name, **options):
        self.loaded.append(name)
        return object()

    def trace_many(self, model, requests, *, store, progress):
        self.asked += requests
        self.begun.set()
        self._wait(progress)
        if self.error is not None:
            raise self.error
        return [fake_result(request=request, **self.shape) for request in requests]

    def _wait(self, progress):
        while self.gate is not None and not self.gate.wait(0.01):
            progress.update(1, 4, "patching layers")
            progress.check()

    def from_store(self, store, request):
        return self.stored.get(request)

    def derive(self, model, request, *, store, progress):
        self.derived.append(request)
        self._wait(progress)
        return fake_answer(request, **self.shape)

    def derived_from_store(self, store, request):
        return self.stored.get(request)


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def bench(engine, monkeypatch):
    jobs = JobRegistry()
    functions = [getattr(engine, f.name) for f in dataclasses.fields(Engine)]
    made = Workbench(object(), engine=Engine(*functions), jobs=jobs)
    monkeypatch.setattr(made, "store_status", lambda: StoreStatus(limit=10**9))
    monkeypatch.setattr(made, "warm_up", lambda: None)
    monkeypatch.setattr(base, "workbench", lambda: made)
    monkeypatch.setattr(base, "bundled", lambda: {FRANCE.case_id: FRANCE, JAPAN.case_id: JAPAN})
    monkeypatch.setattr(pictures, "_cache", type(pictures._cache)())
    yield made
    if engine.gate:
        engine.gate.set()
    assert jobs.close(WAIT)


JAPAN = Fact(prompt="The capital of {} is", subject="Japan", true="Tokyo", foil="Seoul", case_id=18, relation="capital")


def opened(params=None, run=True):
    page = AppTest.from_file(str(APP), default_timeout=60)
    for name, value in (params or {}).items():
        page.query_params[name] = value
    return page.run() if run else page


def shown(page) -> str:
    """All text on the page, one string."""
    parts = [e.value for kind in ("markdown", "caption", "warning", "error", "info") for e in getattr(page, kind)]
    parts += [element.proto.body for element in page.get("html")]
    return "\n".join(str(part) for part in parts)


def finished(page, bench):
    """The page after every job has ended, those too that begin when the first ones are done."""
    deadline = time.monotonic() + WAIT
    while True:
        for job in bench.jobs.all():
            assert job.wait(WAIT)
        page.run()
        assert not page.exception
        if not page.get("progress"):
            return page
        assert time.monotonic() < deadline, shown(page)


def test_the_first_visit_traces_the_default_fact(bench, engine):
    page = finished(opened(), bench)
    assert engine.asked == [TraceRequest(fact=FRANCE)]
    assert engine.loaded == ["demo"]
    values = {metric.label: metric.value for metric in page.metric}
    contrasts = {"clean contrast": "+6.000", "corrupt contrast": "+1.000", "drop": "+5.000"}
    assert values == {**contrasts, "P(true)": "0.910 → 0.040"}
    assert len(page.get("vega_lite_chart")) == 4
    assert "no evidence about" in shown(page)
    assert params_of(page) == to_query(TraceRequest(fact=FRANCE), View(), bundled=True)
    downloads = {name: noted.part.table for name, noted in page.session_state["es_noted"].items()}
    assert {"layer-token", "layer-expert", "cell-experts", "routing", "trace"} <= set(downloads)
    tops = downloads["next-tokens"]
    assert set(tops.run) == {"clean", "corrupt"} and {"rank", "token_id", "token", "probability"} <= set(tops)


@pytest.mark.parametrize(("floor", "on_the_maps"), [(0.117, 2), (3.5e-06, 0)])
def test_the_noise_floor_stands_beside_the_figures(bench, engine, floor, on_the_maps):
    engine.shape["noise_floor"] = floor
    page = finished(opened(), bench)
    text, least = shown(page), f"{floor:.2g}".replace("-", "−")
    most = f"{2 * floor:.2g}".replace("-", "−")
    assert f">{least} logits<" in text and f"at most {most} seen" in text
    assert text.count(f"Rescues below {least} logits are within rounding (float32).") == on_the_maps
    assert "maps say nothing" not in text
    engine.shape |= {"drop": floor / 2}
    page = finished(opened({"noise": "2"}), bench)
    assert "within rounding of this model and dtype" in shown(page)


def test_a_corruption_that_helps_is_no_rounding(bench, engine):
    engine.shape |= {"drop": -2.0, "noise_floor": 0.1}
    words = re.sub(r"\\(.)", r"\1", shown(finished(opened(), bench)))
    assert "takes nothing away" in words and "drop −2.000 is below 0.5" in words
    assert "within rounding of this model" not in words


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"foil": None}, "below a typed fact's objects"),
        ({"true": "Quetzalcoatlus"}, "“First token of a longer object” under Tokens"),
        ({"prompt": "France, oh France is"}, "(occurrence 1 to 2)"),
    ],
)
def test_a_message_on_a_page_names_no_option_of_the_command_line(changes, place):
    tokenizer = AutoTokenizer.from_pretrained(APP.parent / "demo" / "model")
    with pytest.raises(InputError) as caught:
        prepare(tokenizer, dataclasses.replace(FRANCE, **changes))
    assert "--" in str(caught.value)
    said = re.sub(r"\\(.)", r"\1", error(caught.value))
    assert place in said and "--" not in said


@pytest.mark.parametrize(("p", "said"), [(0.0, "0.000"), (1e-5, "<0.001"), (0.0016, "0.002"), (0.5, "0.500"),
                                         (0.9999, ">0.999"), (1.0, "1.000")])  # fmt: skip
def test_a_probability_beside_0_or_1_is_not_said_to_be_it(p, said):
    assert probability(p) == said


def test_quantisation_is_a_model_option(bench, engine):
    page = finished(opened(), bench)
    (box,) = [box for box in page.selectbox if box.label == "quantisation"]
    assert (box.value, box.options) == ("none", ["none", "int8"])
    page = finished(box.select("int8").run(), bench)
    assert engine.asked[-1].model.quantisation == "int8"
    assert params_of(page)["quantisation"] == "int8"
    assert any("int8" in expander.label for expander in page.expander)


def test_a_link_brings_back_everything(bench, engine):
    request = TraceRequest(fact=JAPAN, noise=2.5, draws=3, seed=9, special_tokens="off", object_tokens="paper")
    result = fake_result(request=request)
    table = views.active_experts(result, 4, 5)
    view = View(measure="rescue", pos=5, layer=4, expert=int(table.expert[0]))
    params = to_query(request, view, bundled=True)
    page = finished(opened(params), bench)
    assert engine.asked == [request]
    assert params_of(page) == params
    text = shown(page)
    assert "Experts of layer 4" in text
    assert f"rescue **{table.rescue[0]:+.3f}** logits" in text
    assert table.name[0] in text
    rows = page.dataframe[0].value
    assert list(rows.rescue) == pytest.approx(list(table.rescue))
    assert list(rows.share) == pytest.approx(list(table.share))
    assert (
        page.segmented_control(key=next(c.key for c in page.segmented_control if "measure" in c.key)).value == "rescue"
    )
    specs = [chart.proto.spec for chart in page.get("vega_lite_chart")]
    assert re.search(r'"value": ?\[\{"layer": ?4, ?"pos": ?5\}\]', specs[0])
    assert re.search(r'"value": ?\[\{"layer": ?4, ?"expert": ?' + str(table.expert[0]) + r"\}\]", specs[1])
    (on_its_page,) = [p.proto for p in page.get("page_link") if p.proto.label == f"Open {table.name[0]} on its page"]
    dossier = expert_link.from_query(dict(parse_qsl(on_its_page.query_string)))
    assert dossier.name == table.name[0] and dossier.trace(JAPAN) == request


def test_experts_of_another_position_are_asked_for_when_needed(bench, engine):
    page = finished(opened(to_query(TraceRequest(fact=FRANCE), View(pos=4, layer=1), bundled=True)), bench)
    finished(page, bench)
    assert engine.asked == [TraceRequest(fact=FRANCE), TraceRequest(fact=FRANCE, experts=(4,))]
    whole = fake_result(request=TraceRequest(fact=FRANCE, experts=(4,)))
    assert list(page.dataframe[0].value["name"]) == list(views.active_experts(whole, 1, 4)["name"])


def test_what_is_stored_appears_at_once_and_says_so(bench, engine):
    request = TraceRequest(fact=FRANCE)
    engine.stored[request] = fake_result(request=request)
    page = opened()
    assert not page.exception
    assert engine.asked == []
    assert len(page.metric) == 4
    assert "from the store" in shown(page)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"fact": "999999"}, "no bundled fact"),
        ({"fact": "<script>"}, "whole number"),
        ({"noise": "-1"}, "above 0"),
        ({"noise": "1e-9"}, None),
        ({"draws": "100000"}, "1 to 1000"),
        ({"seed": str(2**60)}, None),
        ({"show": "x", "dtype": "y", "device": "z"}, "one of"),
        ({"pos": "99"}, "no position 99"),
        ({"pos": "5", "layer": "77"}, "Layer 77"),
        ({"pos": "5", "layer": "2", "expert": "500"}, "no expert 500"),
        ({"expert": "shared", "layer": "2", "pos": "5"}, "no shared expert"),
        ({"strip": "abc"}, "whole number"),
        ({"prompt": "x"}, "no subject and no true"),
        ({"nonsense": "1", "": "2"}, None),
    ],
)
def test_whatever_a_link_says_there_is_a_message_and_never_a_traceback(bench, engine, params, words):
    page = finished(opened(params), bench)
    assert len(page.metric) == 4
    if words:
        assert any(words in re.sub(r"\\(.)", r"\1", warning.value) for warning in page.warning)
    else:
        assert not page.warning


EVIL = Fact(
    prompt="<img src=x onerror=alert(1)> {} [a](javascript:b) is", subject="<b>$x$</b>", true="*Paris*", foil="`x`"
)


def test_what_a_person_typed_is_shown_and_never_becomes_markup(bench, engine):
    engine.shape = {"tokens": ["<img", " src=x", "<b>", "$x$", "</b>", "</script>"], "subject": [2, 3, 4]}
    page = finished(opened(to_query(TraceRequest(fact=EVIL), View(), bundled=False)), bench)
    text = shown(page)
    assert "<img" not in text
    assert "<b>$" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert 'title="subject">&lt;b&gt;$x$&lt;/b&gt;</mark>' in text


def test_a_persons_mistake_is_shown_in_words_and_not_tried_again_by_itself(bench, engine):
    engine.error = InputError("The subject is not in the prompt.", "Write it in.", field="subject")
    page = finished(opened(), bench)
    page.run()
    assert any("The subject is not in the prompt" in re.sub(r"\\(.)", r"\1", e.value) for e in page.error)
    assert len(engine.asked) == 1
    assert not [button for button in page.button if button.label == "Try again"], "it would end in the same way"


def test_what_may_go_better_the_next_time_can_be_tried_again(bench, engine):
    engine.error = ModelError("There is no network.", "Connect to one.")
    page = finished(opened(), bench)
    engine.error = None
    next(button for button in page.button if button.label == "Try again").click().run()
    finished(page, bench)
    assert len(engine.asked) == 2
    assert len(page.metric) == 4


def test_a_defect_of_ours_is_a_sentence_too(bench, engine):
    engine.error = KeyError("internal detail")
    page = finished(opened(), bench)
    assert any("Something went wrong inside ExpertScope" in re.sub(r"\\(.)", r"\1", e.value) for e in page.error)
    assert "internal detail" not in shown(page)


def test_a_fact_that_fails_the_papers_filter_is_marked(bench, engine):
    engine.shape = {"clean": 0.6, "drop": 0.3}
    page = finished(opened(), bench)
    words = " ".join(warning.value for warning in page.warning)
    assert "clean contrast +0.600 is below 1 and drop +0.300 is below 0.5" in words


def test_no_drop_means_missing_restorations(bench, engine):
    engine.shape = {"drop": 0.01}
    page = finished(opened(), bench)
    assert any("restoration is undefined" in warning.value for warning in page.warning)
    assert any("Grey: missing" in caption.value for caption in page.caption)
    assert page.dataframe[0].value.restoration.isna().all()
    assert "restoration missing" in shown(page)


def test_a_model_that_is_not_loaded_is_not_loaded_by_a_link(bench, engine):
    page = opened({"model": "some/where", "fact": "17"})
    assert not page.exception
    assert engine.loaded == []
    start = next(button for button in page.button if button.label == "Load the model and trace")
    start.click().run()
    finished(page, bench)
    assert engine.loaded == ["some/where"]
    assert len(page.metric) == 4


def test_a_model_error_is_shown(bench, engine):
    engine.error = ModelError("some/where is not a MoE.", "Choose another.")
    page = opened({"model": "some/where"})
    next(button for button in page.button if button.label == "Load the model and trace").click().run()
    finished(page, bench)
    assert any("not a MoE" in error.value for error in page.error)


def test_progress_can_be_watched_and_cancelled(bench, engine):
    engine.gate = threading.Event()
    page = opened({"draws": "4"})
    assert engine.begun.wait(WAIT)
    page.run()
    assert not page.exception
    assert "patching layers" in page.get("progress")[0].proto.text
    assert page.number_input, "the sidebar stays usable"
    next(button for button in page.button if button.label == "Cancel").click().run()
    finished(page, bench)
    assert any("Cancelled" in info.value for info in page.info)
    page.run()
    assert len(engine.asked) == 1, "a cancelled trace does not start again by itself"


def test_a_changed_setting_asks_anew_and_lets_go_of_the_old_job(bench, engine):
    engine.gate = threading.Event()
    page = opened()
    assert engine.begun.wait(WAIT)
    next(n for n in page.number_input if n.label == "Noise level").set_value(1.5).run()
    assert params_of(page)["noise"] == "1.5"
    old, new = bench.jobs.all()
    assert old.wait(WAIT)
    assert old.state == "cancelled"
    engine.gate.set()
    finished(page, bench)
    assert new.result.request == TraceRequest(fact=FRANCE, noise=1.5)


def widget(elements, label):
    return next(e for e in elements if e.label == label)


def test_another_subject_can_stand_in_for_the_facts_own(bench, engine):
    page = finished(opened({"draws": "2"}), bench)
    widget(page.segmented_control, "Corruption").set_value("replace").run()
    page = finished(page, bench)
    chosen = TraceRequest(fact=FRANCE, draws=2, corruption="replace")
    assert engine.asked[-1] == chosen
    assert "subject replaced by Land 0, Land 1 (chosen)" in shown(page) and "noise level" not in shown(page)
    assert params_of(page)["corruption"] == "replace"
    assert not any(n.label == "Noise level" for n in page.number_input)
    widget(page.text_input, "Other subject").set_value(" Spain | Sri Lanka|").run()
    page = finished(page, bench)
    assert engine.asked[-1] == chosen.replace(replacement=("Spain", "Sri Lanka"))
    assert "subject replaced by Spain, Sri Lanka" in shown(page) and "(chosen)" not in shown(page)
    assert widget(page.number_input, "Draws").disabled
    assert not any(n.label == "Seed" for n in page.number_input)
    assert params_of(page)["replacement"] == "Spain|Sri Lanka"
    again = finished(opened(params_of(page)), bench)
    assert widget(again.text_input, "Other subject").value == "Spain | Sri Lanka"
    assert widget(page.number_input, "Draws").value == 2
    widget(page.text_input, "Other subject").set_value("").run()
    page = finished(page, bench)
    assert widget(page.number_input, "Draws").value == 1
    assert bench.lookup(chosen) is not None and params_of(page)["draws"] == "1"
    widget(page.segmented_control, "Corruption").set_value("noise").run()
    assert "corruption" not in params_of(finished(page, bench))


def test_a_named_subject_goes_with_its_fact(bench, engine):
    """Another fact is asked about with subjects chosen for it, not with the one that was typed for the old one."""
    page = finished(opened({"corruption": "replace", "replacement": "Spain"}), bench)
    next(s for s in page.selectbox if s.label == "Fact").select(JAPAN.case_id).run()
    page = finished(page, bench)
    assert engine.asked[-1] == TraceRequest(fact=JAPAN, corruption="replace")
    assert widget(page.text_input, "Other subject").value == ""


def test_two_viewers_share_one_job(bench, engine):
    engine.gate = threading.Event()
    first, second = opened(), opened()
    assert len(bench.jobs.all()) == 1
    engine.gate.set()
    finished(first, bench)
    finished(second, bench)
    assert len(engine.asked) == 1
    assert len(second.metric) == 4


def test_choosing_a_cell_keeps_the_question_and_choosing_a_fact_drops_the_cell(bench, engine):
    page = finished(opened({"pos": "5", "layer": "2"}), bench)
    next(s for s in page.selectbox if s.label == "Layer").set_value(3).run()
    assert params_of(page)["layer"] == "3"
    assert len(engine.asked) == 1
    next(s for s in page.selectbox if s.label == "Fact").set_value(JAPAN.case_id).run()
    finished(page, bench)
    assert params_of(page) == to_query(TraceRequest(fact=JAPAN), View(), bundled=True)


def test_dense_layers_and_the_shared_expert_are_shown(bench, engine):
    engine.shape = {"dense": (0, 3), "shared": True}
    page = finished(opened({"pos": "5", "layer": "4", "expert": "shared"}), bench)
    assert "**L4shared** alone" in shown(page)
    assert any("2 dense layers" in caption.value for caption in page.caption)
    page = finished(opened({"pos": "5", "layer": "3"}), bench)
    assert any("it is dense" in warning.value for warning in page.warning)


def test_a_fact_can_be_typed_in(bench, engine):
    page = finished(opened(), bench)
    next(c for c in page.segmented_control if "Where the fact" in c.label).set_value("Typed in").run()
    fields = {"Prompt": "In {} people live in", "Subject": "Peru", "True object": "Lima", "Foil": "Quito"}
    for label, value in fields.items():
        next(field for field in page.text_input if field.label == label).set_value(value).run()
    assert len(engine.asked) == 1, "typing asks nothing"
    read = bench.live(
        Fact("In {} people live in", "Peru", "Lima", "Quito"), TraceRequest(fact=FRANCE).model,
        special_tokens="auto", object_tokens="space", first_token=False,
    )  # fmt: skip
    html = "".join(element.proto.body for element in page.get("html"))
    marked = [token for token in read.tokens if token.subject]
    assert marked
    for token in marked:
        assert f'title="position {token.pos}, subject">{views.visible(token.token)}</span>' in html
    for role, found in (("true", read.true), ("foil", read.foil)):
        assert (f"{role} object is token" in html) == (found is not None)
    button = next(b for b in page.button if b.label == "Trace this fact")
    assert read.prepared is not None, read.problems
    button.click().run()
    finished(page, bench)
    typed = Fact("In {} people live in", "Peru", "Lima", "Quito")
    assert engine.asked[-1] == TraceRequest(fact=typed)
    assert params_of(page) == to_query(TraceRequest(fact=typed), View(), bundled=False)


def test_what_is_wrong_with_a_typed_fact_is_said_while_typing(bench, engine):
    page = finished(opened(), bench)
    next(c for c in page.segmented_control if "Where the fact" in c.label).set_value("Typed in").run()
    next(field for field in page.text_input if field.label == "Prompt").set_value("Nothing here").run()
    assert any("is not in the prompt" in re.sub(r"\\(.)", r"\1", warning.value) for warning in page.warning)
    assert next(b for b in page.button if b.label == "Trace this fact").disabled


def test_the_store_can_be_emptied(bench, engine, monkeypatch):
    cleared = []
    status = StoreStatus(size=10**6, contents=5 * 10**5, limit=10**9, models=(("demo (abc)", 5 * 10**5),))
    monkeypatch.setattr(bench, "store_status", lambda: status)
    monkeypatch.setattr(bench, "clear_store", cleared.append)
    page = finished(opened(), bench)
    assert all(b.disabled for b in page.button if b.label.startswith("Forget")), "it asks first"
    next(box for box in page.checkbox if box.label == "Unlock what deletes").check().run()
    next(b for b in page.button if b.label.startswith("Forget demo")).click().run()
    next(b for b in page.button if b.label == "Forget everything").click().run()
    assert cleared == ["demo (abc)", None]
