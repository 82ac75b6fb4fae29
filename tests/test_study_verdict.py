"""The verdict: total, as the table in the docs has it, and in words that state the intervals."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import pytest

from core.stats import Estimate
from core.study import verdict
from core.study.verdict import Evidence

DOC = Path(__file__).resolve().parent.parent / "docs" / "verdict.md"
STATES = {
    "above": (0.2, 0.1, 0.3),
    "around": (0.1, -0.1, 0.3),
    "below": (-0.2, -0.3, -0.1),
    "one fact": (0.2, math.nan, math.nan),
    "missing": (math.nan, math.nan, math.nan),
}


def estimate(state: str) -> Estimate:
    mean, low, high = STATES[state]
    n = {"missing": 0, "one fact": 1}.get(state, 64)
    return Estimate(mean, low, high, 0.5 if n else math.nan, 0.01 if n else math.nan, n, 64 - n, n)


def evidence(**changes) -> Evidence:
    """A specific expert, unless changed."""
    given = {
        "layer": 6, "expert": 5, "n_active": 40, "n_discovery": 64, "needed": 32, "layer_rescue": "above", "drop": 2.0,
        "expert_rescue": "above", "specificity": "above", "gate_matched": "above", "coalition_size": 3,
        "coalition_rule": "router weight", "coalition_share": 0.8, "reached": True, "minimal": "above",
        "minimal_minus_target": "around", "minimal_minus_random": "above", **changes,
    }  # fmt: skip
    return Evidence(**{k: estimate(v) if v in STATES else v for k, v in given.items()})


def expected(e: Evidence) -> str:
    """The rules once more, from the plain numbers."""

    def positive(x: Estimate) -> bool:
        return not math.isnan(x.ci_low) and x.ci_low > 0

    if not positive(e.layer_rescue) or e.layer_rescue.mean < 0.02 * e.drop:
        return "no layer-level localisation"
    if e.expert is None:
        return "no recurrent expert"
    if positive(e.specificity) and positive(e.gate_matched):
        return "specific expert"
    missing_target = math.isnan(e.minimal_minus_target.ci_high)
    if (
        e.reached
        and positive(e.minimal)
        and not missing_target
        and e.minimal_minus_target.ci_high >= 0
        and (positive(e.minimal_minus_random) or (e.minimal_minus_random.n == 0 and e.coalition_size > 1))
    ):
        return "coalition"
    return "no recurrent expert"


def test_every_combination_of_intervals_has_its_verdict():
    seen = {}
    fields = ("layer_rescue", "specificity", "gate_matched", "minimal", "minimal_minus_target", "minimal_minus_random")
    for states in itertools.product(STATES, repeat=len(fields)):
        for expert, size, reached, drop in ((5, 2, True, 2.0), (None, 2, True, 2.0), (5, 1, True, 2.0),
                                            (5, 0, False, 2.0), (5, 4, False, 2.0), (5, 2, True, 50.0)):  # fmt: skip
            e = evidence(
                **dict(zip(fields, states, strict=True)), expert=expert, coalition_size=size, reached=reached, drop=drop
            )
            rule = verdict.rule_for(verdict.answers(e))
            label = verdict.RULES[rule - 1][1]
            assert label == expected(e), (states, expert, size, reached, drop)
            seen.setdefault((rule, label), e)
    assert [rule for rule, _ in sorted(seen)] == [1, 2, 3, 4, 5]
    for (rule, label), e in seen.items():
        decided = verdict.decide(e)
        assert (decided.rule, decided.label) == (rule, label)
        assert decided.words


def test_an_interval_that_touches_0_is_not_above_it():
    assert not dataclasses.replace(estimate("above"), ci_low=0.0).above_zero
    target = dataclasses.replace(estimate("below"), ci_high=0.0)
    assert verdict.answers(evidence(minimal_minus_target=target))["recovers"] == "yes"


def documented() -> list[dict[str, str]]:
    lines = [line for line in DOC.read_text("utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    header = cells[0]
    return [dict(zip(header, row, strict=True)) for row in cells[2:] if row[0].isdigit()]


def test_the_documented_table_gives_the_same_verdict_for_all_answers():
    rules = documented()
    assert len(rules) == len(verdict.RULES)
    questions = list(verdict.QUESTIONS)
    values = [("yes", "no", "no other") if q == "beats_random" else ("yes", "no") for q in questions]
    for given in itertools.product(*values):
        answered = dict(zip(questions, given, strict=True))
        rule = next(r for r in rules if all(r[q] == "any" or answered[q] in r[q].split(", ") for q in questions))
        assert int(rule["rule"]) == verdict.rule_for(answered)
        assert rule["verdict"] == verdict.RULES[int(rule["rule"]) - 1][1]


def test_the_documented_questions_are_those_that_are_asked():
    text = DOC.read_text("utf-8")
    for name, question in verdict.QUESTIONS.items():
        assert f"| {name} | {question} |" in text


@pytest.mark.parametrize(
    ("changes", "rule", "said"),
    [
        ({}, 3, ["L6E005 rescues most (clean-active in 40 of 64 discovery facts)",
                 "specificity is +0.200 [+0.100, +0.300]",
                 "both intervals lie above 0"]),
        ({"layer_rescue": "around"}, 1, ["layer 6", "+0.100 [−0.100, +0.300]", "not above 0"]),
        ({"drop": 40.0}, 1, ["0.5 % of the drop", "too little"]),
        ({"expert": None}, 2, ["none is clean-active in 32 of the 64 discovery facts"]),
        ({"specificity": "around"}, 4, ["not specific", "first 3 active experts of each fact by router weight",
                                        "+0.200 [+0.100, +0.300]", "random coalitions of that size"]),
        ({"gate_matched": "around", "minimal_minus_random": "missing"}, 4, ["there are no others of that size"]),
        ({"gate_matched": "below", "minimal_minus_random": "around"}, 5, ["No coalition is shown"]),
        ({"specificity": "below", "coalition_size": 1}, 4, ["first active expert of each fact by router weight"]),
        ({"specificity": "missing", "gate_matched": "missing", "coalition_size": 1,
          "minimal_minus_random": "missing"}, 5,
         ["cannot be tested", "no others of that size"]),
        ({"specificity": "below", "reached": False}, 5, ["No coalition reaches 80 % of the layer patch on discovery"]),
        ({"specificity": "below", "coalition_size": 0, "minimal": "missing"}, 5, ["No coalition was measured"]),
        ({"layer": None, "layer_rescue": "missing"}, 1, ["Nothing was measured"]),
    ],
)  # fmt: skip
def test_the_words_state_what_decided(changes, rule, said):
    decided = verdict.decide(evidence(**changes))
    assert decided.rule == rule
    text = " ".join(decided.words)
    for words in said:
        assert words in text


def test_few_facts_and_missing_ones_are_cautioned():
    few = dataclasses.replace(estimate("above"), n=6, units=6, n_missing=0)
    assert "Only 6 units" in verdict.decide(evidence(layer_rescue=few)).cautions[0]
    gaps = dataclasses.replace(estimate("above"), n=62, units=62, n_missing=2)
    for expert in (5, 0):
        decided = verdict.decide(evidence(specificity=gaps, expert=expert))
        assert decided.cautions == ["specificity: 2 facts missing, 62 facts used."]
    assert verdict.decide(evidence()).cautions == []
