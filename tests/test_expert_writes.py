"""What an expert writes, against plain forward hooks and hand-written formulas of each family's head."""

from __future__ import annotations

import dataclasses

import families
import numpy as np
import pytest
import torch

from core import expert_questions as questions
from core.derived import DerivedResult, derive
from core.errors import InputError
from core.moe import MoeModel
from core.requests import Fact
from core.trace import trace
from core.writes import ALL, CONTRIBUTION, LAST, LAST_SUBJECT, UPDATE
from tests import oracle
from tests.dossier_worlds import DRAWS, FAMILIES, NOISE, SEED, World, random_facts, words, world

CORRUPT = {"noise": NOISE, "seed": SEED, "draws": DRAWS}


@pytest.fixture(scope="module", params=FAMILIES)
def asked(request: pytest.FixtureRequest) -> tuple[World, DerivedResult]:
    place = world(request.param)
    layer, expert = place.busiest
    question = questions.writes(place.model.spec, place.facts, layer=layer, expert=expert, **CORRUPT)
    return place, derive(place.model, question)


def vectors_by_hand(place: World) -> dict[tuple[str, str], list[torch.Tensor]]:
    """Every contribution and update that a mean runs over."""
    layer, expert = place.busiest
    out: dict[tuple[str, str], list[torch.Tensor]] = {}
    for asked in place.oracles:
        clean, length = asked.clean_run[layer], len(asked.case.input_ids)
        for pos in range(length):
            if expert not in clean.active(pos):
                continue
            c = oracle.contribution(place.model.model, layer, clean, pos, expert)
            out.setdefault((CONTRIBUTION, ALL), []).append(c)
            for where, at in ((LAST, length - 1), (LAST_SUBJECT, asked.case.subject_positions[-1])):
                if pos == at:
                    out.setdefault((CONTRIBUTION, where), []).append(c)
                    out.setdefault((UPDATE, where), []).extend(
                        asked.expert_update(draw, layer, pos, expert) for draw in range(DRAWS)
                    )
    return out


def test_means_over_the_tokens_that_are_routed_there(asked) -> None:
    place, result = asked
    wanted, got = vectors_by_hand(place), result.tables["vectors"].set_index(["what", "where"])
    assert len(wanted[CONTRIBUTION, LAST]) >= 2 and len(wanted[CONTRIBUTION, ALL]) > len(wanted[CONTRIBUTION, LAST])
    for mean, row in got.iterrows():
        vectors = wanted.get(mean, [])
        assert row.tokens == len(vectors)
        if vectors:
            assert row["norm"] == pytest.approx(torch.stack(vectors).mean(0).norm().item(), abs=1e-4)
            assert row.mean_norm == pytest.approx(torch.stack(vectors).norm(dim=-1).mean().item(), abs=1e-4)
        else:
            assert np.isnan(row["norm"]) and np.isnan(row.mean_norm)


def test_tokens_promoted_and_suppressed(asked) -> None:
    place, result = asked
    states = {
        CONTRIBUTION: [place.final_state(case, None) for case in place.cases],
        UPDATE: [place.final_state(case, case.noise[0]) for case in place.cases],
    }
    for (what, where), vectors in vectors_by_hand(place).items():
        mean = torch.stack(vectors).mean(0)
        effects = torch.stack([place.effects(state, mean) for state in states[what]]).mean(0)
        rows = result.tables["tokens"]
        rows = rows[(rows.what == what) & (rows["where"] == where)]
        for sense, sign in (("promoted", 1), ("suppressed", -1)):
            mine = rows[rows.sense == sense].sort_values("rank")
            np.testing.assert_allclose(mine.effect, effects[mine.token_id.tolist()], atol=1e-4)
            np.testing.assert_allclose(mine.effect, sign * (sign * effects).topk(20).values, atol=1e-4)
            assert mine["rank"].tolist() == list(range(1, 21))
            assert mine.token.tolist() == [place.model.piece(i) for i in mine.token_id]
        assert rows.effect.abs().max() > 0.01


def test_direct_parts_fact_by_fact(asked) -> None:
    place, result = asked
    layer, expert = place.busiest
    got = result.tables["facts"]
    assert got.fact.tolist() == list(range(len(place.facts))) and got.clean_active.any()
    for row, case, seen in zip(got.itertuples(), place.cases, place.oracles, strict=True):
        last, clean = len(case.input_ids) - 1, seen.clean_run[layer]
        assert row.clean_active == (expert in clean.active(last))
        assert row.router_weight == pytest.approx(clean.router_weight(last, expert), abs=1e-5)
        c = oracle.contribution(place.model.model, layer, clean, last, expert)
        effect = place.effects(place.final_state(case, None), c)
        assert row.direct == pytest.approx((effect[case.true_id] - effect[case.foil_id]).item(), abs=1e-4)
        assert row.contribution_norm == pytest.approx(c.norm().item(), abs=1e-4)
        true, foil = oracle.clean(place.model.model, case)
        assert row.clean_contrast == pytest.approx(true - foil, abs=1e-4)
        updates = [seen.expert_update(draw, layer, last, expert) for draw in range(DRAWS)]
        moved = [place.effects(place.final_state(case, case.noise[j]), v) for j, v in enumerate(updates)]
        direct = np.mean([(each[case.true_id] - each[case.foil_id]).item() for each in moved])
        assert row.direct_update == pytest.approx(direct, abs=1e-4)
        assert row.update_norm == pytest.approx(np.mean([v.norm().item() for v in updates]), abs=1e-4)
    assert got.direct.abs().max() > 0.01 and (got.direct - got.direct_update).abs().max() > 1e-3


def test_the_direct_update_is_that_of_the_trace(asked) -> None:
    place, result = asked
    layer, expert = place.busiest
    number = int(np.flatnonzero(result.tables["facts"].clean_active)[0])
    frame = trace(place.model, place.facts[number], **CORRUPT).frame
    rows = frame[(frame.kind == "expert") & (frame.layer == layer) & (frame.expert == expert)]
    rows = rows[rows.pos == len(place.prepared[number].input_ids) - 1]
    assert len(rows) == DRAWS
    assert result.tables["facts"].direct_update[number] == pytest.approx(rows.direct.mean(), abs=1e-5)


def test_batches_change_nothing(asked, monkeypatch) -> None:
    place, result = asked
    monkeypatch.setattr("core.fact_batches.most_tokens", lambda model: 40)
    again = derive(place.model, result.request)
    for name, table in result.tables.items():
        other = again.tables[name]
        assert len(other) == len(table)
        numbers = table.select_dtypes("number").columns.difference(["token_id"])
        np.testing.assert_allclose(other[numbers].astype(float), table[numbers].astype(float), atol=2e-4)


def test_behind_a_norm_nothing_is_claimed() -> None:
    """flex_olmo has a norm behind the block: sizes yes, effects and direct parts no, and a sentence why."""
    model = MoeModel(families.build("flex_olmo"), words(256))
    layer = model.moe_layers[0]
    tables = [
        derive(model, questions.writes(model.spec, random_facts(4), layer=layer, expert=expert)) for expert in (0, 1)
    ]
    for result in tables:
        assert "norm" in result.values["missing"] and result.tables["tokens"].empty
        assert result.tables["facts"].direct.isna().all() and result.tables["facts"].direct_update.isna().all()
    assert max(result.tables["vectors"].tokens.max() for result in tables) > 0


def test_facts_that_the_model_cannot_take_are_counted() -> None:
    place = world("qwen3_moe")
    layer, expert = place.busiest
    wrong = Fact("w5 {} w6", "w7", "w8 w9", "w10", case_id=99)
    facts = [*place.facts[:2], wrong]
    result = derive(place.model, questions.writes(place.model.spec, facts, layer=layer, expert=expert))
    assert result.values["facts"] == 2 and len(result.tables["facts"]) == 2
    assert [left["case_id"] for left in result.values["left_out"]] == [99]


def test_a_foil_left_to_the_model() -> None:
    place = world("qwen3_moe")
    layer, expert = place.busiest
    auto = dataclasses.replace(place.facts[0], foil=None, foil_auto=True)
    result = derive(place.model, questions.writes(place.model.spec, [auto], layer=layer, expert=expert))
    case = place.cases[0]
    with torch.no_grad():
        logits = place.model.model(input_ids=case.input_ids[None]).logits[0, -1]
    logits[case.true_id] = -torch.inf
    assert result.tables["facts"].foil_token[0] == f"w{int(logits.argmax())}"


@pytest.mark.parametrize(("layer", "expert"), [(1, 0), (0, 8), (99, 0), (0, -1)])
def test_an_expert_that_is_not_there(layer: int, expert: int) -> None:
    place = world("qwen3_moe")  # layer 1 is dense
    for ask in (questions.writes, questions.size, questions.neurons):
        with pytest.raises(InputError, match="no expert"):
            derive(place.model, ask(place.model.spec, place.facts[:1], layer=layer, expert=expert))
