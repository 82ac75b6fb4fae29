"""One question of every kind about the demo model, and their answers as exact values, for `test_same_numbers.py`.

`python tests/same_numbers.py FILE [last first]` answers them all in a process of its own and writes the answers.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402

from core import expert_link, expert_questions, facts, routing_kinds, validation  # noqa: E402
from core.averages import questions as averages  # noqa: E402
from core.cells.asking import ask, ask_clean  # noqa: E402
from core.derived import DerivedRequest, DerivedResult, derive  # noqa: E402
from core.models import load_model  # noqa: E402
from core.requests import ModelSpec, TraceRequest  # noqa: E402
from core.results import TraceResult  # noqa: E402
from core.trace import trace  # noqa: E402

SPEC = ModelSpec("demo", dtype="float32", device="cpu")
LAYER, POS, EXPERT = 6, 10, 15
"""An expert that is clean-active at that place of the first fact (`test_same_numbers.py` sees to it)."""

Question = TraceRequest | DerivedRequest
Parts = dict[str, Any]
"""An answer as plain values: tables by name, and the JSON values under `values`."""


def questions() -> dict[str, Question]:
    """Three traces and one question of every derived kind, small ones, by name."""
    known = {fact.subject: fact for fact in facts.bundled() if fact.relation == "city_country"}
    few = [known["Bordeaux"], known["Bologna"]]
    asked = TraceRequest(few[0], model=SPEC, draws=2)
    view = expert_link.ExpertView(model=SPEC, layer=LAYER, expert=EXPERT)
    at, one = {"layer": LAYER, "pos": POS}, {"layer": LAYER, "expert": EXPERT}
    routing = [routing_kinds.routing_request(SPEC, facts=[fact]) for fact in few]
    found: list[Question] = [
        ask("site_map", asked, site="attention", window=2),
        ask("coalition", asked, **at, experts=[EXPERT]),
        ask("minimal_set", asked, **at, target=0.8),
        ask_clean("cell_knockouts", asked, **at),
        ask("cell_controls", asked, **at, expert=EXPERT),
        expert_questions.writes(SPEC, few, **one),
        expert_questions.size(SPEC, few, **one),
        expert_questions.neurons(SPEC, few, **one),
        expert_questions.steering(SPEC, few, **one, factor=2.0, continued=3),
        routing[0],
        routing_kinds.comparison_request(*routing),
        expert_link.rescue_request(view, few),
        expert_link.knockout_request(view, few),
        validation.ask(SPEC, few),
        averages.cells_request(asked, few),
        averages.experts_request(asked, few),
    ]
    traces = {
        "trace": asked,
        "trace of all experts": TraceRequest(few[1], model=SPEC, experts="all"),
        "trace of a replaced subject": TraceRequest(few[0], model=SPEC, corruption="replace", seed=3),
    }
    return traces | {question.kind: question for question in found}


def answer(model: Any, question: Question, store: Any = None) -> TraceResult | DerivedResult:
    """The answer of the engine, or of the store where it has one."""
    return (trace if isinstance(question, TraceRequest) else derive)(model, question, store=store)


def parts_of(result: TraceResult | DerivedResult) -> Parts:
    """Everything in an answer that is a number or a text, without when and where it was computed."""
    if isinstance(result, DerivedResult):
        return {**result.tables, "values": result.values}
    ends = {"sigma": result.provenance.noise_sigma, "ids": result.provenance.token_ids}
    return {name: getattr(result, name) for name in ("frame", "routing", "next_tokens", "runs")} | {"values": ends}


def assert_equal(found: Parts, wanted: Parts) -> None:
    """Every table and value is the same, to the last bit."""
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        if isinstance(value, pd.DataFrame):
            # texts come back from a file with a type of their own
            pd.testing.assert_frame_equal(found[name], value, check_exact=True, check_dtype=False)
        else:
            assert found[name] == value, name


def largest_difference(found: Parts, wanted: Parts) -> float:
    """Of all numbers that are not whole ones, of those above 1 the share of them; all else has to be the same."""
    assert list(found) == list(wanted)
    return max((_difference(found[name], value, name) for name, value in wanted.items()), default=0.0)


def _difference(found: Any, wanted: Any, where: str) -> float:
    if isinstance(wanted, pd.DataFrame):
        assert list(found.columns) == list(wanted.columns) and len(found) == len(wanted), where
        columns = [(found[name].tolist(), wanted[name].tolist(), f"{where}.{name}") for name in wanted.columns]
    elif isinstance(wanted, dict):
        assert list(found) == list(wanted), where
        columns = [([found[name]], [value], f"{where}.{name}") for name, value in wanted.items()]
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), where
        columns = [(found, wanted, where)]
    else:
        columns = [([found], [wanted], where)]
    return max((_of_cells(left, right, name) for left, right, name in columns), default=0.0)


def _of_cells(found: Iterable[Any], wanted: Iterable[Any], where: str) -> float:
    most = 0.0
    for left, right in zip(found, wanted, strict=True):
        if isinstance(right, (dict, list, np.ndarray)):
            plain = (left.tolist(), right.tolist()) if isinstance(right, np.ndarray) else (left, right)
            most = max(most, _difference(*plain, where))
        elif isinstance(right, float) and not np.isnan(right):
            most = max(most, abs(left - right) / max(1.0, abs(right)))
        else:
            assert (pd.isna(left) and pd.isna(right)) or left == right, (where, left, right)
    return most


def main(file: str, *order: str) -> None:
    """See the module."""
    model = load_model(**{"name": SPEC.name, "dtype": SPEC.dtype, "device": SPEC.device})
    asked = questions()
    names = reversed(asked) if order else asked
    Path(file).write_bytes(pickle.dumps({name: parts_of(answer(model, asked[name])) for name in names}))


if __name__ == "__main__":
    main(*sys.argv[1:])
