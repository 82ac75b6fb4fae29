"""Collected routing against plain forward hooks on what the experts receive, over families, prompts and draws."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import core.routed
from core.errors import Cancelled, InputError
from core.moe import MoeModel
from core.progress import Progress
from core.prompts import PreparedFact
from core.replacing import with_replacements
from core.requests import Fact, TraceRequest
from core.roles import LAST, NO_SUBJECT
from core.routed import PlacedPrompt, collect, place, plain
from core.routing import RoutedTokens
from tests import oracle
from tests.checkpoints import build as build_with_words
from tests.compare import Setting, oracle_of, random_fact
from tests.tiny_models import N_EXPERTS, build
from tests.tokenizers_for_tests import tokenizer

KINDS = ["mixtral", "qwen2_moe", "deepseek_v3", "gpt_oss", "qwen3_next"]
SETTING = Setting(noise=3.0, draws=2, seed=7)
FACTS = [random_fact(5), random_fact(6, length=11, subject=(4, 5, 6)), random_fact(8, length=6, subject=(0,))]


def placed(fact: PreparedFact) -> PlacedPrompt:
    return PlacedPrompt(fact.fact, fact.input_ids, fact.subject_positions)


def weights_of(routed: RoutedTokens, row: int, at: int) -> dict[int, float]:
    """{expert: router weight} of one token at the layer number `at`."""
    found: dict[int, float] = {}
    for expert, weight in zip(routed.index[row, at].tolist(), routed.weight[row, at].tolist(), strict=True):
        found[expert] = found.get(expert, 0.0) + weight
    return found


@pytest.fixture(scope="module", params=KINDS)
def model(request) -> MoeModel:
    return MoeModel(build(request.param))


def test_every_token_of_every_run_is_routed_as_plain_hooks_see_it(model, monkeypatch) -> None:
    monkeypatch.setattr(core.routed, "_tokens_at_once", lambda model: 40)  # several sweeps
    nothing = PlacedPrompt(plain("w9 w8", 3), (9, 8, 7, 44))
    prompts = [placed(FACTS[0]), nothing, *map(placed, FACTS[1:])]
    got = collect(model, prompts, noise=SETTING.noise, draws=SETTING.draws, seed=SETTING.seed)
    assert got.layers == tuple(model.moe_layers) and got.n_experts == N_EXPERTS
    assert len(got.tokens) == sum(3 * len(fact.input_ids) for fact in FACTS) + 4
    rows = 0
    for i, fact in ((0, FACTS[0]), (2, FACTS[1]), (3, FACTS[2])):
        asked = oracle_of(model.model, fact, SETTING)
        for run, draw, records in [("clean", None, asked.clean_run)] + [
            ("corrupt", j, asked.corrupt_runs[j]) for j in range(SETTING.draws)
        ]:
            mine = got.tokens[(got.tokens.fact == i) & (got.tokens.run == run)]
            mine = mine[mine.draw.isna()] if draw is None else mine[mine.draw == draw]
            assert mine.pos.tolist() == list(range(len(fact.input_ids)))
            assert mine.token_id.tolist() == list(fact.input_ids)
            assert set(mine.case_id) == {fact.fact.case_id}
            for at, layer in enumerate(got.layers):
                for row, pos in zip(mine.index, mine.pos, strict=True):
                    weights = weights_of(got, row, at)
                    assert sorted(weights) == records[layer].active(pos), (run, draw, layer, pos)
                    for expert, weight in weights.items():
                        assert weight == pytest.approx(records[layer].router_weight(pos, expert), abs=1e-5)
                    rows += 1
    assert rows == (len(got.tokens) - 4) * len(got.layers)
    mine = got.tokens[got.tokens.fact == 1]
    assert mine.role.tolist() == [NO_SUBJECT] * 3 + [LAST] and set(mine.run) == {"clean"}
    case = oracle.Case(torch.tensor(nothing.ids), (), 0, 1, torch.zeros(0, 0, model.hidden))
    records = oracle.record(model.model, case, None)
    for at, layer in enumerate(got.layers):
        for row, pos in zip(mine.index, mine.pos, strict=True):
            assert sorted(weights_of(got, row, at)) == records[layer].active(pos)


@pytest.fixture(scope="module")
def words() -> MoeModel:
    return MoeModel(build_with_words("qwen2_moe"), tokenizer("prefix_space"))


FRANCE = Fact("The capital of {} is", "France", "Paris", "Rome", case_id=4, relation="capital")


def test_prompts_are_placed_as_a_trace_places_them_but_objects_do_not_matter(words) -> None:
    from core.asking import prepare_for

    request = TraceRequest(FRANCE)
    prepared = prepare_for(words, request)
    assert place(words, request) == PlacedPrompt(FRANCE, prepared.input_ids, prepared.subject_positions)
    no_foil = Fact(FRANCE.prompt, FRANCE.subject, "Marie Curie of New York", None, case_id=4)
    assert place(words, TraceRequest(no_foil)).ids == prepared.input_ids
    assert place(words, TraceRequest(plain("The capital of France is"))).subject == ()
    with pytest.raises(InputError, match="is not in the prompt"):
        place(words, TraceRequest(Fact("The capital is", "France", "Paris")))


def test_another_subject_makes_the_corrupt_runs(words) -> None:
    request = TraceRequest(FRANCE, corruption="replace", replacement=("London",))
    got = collect(words, [place(words, request)], noise=3.0, draws=1, seed=0)
    ids = with_replacements(words.tokenizer, request, _prepared(words, request), ()).replaced_ids[0]
    corrupt = got.tokens[got.tokens.run == "corrupt"]
    assert corrupt.token_id.tolist() == list(ids)
    alone = collect(words, [PlacedPrompt(plain("x"), ids)])
    assert (got.index[corrupt.index] == alone.index).all()
    assert np.abs(got.weight[corrupt.index] - alone.weight).max() < 1e-5


def _prepared(model, request) -> PreparedFact:
    from core.asking import prepare_for

    return prepare_for(model, request)


def test_memory_that_runs_out_makes_smaller_sweeps_and_the_same_numbers(words, monkeypatch) -> None:
    texts = ("The capital of France", "Rome is", "Paris or Rome")
    prompts = [place(words, TraceRequest(plain(text))) for text in texts]
    whole = collect(words, prompts)
    swept, sizes = core.routed._swept, []

    def small(model, runs, progress):
        sizes.append(len(runs))
        return None if len(runs) > 1 else swept(model, runs, progress)

    monkeypatch.setattr(core.routed, "_swept", small)
    parts = collect(words, prompts)
    assert sizes[0] == 3 and sizes[-3:] == [1, 1, 1]
    pd.testing.assert_frame_equal(parts.tokens, whole.tokens)
    assert (parts.index == whole.index).all() and np.abs(parts.weight - whole.weight).max() < 1e-5


def test_what_would_be_too_large_is_refused_with_how_many_would_fit(words, monkeypatch) -> None:
    prompts = [place(words, TraceRequest(FRANCE))] * 10
    slots = 2 * len(prompts[0].ids) * len(words.moe_layers) * words.top_k
    monkeypatch.setattr(core.routed, "MOST_SLOTS", 4 * slots)
    with pytest.raises(InputError, match="at most about 4 prompts"):
        collect(words, prompts)
    assert len(collect(words, prompts[:4]).tokens) == 8 * len(prompts[0].ids)


def test_it_can_be_cancelled(words) -> None:
    class Stop(Progress):
        def check(self) -> None:
            raise Cancelled()

    with pytest.raises(Cancelled):
        collect(words, [place(words, TraceRequest(FRANCE))], progress=Stop())
