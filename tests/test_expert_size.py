"""Sizes of experts' outputs against plain forward hooks: norms, and how far each turns the block output."""

from __future__ import annotations

import math

import families
import numpy as np
import pandas as pd
import pytest
import torch

from core import expert_questions as questions
from core.derived import DerivedResult, derive
from core.expert_size import MEASURES, measures
from core.moe import MoeModel
from core.roles import roles_of
from tests import oracle
from tests.dossier_worlds import FAMILIES, World, random_facts, words, world


@pytest.fixture(scope="module", params=FAMILIES)
def asked(request: pytest.FixtureRequest) -> tuple[World, DerivedResult]:
    place = world(request.param)
    layer, expert = place.busiest
    return place, derive(place.model, questions.size(place.model.spec, place.facts, layer=layer, expert=expert))


def by_hand(place: World) -> pd.DataFrame:
    """One row per routed slot of the layer, by the definitions."""
    layer, _ = place.busiest
    rows = []
    for number, seen in enumerate(place.oracles):
        clean = seen.clean_run[layer]
        for pos in range(len(seen.case.input_ids)):
            for expert in clean.active(pos):
                alone = oracle.expert_output(place.model.model, layer, expert, clean.h[pos])
                c, y = oracle.contribution(place.model.model, layer, clean, pos, expert), clean.y[pos]
                cosine = (torch.dot(y, y - c) / (y.norm() * (y - c).norm())).item()
                rows.append({
                    "fact": number, "pos": pos, "expert": expert, "output_norm": alone.norm().item(),
                    "contribution_norm": c.norm().item(), "magnitude_ratio": (y.norm() / (y - c).norm()).item(),
                    "cosine": cosine, "angle": math.degrees(math.acos(max(-1.0, min(1.0, cosine)))),
                    "router_weight": clean.router_weight(pos, expert),
                })  # fmt: skip
    return pd.DataFrame(rows)


def test_the_experts_own_tokens(asked) -> None:
    place, result = asked
    wanted = by_hand(place)
    mine = wanted[wanted.expert == place.busiest[1]].reset_index(drop=True)
    got = result.tables["tokens"]
    assert got[["fact", "pos"]].values.tolist() == mine[["fact", "pos"]].values.tolist() and len(got) > 3
    for measure in MEASURES:
        tolerance = 0.1 if measure == "angle" else 1e-4  # degrees: near 0 a cosine does not tell them apart
        np.testing.assert_allclose(got[measure], mine[measure], atol=tolerance, rtol=1e-4)
    for row in got.itertuples():
        fact = place.prepared[row.fact]
        assert row.token_id == fact.input_ids[row.pos] and row.case_id == fact.fact.case_id
        assert row.role == roles_of(len(fact.input_ids), fact.subject_positions)[row.pos]


def test_one_distribution_per_expert_of_the_layer(asked) -> None:
    place, result = asked
    wanted, got = by_hand(place), result.tables["sizes"]
    assert sorted(set(got.expert)) == list(range(place.model.n_experts)) and len(got) == 6 * place.model.n_experts
    for row in got.itertuples():
        values = wanted[wanted.expert == row.expert][row.measure]
        assert row.tokens == len(values)
        found = [row.mean, row.low, row.quartile, row.median, row.upper_quartile, row.high]
        if len(values):
            tolerance = 0.1 if row.measure == "angle" else 1e-4
            right = [values.mean(), *(values.quantile(q) for q in (0.05, 0.25, 0.5, 0.75, 0.95))]
            np.testing.assert_allclose(found, right, atol=tolerance, rtol=1e-4)
        else:
            assert np.isnan(found).all()


def test_ranks_by_the_median(asked) -> None:
    place, result = asked
    wanted = by_hand(place).groupby("expert").median()
    for measure, (rank, of) in result.values["ranks"].items():
        assert of == len(wanted)
        if measure in ("output_norm", "contribution_norm"):
            assert rank == int((wanted[measure] > wanted[measure][place.busiest[1]]).sum()) + 1
    assert set(result.values["ranks"]) == set(MEASURES)


def test_batches_change_nothing(asked, monkeypatch) -> None:
    place, result = asked
    monkeypatch.setattr("core.fact_batches.most_tokens", lambda model: 30)
    again = derive(place.model, result.request)
    pd.testing.assert_frame_equal(again.tables["sizes"], result.tables["sizes"], atol=1e-3, rtol=1e-3)


def test_an_expert_that_puts_out_nothing_turns_nothing() -> None:
    y = torch.tensor([[3.0, 4.0]])
    got = dict(zip(MEASURES, measures(torch.zeros(1, 1, 2), torch.full((1, 1), 0.5), y, False)[0, 0], strict=True))
    assert got["contribution_norm"] == got["output_norm"] == got["angle"] == 0
    assert got["magnitude_ratio"] == got["cosine"] == 1
    # 5 long, of which the expert gives the 4: what is left is 3 long and at atan(4 ÷ 3)
    c = torch.tensor([[[0.0, 4.0]]])
    got = dict(zip(MEASURES, measures(c, torch.full((1, 1), 0.5), y, False)[0, 0].tolist(), strict=True))
    assert got["output_norm"] == 8 and got["magnitude_ratio"] == pytest.approx(5 / 3)
    assert got["angle"] == pytest.approx(math.degrees(math.atan2(4, 3)))
    assert math.isnan(measures(c, torch.zeros(1, 1), y, False)[0, 0, 0])


def test_weights_on_the_input() -> None:
    """llama4: the router weight multiplies what an expert is given, so that what it puts out is the contribution."""
    model = MoeModel(families.build("llama4_text"), words(256))
    layer = model.moe_layers[-1]
    result = derive(model, questions.size(model.spec, random_facts(4), layer=layer, expert=0))
    sizes = result.tables["sizes"].pivot(index="expert", columns="measure", values="mean").dropna()
    np.testing.assert_allclose(sizes.output_norm, sizes.contribution_norm)
    assert len(sizes) > 2 and (sizes.router_weight < 0.99).all()
