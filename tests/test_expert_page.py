"""The Expert page without a browser: links, numbers, what is asked when, on a small random model."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pandas as pd
import pytest
from page_on_model import drawn, open_page, params_of, shown, small_model, workbench_for
from streamlit.testing.v1 import AppTest
from word_facts import word_facts

from core import expert_link, expert_questions, expert_routing, expert_tables, export, links
from core import expert_write_charts as charts
from core.derived import DerivedRequest, derive
from core.expert_link import ExpertView, from_query
from core.formats import number
from core.moe import MoeModel
from core.routing_kinds import routed_of, routing_request
from core.workbench import Workbench
from pages.parts import expert_rescue, expert_sections, present

WAIT = 60.0
APP = Path(__file__).resolve().parent.parent / "app.py"
FACTS = word_facts()


@pytest.fixture(scope="module")
def model() -> MoeModel:
    return small_model()


@pytest.fixture(scope="module")
def rescue(model):
    return derive(model, expert_link.rescue_request(ExpertView(), FACTS))


@pytest.fixture(scope="module")
def some(rescue) -> ExpertView:
    """An expert that is clean-active in some facts, but not in all."""
    found = expert_tables.every_expert(rescue.tables)
    row = found[(found.n_active > 2) & (found.n_active < 12)].iloc[0]
    return ExpertView(layer=int(row.layer), expert=int(row.expert))


@pytest.fixture(scope="module")
def bench(model, tmp_path_factory):
    """One for all tests: what was computed for one of them is there for the next."""
    with workbench_for(model, FACTS, tmp_path_factory.mktemp("store") / "store.duckdb") as made:
        yield made


def opened(view: ExpertView | None = None, **params: str) -> AppTest:
    return open_page("Expert", (expert_link.to_query(view) if view else {}) | params)


def view_of(page: AppTest) -> ExpertView:
    return from_query(params_of(page))


def asked(bench: Workbench, kind: str) -> list[DerivedRequest]:
    """The questions of one kind that were computed."""
    return [job.key for job in bench.jobs.all() if isinstance(job.key, DerivedRequest) and job.key.kind == kind]


def button(page: AppTest, label: str):
    return next(b for b in page.button if b.label == label)


def test_without_an_expert_all_are_listed_and_one_is_chosen(bench, rescue):
    page = opened()
    listed = page.dataframe[-1].value
    expected = expert_tables.every_expert(rescue.tables)
    assert list(listed.name) == list(expected.name) and len(expected) > 4
    assert list(listed.mean_all) == pytest.approx(list(expected.mean_all), abs=1e-4)
    assert any("2 of 14 facts left out" in expander.label for expander in page.expander)
    layer = next(box for box in page.selectbox if box.label == "Layer")
    drawn(layer.set_value(1).run())
    assert view_of(page).name == "L1E000"
    assert "Expert L1E000" in shown(page)


def test_the_numbers_above_the_sections_are_those_of_the_expert(bench, model, rescue, some):
    text = shown(opened(some))
    found = expert_tables.rescue(rescue.tables, some.layer, some.expert)
    lines = found.estimates.set_index("quantity")
    for name in ("expert_rescue", "expert_rescue_active_only", "specificity", "gate_matched_specificity"):
        ends = ", ".join(number(lines[end][name], 3, True) for end in ("ci_low", "ci_high"))
        assert number(lines["mean"][name], 3, True) in text
        assert f"[{ends}] · n {lines.n[name]}" in text
    routed = routed_of(derive(model, routing_request(some.model, facts=FACTS)))
    tokens = expert_routing.routed_tokens(routed, some.layer, some.expert)
    assert f"{tokens.routed.sum()} of {len(tokens)} tokens" in text
    active, of = expert_routing.clean_active(tokens)["last"]
    assert f"{active} of {of} facts" in text


def test_what_one_fact_says_has_no_interval():
    row = {"quantity": "expert_rescue", "mean": 0.25, "ci_low": math.nan, "ci_high": math.nan, "n": 1, "meaning": "m"}
    rows = [row, row | {"quantity": "specificity", "ci_low": -0.5, "ci_high": 1.0, "n": 7}]
    found = expert_tables.Rescue(pd.DataFrame(), pd.DataFrame(rows), pd.DataFrame(), {})
    assert expert_sections._estimate(found, "expert_rescue")[1:3] == ("+0.250", "no interval · n 1")
    assert expert_sections._estimate(found, "specificity")[2] == "[−0.500, +1.000] · n 7"


def test_with_one_expert_per_token_nothing_is_compared_and_that_is_said():
    row = {"quantity": "specificity", "mean": math.nan, "ci_low": math.nan, "ci_high": math.nan, "n": 0, "meaning": "m"}
    facts = pd.DataFrame({"control_random": [math.nan, math.nan, 0.5]})
    found = expert_tables.Rescue(facts, pd.DataFrame([row]), pd.DataFrame(), {})
    assert expert_sections._estimate(found, "specificity")[1:3] == ("–", "no other active expert")
    assert expert_rescue._alone(found).startswith("In 2 of 3 facts no other expert of the layer is clean-active")
    compared = expert_tables.Rescue(facts.fillna(0.5), found.estimates, found.relations, {})
    assert expert_rescue._alone(compared) == ""


def test_what_takes_longer_is_asked_when_its_section_is_opened(bench, some):
    other = expert_link.replace(some, first_token=True)  # nobody asked that before
    page = opened(other)
    assert len(page.get("vega_lite_chart")) == 2 and "<mark" in shown(page)
    assert view_of(page) == other
    knockout = expert_link.knockout_request(other, FACTS)
    assert asked(bench, "expert_rescue")[-1] == expert_link.rescue_request(other, FACTS)
    assert knockout not in asked(bench, "expert_knockout")
    drawn(page.segmented_control(key=section_key(page)).set_value("knockout").run())
    assert asked(bench, "expert_knockout")[-1] == knockout
    assert view_of(page).section == "knockout"
    assert "own facts" in shown(page)


def section_key(page: AppTest) -> str:
    return next(s.key for s in page.get("button_group") if s.proto.label == "Section")


def test_next_and_previous(bench, some):
    page = opened(some)
    n = len(bench.jobs.all())
    there = expert_link.beside(some, 1, moe_layers=[0, 1, 2, 3], n_experts=8)
    beside = [b for b in page.button if b.help and b.help.startswith("The ") and b.help.endswith(": " + there.name)]
    drawn(beside[0].click().run())
    assert view_of(page).name == there.name
    assert {job.lane for job in bench.jobs.all()[n:]} == {"numbers"}, "the next expert needs no model"


def test_the_facts_lead_to_the_trace_page_with_the_expert_marked(bench, rescue, some):
    page = opened(some, show="rescue")
    table = page.dataframe[-1].value
    found = expert_tables.rescue(rescue.tables, some.layer, some.expert).facts
    assert sorted(table.case_id) == sorted(found.case_id)
    row = table.iloc[0]
    there = links.from_query(
        {name: values[0] for name, values in parse_qs(urlsplit(row.trace).query).items()},
        bundled={fact.case_id: fact for fact in FACTS}.get, default=FACTS[0],
    )  # fmt: skip
    assert there.request == some.trace(next(fact for fact in FACTS if fact.case_id == row.case_id))
    assert (there.view.layer, there.view.expert) == (some.layer, some.expert)
    assert not there.problems and urlsplit(row.trace).path == "/"
    one = opened(some, show="rescue", relation="relation 1")
    assert set(one.dataframe[-1].value.relation) == {"relation 1"}


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"expert": "L9E000"}, "layer 9 has no experts"),
        ({"expert": "L1E999"}, "There is no expert L1E999"),
        ({"expert": "<script>"}, "which is no expert's name"),
        ({"expert": "L1E000", "relations": "no such"}, "There is no fact in this set"),
    ],
)
def test_a_link_that_cannot_be_is_answered_in_words(bench, params, said):
    assert said in shown(opened(**params))


def test_the_settings_in_the_sidebar_change_the_question(bench, some):
    page = opened(some)
    noise = next(box for box in page.number_input if box.label == "Noise level")
    drawn(noise.set_value(2.0).run())
    assert view_of(page) == expert_link.replace(some, noise=2.0)
    assert asked(bench, "expert_rescue")[-1].get()["noise"] == 2.0


@pytest.mark.parametrize(
    ("section", "charts", "words"),
    [
        ("rescue", 3, "Rescue by relation"),
        ("knockout", 2, "Cost on its own facts"),
        ("writes", 2, "Tokens promoted and suppressed"),
        ("size", 1, "beside its layer's other experts"),
        ("neurons", 2, "tokens of each combination"),
        ("steering", 0, "next token, × −1.5"),
    ],
)
def test_every_section_opens_cold_by_link_with_its_downloads(bench, some, section, charts, words):
    page = opened(expert_link.replace(some, section=section, factor=-1.5))
    text = shown(page)
    assert words in text and not page.error and not page.warning
    assert len(page.get("vega_lite_chart")) == charts
    downloads = [b.proto.label for b in page.get("download_button")]
    assert downloads.count("Table as CSV") >= 2 and downloads.count("Chart as SVG") == charts


def test_the_steering_box_changes_the_question_and_shows_both_runs(bench, model, some):
    page = opened(some, show="steering")
    slider = next(s for s in page.slider if s.label == "Factor")
    drawn(slider.set_value(0.0).run())
    view = view_of(page)
    assert (view.factor, view.section) == (0.0, "steering")
    fact = next(box for box in page.selectbox if box.label == "Fact")
    request = asked(bench, "steering")[-1]
    assert request.get()["factor"] == 0.0 and request.facts == (FACTS[fact.value],)
    row = derive(model, request).tables["facts"].iloc[0]
    text = shown(page)
    for value in (row.clean_contrast, row.scaled_contrast):
        assert f"contrast **{number(value, 3, True)}** logits" in text
    assert text.count("next token, ") == 2
    asked_for = " · ".join(export.caption(derive(model, request))).split(" · ")
    assert {"factor 0.0", f"expert {some.expert}", f"layer {some.layer}"} <= set(asked_for), "0 is a choice too"


def test_an_answer_says_its_seed_and_expert_also_where_they_are_0(model, rescue):
    assert "seed 0" in " · ".join(export.caption(rescue)).split(" · ")
    request = expert_questions.size(ExpertView().model, FACTS[:1], layer=1, expert=0)
    assert {"layer 1", "expert 0"} <= set(" · ".join(export.caption(derive(model, request))).split(" · "))


def test_a_neuron_shows_how_often_each_combination_of_signs_occurs_and_is_marked(bench, model, some):
    request = expert_questions.neurons(some.model, FACTS, layer=some.layer, expert=some.expert, **some.settings)
    found = derive(model, request)
    neurons = found.tables["neurons"].set_index("neuron")
    page = opened(expert_link.replace(some, section="neurons", neuron=3))
    text = shown(page)
    for signs in ("gate_pos_in_pos", "gate_pos_in_neg", "gate_neg_in_pos", "gate_neg_in_neg"):
        assert f"**{charts.SIGNS[signs]}** · {number(100 * neurons.loc[3, signs], 1)} % of the expert's tokens" in text
    assert neurons.loc[3, list(charts.SIGNS)].sum() == pytest.approx(1)
    few = next(n for n in range(1, 99) if neurons.write.abs().nlargest(n).sum() >= neurons.write.abs().sum() / 2)
    own = found.tables["writes"].drop_duplicates("fact")
    assert f"The whole expert writes {number(own.direct.mean(), 3, True)} logits to true − foil" in text
    assert f"mean over {len(own)} own facts" in text and f"{few} of {len(neurons)} write half." in text
    nobody = opened(expert_link.replace(some, section="neurons", neuron=10**6))
    assert f"{some.name} has no neuron 1000000" in shown(nobody)


def test_the_report_has_what_the_sections_say(bench, some, monkeypatch):
    said = []
    monkeypatch.setattr(present, "_page", lambda spot, *_: said.append(spot.findings) or b"")
    monkeypatch.setattr(present.st, "download_button", lambda label, data, **_: label == "Report" and data())
    page = opened(expert_link.replace(some, section="knockout"))
    assert not page.exception
    findings = " ".join(said[-1])
    assert "rescue, all facts: " in findings and "Zero mode subtracts what the expert contributes" in findings
    noted = {name: one.part for name, one in page.session_state["es_noted"].items()}
    assert "Mean change in zero mode, logits" in noted[f"{some.name}_knockout_all"].caption
    page = opened(expert_link.replace(some, section="steering"))
    commands = next(code.value for code in page.code if code.language == "bash").splitlines()
    kinds = [json.loads(shlex.split(line)[4])["kind"] for line in commands]
    assert kinds == ["expert_rescue", "routing", "steering"], "the numbers above the section are there too"
    noted = page.session_state["es_noted"]
    part = noted[f"{some.name}_steering_texts"].part
    row = part.table.iloc[0]
    for more in (row.clean_continuation, row.scaled_continuation):
        assert f": “{row.prompt}{more}”." in part.caption
    assert "Scaling changes the contrast by" in part.caption
