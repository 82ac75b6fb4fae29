"""The Expert page's link: there and back, nothing trusted, the same questions as the Trace page's."""

from __future__ import annotations

import dataclasses

import pytest

from core import expert_link, links
from core.expert_link import ExpertView, beside, check, from_query, parse, to_query
from core.fact_sets import FactSet
from core.requests import Fact, ModelSpec, TraceRequest

SHAPE = {"moe_layers": [1, 3], "n_layers": 4, "n_experts": 5}
FULL = ExpertView(
    model=ModelSpec("org/name", revision="abc", dtype="bfloat16"), layer=44, expert=69,
    facts=FactSet(relations=("capital", "a|b"), n=None, seed=3), noise=2.5, draws=4, seed=11, special_tokens="off",
    object_tokens="paper", first_token=True, corruption="replace", section="knockout", relation="capital", fact=9,
    place="last", written="update_last", measure="angle", neuron=7, factor=-1.25, where="subject",
)  # fmt: skip


@pytest.mark.parametrize("view", [ExpertView(), FULL, ExpertView(layer=0, expert=0, facts=FactSet(n=8))])
def test_there_and_back(view):
    assert from_query(to_query(view)) == view


def test_the_name_stands_in_the_link():
    assert to_query(FULL)["expert"] == "L44E069"
    assert "expert" not in to_query(ExpertView())
    assert parse("l6e5") == (6, 5) and parse("L6") is None and parse("L6E005x") is None


def test_whatever_cannot_be_is_named_and_replaced():
    wrong = {"expert": "<b>", "show": "nothing", "fact": "-1", "noise": "-3", "n": "x", "place": "here"}
    wrong |= {"factor": "5", "where": "nowhere", "neuron": "-2", "measure": "length", "written": "x"}
    view = from_query(wrong)
    assert view == ExpertView(problems=view.problems)
    for name, value in wrong.items():
        assert any(f"{name}={value}" in problem for problem in view.problems), name
    assert from_query({"factor": "nan"}).factor == from_query({"factor": "x"}).factor == 2.0


def test_a_trace_leads_to_the_page_with_the_same_numbers():
    fact = Fact("The capital of {} is", "France", "Paris", "Rome", case_id=1)
    request = TraceRequest(fact, ModelSpec("m"), noise=2.0, draws=3, seed=5, special_tokens="on", experts="all")
    view = expert_link.of_trace(request, layer=6, expert=5)
    assert view.name == "L6E005"
    assert view.trace(fact) == request.replace(experts="last")
    assert links.from_query(
        links.to_query(view.trace(fact), links.View(), bundled=False), bundled=lambda _: None, default=fact
    ).request == view.trace(fact)


def test_one_question_about_rescue_for_all_experts_and_one_about_knockout_for_all_noise():
    facts = [Fact("The capital of {} is", "France", "Paris", "Rome")]
    other = dataclasses.replace(FULL, layer=1, expert=1, section="rescue")
    assert expert_link.rescue_request(FULL, facts) == expert_link.rescue_request(other, facts)
    assert expert_link.knockout_request(FULL, facts) != expert_link.knockout_request(other, facts)
    louder = dataclasses.replace(FULL, corruption="noise", noise=5.0, seed=99)
    assert expert_link.knockout_request(FULL, facts) == expert_link.knockout_request(louder, facts)
    assert expert_link.rescue_request(FULL, facts) != expert_link.rescue_request(louder, facts)
    # where subjects are replaced no number depends on the noise level
    quiet = dataclasses.replace(FULL, noise=1.0)
    assert expert_link.rescue_request(FULL, facts) == expert_link.rescue_request(quiet, facts)


@pytest.mark.parametrize(
    ("layer", "expert", "said"),
    [(2, 0, "it is dense"), (9, 0, "the model has 4 (0 to 3)"), (1, 5, "each layer has 5 (0 to 4)"), (3, 4, "")],
)
def test_an_expert_that_the_model_does_not_have_is_dropped_with_a_sentence(layer, expert, said):
    view, problems = check(ExpertView(layer=layer, expert=expert), **SHAPE)
    assert view.chosen == (not said)
    assert [said in problem for problem in problems] == ([True] if said else [])


def test_next_and_previous_go_through_all_layers_with_experts():
    view, names = ExpertView(layer=3, expert=3), []
    for _ in range(10):
        view = beside(view, 1, moe_layers=[1, 3], n_experts=5)
        names.append(view.name)
    assert names == ["L3E004", *(f"L1E00{e}" for e in range(5)), *(f"L3E00{e}" for e in range(4))]
    assert beside(ExpertView(layer=1, expert=0), -1, moe_layers=[1, 3], n_experts=5).name == "L3E004"
