"""An expert's neurons against plain hooks: signs, cosines, examples, and writes that add up to the direct part."""

from __future__ import annotations

import families
import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import cosine_similarity, silu

from core import expert_questions as questions
from core.derived import DerivedResult, derive
from core.moe import MoeModel
from core.neurons import EXAMPLES, SHARES, SIGNS, STRONGEST
from tests import oracle
from tests.dossier_worlds import FAMILIES, World, random_facts, words, world


@pytest.fixture(scope="module", params=FAMILIES)
def asked(request: pytest.FixtureRequest) -> tuple[World, DerivedResult]:
    place = world(request.param)
    layer, expert = place.busiest
    return place, derive(place.model, questions.neurons(place.model.spec, place.facts, layer=layer, expert=expert))


class ByHand:
    """The expert's neurons at each of its tokens, from the weights as the family's modeling file uses them.

    `gate`, `into`, `activation`: [n, m]; `places`: (fact, position); `g`: router weights."""

    def __init__(self, place: World) -> None:
        self.layer, self.expert = place.busiest
        experts = oracle.find_blocks(place.model.model)[self.layer].experts
        h, self.places, g = [], [], []
        for number, seen in enumerate(place.oracles):
            clean = seen.clean_run[self.layer]
            for pos in range(len(seen.case.input_ids)):
                if self.expert in clean.active(pos):
                    h.append(clean.h[pos])
                    g.append(clean.router_weight(pos, self.expert))
                    self.places.append((number, pos))
        x, self.g, self.bias = torch.stack(h), torch.tensor(g), None
        with torch.no_grad():
            if place.family == "gpt_oss":
                both = x @ experts.gate_up_proj[self.expert] + experts.gate_up_proj_bias[self.expert]
                self.gate, self.into = both[:, 0::2], both[:, 1::2]
                limit, alpha = place.model.config.swiglu_limit, place.model.config.swiglu_alpha
                low = self.gate.clamp(max=limit)
                self.activation = (self.into.clamp(-limit, limit) + 1) * low * torch.sigmoid(alpha * low)
                rows = experts.gate_up_proj[self.expert].T
                self.gate_rows, self.in_rows = rows[0::2], rows[1::2]
                self.out_rows, self.bias = experts.down_proj[self.expert], experts.down_proj_bias[self.expert]
            else:
                m = experts.down_proj.shape[2]
                rows = experts.gate_up_proj[self.expert]
                self.gate_rows, self.in_rows = rows[:m], rows[m:]
                self.gate, self.into = x @ self.gate_rows.T, x @ self.in_rows.T
                self.activation = silu(self.gate) * self.into
                self.out_rows = experts.down_proj[self.expert].T

    def writes(self, place: World) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """(of each neuron [facts, m], of the bias [facts], the facts) where the expert is active at the last token."""
        neurons, bias, facts = [], [], []
        scale = getattr(place.model.config, "routed_scaling_factor", 1.0)  # deepseek_v3 has it in the router weight
        assert scale == 1 or place.family == "deepseek_v3"
        for row, (number, pos) in enumerate(self.places):
            case = place.cases[number]
            if pos != len(case.input_ids) - 1:
                continue
            state = place.final_state(case, None)

            def direct(vector: torch.Tensor, state: torch.Tensor = state, case: oracle.Case = case) -> torch.Tensor:
                effect = place.effects(state, vector)
                return effect[case.true_id] - effect[case.foil_id]

            columns = self.g[row] * self.activation[row][:, None] * self.out_rows.detach()
            neurons.append(torch.stack([direct(column) for column in columns]))
            bias.append(torch.zeros(()) if self.bias is None else direct(self.g[row] * self.bias.detach()))
            facts.append(number)
        return torch.stack(neurons), torch.stack(bias), facts


def test_signs_cosines_and_sizes(asked) -> None:
    place, result = asked
    mine, got = ByHand(place), result.tables["neurons"]
    assert result.values["available"] and result.values["n_neurons"] == len(got) == len(mine.out_rows)
    assert (got.tokens == len(mine.places)).all()
    for name, (gate, into) in zip(SHARES, SIGNS, strict=True):
        here = ((mine.gate > 0) == (gate > 0)) & ((mine.into > 0) == (into > 0))
        np.testing.assert_allclose(got[name], here.double().mean(0), atol=1e-6)
    np.testing.assert_allclose(got[list(SHARES)].sum(axis=1), 1, atol=1e-6)
    for name, one, two in (
        ("in_out_cosine", mine.in_rows, mine.out_rows), ("gate_out_cosine", mine.gate_rows, mine.out_rows),
        ("gate_in_cosine", mine.gate_rows, mine.in_rows),
    ):  # fmt: skip
        np.testing.assert_allclose(got[name], cosine_similarity(one, two).detach(), atol=1e-5)
    norms = mine.out_rows.norm(dim=-1).detach()
    np.testing.assert_allclose(got.output_norm, norms, rtol=1e-5)
    np.testing.assert_allclose(got.mean_activation, mine.activation.mean(0), atol=1e-4)
    sizes = ((mine.g[:, None] * mine.activation).abs() * norms).mean(0)
    np.testing.assert_allclose(got.mean_size, sizes, atol=1e-4)
    assert got.sort_values("size_rank").mean_size.is_monotonic_decreasing


def test_the_writes_are_the_neurons_own(asked) -> None:
    place, result = asked
    neurons, bias, facts = ByHand(place).writes(place)
    got = result.tables["neurons"]
    assert result.values["active_facts"] == len(facts) >= 2
    np.testing.assert_allclose(got.write, neurons.mean(0), atol=1e-4)
    assert got.sort_values("write_rank").write.abs().is_monotonic_decreasing
    assert result.values["bias_write"] == pytest.approx(bias.mean().item(), abs=1e-4)
    rows = result.tables["writes"]
    assert sorted(set(rows.fact)) == facts
    for number, some in rows.groupby("fact"):
        mine = neurons[facts.index(number)]
        np.testing.assert_allclose(some.sort_values("rank").write.abs(), mine.abs().topk(len(some)).values, atol=1e-4)
        np.testing.assert_allclose(some.write, mine[some.neuron.tolist()], atol=1e-4)


def test_neurons_and_bias_add_up_to_the_experts_direct_part(asked) -> None:
    """Against the other kind's answer, which knows no neurons."""
    place, result = asked
    layer, expert = place.busiest
    facts = derive(place.model, questions.writes(place.model.spec, place.facts, layer=layer, expert=expert))
    direct = facts.tables["facts"].set_index("fact").query("clean_active").direct
    total = result.tables["neurons"].write.sum() + result.values["bias_write"]
    assert total == pytest.approx(direct.mean(), abs=1e-4) and abs(direct).max() > 0.01
    assert result.values["direct"] == pytest.approx(direct.mean(), abs=1e-5)
    per_fact = result.tables["writes"].groupby("fact").direct.first()
    np.testing.assert_allclose(per_fact, direct[per_fact.index], atol=1e-5)
    assert result.values["error"] < 1e-5


def test_examples_are_the_tokens_where_the_neuron_is_largest(asked) -> None:
    place, result = asked
    mine, got = ByHand(place), result.tables["examples"]
    neurons = result.tables["neurons"]
    strong = neurons[(neurons.write_rank <= STRONGEST) | (neurons.size_rank <= STRONGEST)].neuron
    assert set(got.neuron) == set(strong)
    first: dict[tuple[int, ...], int] = {}  # a beginning that two prompts share counts once
    for row, (number, pos) in enumerate(mine.places):
        first.setdefault(place.prepared[number].input_ids[: pos + 1], row)
    rows = sorted(first.values())
    for neuron in strong:
        for gate, into in SIGNS:
            some = got[(got.neuron == neuron) & (got.gate_sign == gate) & (got.in_sign == into)].sort_values("rank")
            signs = [(mine.gate[r, neuron] > 0, mine.into[r, neuron] > 0) for r in rows]
            here = [r for r, sign in zip(rows, signs, strict=True) if sign == (gate > 0, into > 0)]
            largest = sorted((abs(mine.activation[r, neuron].item()) for r in here), reverse=True)[:EXAMPLES]
            np.testing.assert_allclose(some.activation.abs(), largest, atol=1e-4)
            for row in some.to_dict("records"):
                at = mine.places.index((row["fact"], row["pos"]))
                fact = place.prepared[row["fact"]]
                assert row["gate"] == pytest.approx(mine.gate[at, neuron].item(), abs=1e-4)
                assert row["in"] == pytest.approx(mine.into[at, neuron].item(), abs=1e-4)
                assert row["activation"] == pytest.approx(mine.activation[at, neuron].item(), abs=1e-4)
                assert (row["token_id"], row["prompt"]) == (fact.input_ids[row["pos"]], fact.fact.text)


def test_batches_change_nothing(asked, monkeypatch) -> None:
    place, result = asked
    monkeypatch.setattr("core.fact_batches.most_tokens", lambda model: 30)
    monkeypatch.setattr("core.neurons._NUMBERS", 100)  # a few tokens at a time
    again = derive(place.model, result.request)
    columns = ["tokens", *SHARES, "mean_activation", "mean_size", "write"]
    pd.testing.assert_frame_equal(again.tables["neurons"][columns], result.tables["neurons"][columns], atol=1e-4)
    assert len(again.tables["examples"]) == len(result.tables["examples"])
    assert again.values["direct"] == pytest.approx(result.values["direct"], abs=1e-4)


def test_beginnings_that_two_prompts_share_are_one_example() -> None:
    place = world("qwen3_moe")
    layer, expert = place.busiest
    twice = [place.facts[0], place.facts[0], *place.facts[1:]]
    once, result = (
        derive(place.model, questions.neurons(place.model.spec, facts, layer=layer, expert=expert))
        for facts in (place.facts, twice)
    )
    assert result.tables["neurons"].tokens[0] > once.tables["neurons"].tokens[0]
    key = ["neuron", "gate_sign", "in_sign"]
    same = result.tables["examples"].merge(once.tables["examples"], on=[*key, "rank", "pos", "prompt"])
    of_both = set(result.tables["examples"].neuron) & set(once.tables["examples"].neuron)
    assert len(same) == once.tables["examples"].neuron.isin(of_both).sum() > 0


def test_an_expert_without_gates_says_so() -> None:
    model = MoeModel(families.build("nemotron_h"), words(256))
    result = derive(model, questions.neurons(model.spec, random_facts(2), layer=model.moe_layers[0], expert=0))
    assert not result.values["available"] and "gated MLP" in result.values["why"]
    assert all(table.empty for table in result.tables.values())


def test_an_expert_that_is_never_routed_still_has_its_cosines() -> None:
    place = world("qwen3_moe")
    layer = place.model.moe_layers[0]
    fact = place.facts[0]
    routed = {e for pos in range(len(place.cases[0].input_ids)) for e in place.oracles[0].clean_run[layer].active(pos)}
    expert = min(set(range(8)) - routed)
    result = derive(place.model, questions.neurons(place.model.spec, [fact], layer=layer, expert=expert))
    neurons = result.tables["neurons"]
    assert neurons.in_out_cosine.notna().all() and (neurons.tokens == 0).all()
    assert neurons[[*SHARES, "mean_size", "write"]].isna().all(axis=None)
    assert result.tables["examples"].empty and result.values["direct"] is None


def test_where_nothing_reaches_the_logits_directly_the_rest_is_there() -> None:
    model = MoeModel(families.build("flex_olmo"), words(256))
    layer = model.moe_layers[0]
    result = derive(model, questions.neurons(model.spec, random_facts(6), layer=layer, expert=0))
    neurons = result.tables["neurons"]
    assert "norm" in result.values["missing"] and neurons.write.isna().all() and result.tables["writes"].empty
    assert neurons.mean_size.notna().all() and len(result.tables["examples"])
