"""The numbers of the Expert page against plain hooked forwards, and against counting by hand."""

from __future__ import annotations

import dataclasses
import random

import checkpoints
import numpy as np
import oracle
import pandas as pd
import pytest
import tokenizers_for_tests
import torch
from test_study_run import oracle_of
from word_facts import word_facts

from core import expert_link, expert_routing, expert_tables, stats
from core.checks import ensure_checked
from core.derived import derive
from core.errors import InputError
from core.expert_link import ExpertView
from core.moe import MoeModel
from core.requests import Fact, ModelSpec
from core.routing_kinds import routed_of, routing_request

TOLERANCE = 1e-4
SEED, NOISE, DRAWS = 7, 2.0, 2


@pytest.fixture(scope="module")
def model() -> MoeModel:
    found = MoeModel(checkpoints.build("qwen2_moe"), tokenizers_for_tests.tokenizer("prefix_space"))
    ensure_checked(found)
    return found


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    """Twelve that can be traced, and two that cannot."""
    return word_facts()


@pytest.fixture(scope="module")
def view(model) -> ExpertView:
    return ExpertView(model=ModelSpec("ours"), layer=2, expert=0, seed=SEED, noise=NOISE, draws=DRAWS)


@pytest.fixture(scope="module")
def rescue(model, facts, view):
    return derive(model, expert_link.rescue_request(view, facts))


@pytest.fixture(scope="module")
def oracles(model, facts) -> dict[int, oracle.Oracle]:
    """Three facts of different relations, by their number."""
    return {i: oracle_of(model, facts[i], seed=SEED, level=NOISE) for i in (0, 5, 11)}


def contrast(logits: oracle.Logits) -> float:
    return logits[0] - logits[1]


def test_every_expert_patch_is_what_plain_hooks_measure(model, rescue, oracles):
    patches, known = rescue.tables["patches"], rescue.tables["facts"].set_index("fact")
    seen = 0
    for number, asked in oracles.items():
        last = len(asked.case.input_ids) - 1
        corrupt = [contrast(oracle.corrupt(model.model, asked.case, draw)) for draw in range(DRAWS)]
        clean = contrast(oracle.clean(model.model, asked.case))
        assert known.clean_contrast[number] == pytest.approx(clean, abs=TOLERANCE)
        assert known["drop"][number] == pytest.approx(clean - np.mean(corrupt), abs=TOLERANCE)
        mine = patches[patches.fact == number]
        expected = {
            (layer, expert): record.router_weight(last, expert)
            for layer, record in asked.clean_run.items()
            for expert in record.active(last)
        }
        assert set(zip(mine.layer, mine.expert, strict=True)) == set(expected)  # clean-active ones, and no others
        for row in mine.itertuples():
            values = [
                contrast(asked.expert_patch(draw, row.layer, last, row.expert)) - corrupt[draw] for draw in range(DRAWS)
            ]
            assert row.rescue == pytest.approx(np.mean(values), abs=TOLERANCE)
            assert row.rescue_sd == pytest.approx(np.std(values, ddof=1), abs=TOLERANCE)
            assert row.router_weight == pytest.approx(expected[row.layer, row.expert], abs=1e-6)
            seen += 1
    assert seen >= 12 and patches.rescue.abs().max() > 0.1  # the patches matter


def test_facts_that_the_model_cannot_take_are_counted_with_the_reason(rescue, facts):
    assert [(out["case_id"], out["subject"]) for out in rescue.values["left_out"]] == [(50, "Delhi"), (51, "Delhi")]
    assert "foil" in rescue.values["left_out"][1]["why"]
    assert list(rescue.tables["facts"].fact) == list(range(12))


def by_hand(rescue, layer: int, expert: int, top_k: int) -> list[dict]:
    """The rules of protocol.md, step 5, fact by fact."""
    patches = rescue.tables["patches"]
    rows = []
    for fact in rescue.tables["facts"].itertuples():
        here = patches[(patches.fact == fact.fact) & (patches.layer == layer)].set_index("expert")
        others = sorted(set(here.index) - {expert})
        drawn = random.Random(1000 + fact.case_id).sample(others, min(1 if top_k == 2 else 3, top_k - 1, len(others)))
        control = float(np.mean([here.rescue[e] for e in drawn]))
        row = {"active": expert in here.index, "rescue": 0.0, "control": control, "subject": fact.subject}
        if row["active"]:
            row["rescue"] = here.rescue[expert]
            row["rank"] = 1 + int((here.rescue > row["rescue"]).sum())
            nearest = min(others, key=lambda e: (abs(here.router_weight[e] - here.router_weight[expert]), e))
            row["gate"] = row["rescue"] - here.rescue[nearest]
        rows.append(row)
    return rows


def test_controls_rank_and_means_follow_the_protocol(model, rescue):
    everyone = expert_tables.every_expert(rescue.tables)
    assert list(everyone.mean_all) == sorted(everyone.mean_all, reverse=True)
    some = everyone[(everyone.n_active > 2) & (everyone.n_active < 12)].iloc[0]  # neither always nor never active
    found = expert_tables.rescue(rescue.tables, int(some.layer), int(some.expert))
    expected = pd.DataFrame(by_hand(rescue, int(some.layer), int(some.expert), model.top_k))
    assert some.mean_all == pytest.approx(expected.rescue.mean()) and some.n_active == expected.active.sum()
    assert list(found.facts.clean_active) == list(expected.active)
    for name, values in (
        ("rescue", expected.rescue), ("rank", expected["rank"]), ("control_random", expected.control),
        ("specificity", expected.rescue - expected.control), ("gate_matched_specificity", expected.gate),
    ):  # fmt: skip
        assert np.allclose(found.facts[name].astype(float), values, atol=1e-12, equal_nan=True), name
    lines = found.estimates.set_index("quantity")
    active_only = expected.rescue.where(expected.active)
    units = list(expected.subject)
    for name, values in (("expert_rescue", expected.rescue), ("expert_rescue_active_only", active_only)):
        wanted = stats.estimate(values.to_numpy(), units=units)
        assert lines["mean"][name] == pytest.approx(wanted.mean)
        assert (lines.ci_low[name], lines.ci_high[name]) == pytest.approx((wanted.ci_low, wanted.ci_high))
        assert lines.n[name] == wanted.n == values.notna().sum()
    assert found.values["n_active"] == expected.active.sum()
    assert found.values["first"] == (expected["rank"] == 1).sum()
    of_relation = found.facts.groupby("relation").rescue.mean()
    assert found.relations.set_index("relation").expert_rescue.to_dict() == pytest.approx(of_relation.to_dict())
    assert found.relations.n.sum() == 12 and found.relations.n_active.sum() == expected.active.sum()


@pytest.fixture(scope="module")
def knockout(model, facts, rescue, view):
    """Of an expert that is clean-active in some facts only."""
    everyone = expert_tables.every_expert(rescue.tables)
    some = everyone[(everyone.n_active > 2) & (everyone.n_active < 12)].iloc[0]
    chosen = expert_link.replace(view, layer=int(some.layer), expert=int(some.expert))
    return chosen, derive(model, expert_link.knockout_request(chosen, facts))


def without(model: MoeModel, asked: oracle.Oracle, layer: int, expert: int, positions: list[int]) -> float:
    """The clean contrast with the expert's contribution taken out at `positions`, by a plain hook."""
    record = asked.clean_run[layer]
    taken = {pos: oracle.contribution(model.model, layer, record, pos, expert) for pos in positions}

    def take_out(module, args, kwargs, output):
        hidden = oracle.first(output).clone()
        rows = hidden.view(len(asked.case.input_ids), -1)
        for pos, part in taken.items():
            rows[pos] -= part
        return oracle.like(output, hidden)

    with oracle.hooked(oracle.find_blocks(model.model)[layer], take_out):
        return contrast(oracle.clean(model.model, asked.case))


def rerouted(model: MoeModel, asked: oracle.Oracle, layer: int, expert: int, positions: list[int]) -> float:
    """The clean contrast with the expert out of the router's choice at `positions`: the weights as qwen2_moe's own
    configuration has them, from the softmax over all experts."""
    block, config = oracle.find_blocks(model.model)[layer], model.model.config
    record = asked.clean_run[layer]
    scores = torch.softmax(record.h @ block.gate.weight.T, dim=-1)
    kept = scores.clone()
    kept[positions, expert] = -1.0
    index = kept.topk(config.num_experts_per_tok, dim=-1).indices
    weight = scores.gather(1, index)
    if config.norm_topk_prob:
        weight = weight / weight.sum(-1, keepdim=True)

    def write(module, args, kwargs, output):
        hidden = oracle.first(output).clone()
        rows = hidden.view(len(asked.case.input_ids), -1)
        for pos in positions:
            routed = sum(
                w * oracle.expert_output(model.model, layer, int(e), record.h[pos])
                for e, w in zip(index[pos], weight[pos], strict=True)
            )
            rows[pos] = routed + record.shared[pos]
        return oracle.like(output, hidden)

    with oracle.hooked(block, write):
        return contrast(oracle.clean(model.model, asked.case))


@torch.no_grad()
def test_knockouts_are_what_plain_hooks_measure(model, knockout, oracles):
    view, result = knockout
    table = result.tables["knockouts"]
    assert result.values["modes"] == ["zero", "reroute"]
    assert len(table) == 12 * 4 and len(result.values["left_out"]) == 2
    changed = 0
    for number, asked in oracles.items():
        record, last = asked.clean_run[view.layer], len(asked.case.input_ids) - 1
        routed = [pos for pos in range(last + 1) if view.expert in record.active(pos)]
        clean = contrast(oracle.clean(model.model, asked.case))
        for row in table[table.fact == number].itertuples():
            positions = routed if row.place == "all" else [pos for pos in routed if pos == last]
            how = without if row.mode == "zero" else rerouted
            expected = how(model, asked, view.layer, view.expert, positions)
            assert row.positions == len(positions) and row.clean_active == (last in routed)
            assert row.contrast == pytest.approx(expected, abs=TOLERANCE)
            assert row.change == pytest.approx(expected - clean, abs=2 * TOLERANCE)
            changed += abs(row.change) > 1e-3
    assert changed >= 4


def test_own_facts_are_those_where_it_is_clean_active_at_the_last_position(rescue, knockout):
    view, result = knockout
    found = expert_tables.knockout(result.tables["knockouts"])
    patches = rescue.tables["patches"]
    own = set(patches.fact[(patches.layer == view.layer) & (patches.expert == view.expert)])
    rows = result.tables["knockouts"]
    assert set(rows.fact[rows.clean_active]) == own
    for line in found.estimates.itertuples():
        group = rows.fact.isin(own) == (line.group == expert_tables.OWN)
        mine = rows[group & (rows["mode"] == line.mode) & (rows.place == line.place)]
        assert line.mean == pytest.approx(mine.change.mean()) and line.n == len(mine)
        assert line.touched == (mine.positions > 0).sum()
        if line.group == expert_tables.OTHERS and line.place == "last":
            assert line.mean == 0
    of_relation = rows[(rows["mode"] == "zero") & (rows.place == "all")].groupby("relation").change.mean()
    lines = found.relations[(found.relations["mode"] == "zero") & (found.relations.place == "all")]
    assert lines.set_index("relation")["mean"].to_dict() == pytest.approx(of_relation.to_dict())


def test_routing_is_counted_as_by_hand(model, facts, oracles):
    chosen = [facts[number] for number in oracles]
    routed = routed_of(derive(model, routing_request(ModelSpec("ours"), facts=chosen, seed=SEED, noise=NOISE)))
    layer = 1
    first = next(iter(oracles.values())).clean_run[layer]
    expert = max(range(8), key=lambda e: sum(e in first.active(pos) for pos in range(4)))
    rows, last, at_subject = [], 0, 0
    for fact, asked in zip(chosen, oracles.values(), strict=True):
        ids, subject = asked.case.input_ids.tolist(), asked.case.subject_positions
        for pos, token_id in enumerate(ids):
            weight = asked.clean_run[layer].router_weight(pos, expert)
            in_subject = "last subject" if pos == subject[-1] else "first subject" if pos == subject[0] else "middle"
            role = (
                "last token"
                if pos == len(ids) - 1
                else in_subject
                if pos in subject
                else ("further" if pos > subject[-1] else "before subject")
            )
            rows.append((fact.case_id, fact.relation, pos, role, token_id, weight > 0, weight))
        last += expert in asked.clean_run[layer].active(len(ids) - 1)
        at_subject += expert in asked.clean_run[layer].active(subject[-1])
    expected = pd.DataFrame(rows, columns=["case_id", "relation", "pos", "role", "token_id", "routed", "weight"])
    tokens = expert_routing.routed_tokens(routed, layer, expert)
    names = ["case_id", "relation", "pos", "role", "token_id", "routed"]
    assert tokens[names].values.tolist() == expected[names].values.tolist()
    assert np.allclose(tokens.router_weight, expected.weight, atol=1e-6)
    assert 2 < expected.routed.sum() < len(expected)
    for by in ("role", "relation", "token_id"):
        wanted = expected.groupby(by).routed.mean()
        assert expert_routing.shares(tokens, [by]).set_index(by).share.to_dict() == pytest.approx(wanted.to_dict())
    assert expert_routing.clean_active(tokens) == {"last": (last, 3), "last_subject": (at_subject, 3)}
    top = expert_routing.top_prompts(tokens)
    best = expected.loc[expected.groupby("case_id").weight.idxmax()].sort_values("weight", ascending=False)
    best = best[best.routed]
    assert list(zip(top.case_id, top.pos, strict=True)) == list(zip(best.case_id, best.pos, strict=True))
    for row in top.itertuples():
        text = next(fact.text for fact in chosen if fact.case_id == row.case_id)
        assert (row.before + row.token + row.after).split() == text.split()
    frequent = expert_routing.frequent_tokens(tokens)
    counts = expected[expected.routed].token_id.value_counts()
    assert dict(zip(frequent.token_id, frequent.routed, strict=True)) == counts.to_dict()
    assert list(frequent.routed) == sorted(frequent.routed, reverse=True)


def test_a_router_that_cannot_be_driven_so_is_not_rerouted(model, facts, knockout, monkeypatch):
    view, both = knockout
    structure = dataclasses.replace(model.structure, reroutable=False)
    monkeypatch.setattr(type(model), "structure", structure)
    result = derive(model, expert_link.knockout_request(view, facts))
    assert result.values["modes"] == ["zero"]
    zero = both.tables["knockouts"][lambda table: table["mode"] == "zero"].reset_index(drop=True)
    assert np.allclose(result.tables["knockouts"].change, zero.change, atol=1e-5)


@pytest.mark.parametrize(("layer", "expert"), [(9, 0), (1, 99)])
def test_an_expert_that_is_not_there_is_refused_in_words(model, facts, layer, expert):
    with pytest.raises(InputError, match=f"no expert L{layer}E{expert:03d}"):
        derive(model, expert_link.knockout_request(ExpertView(layer=layer, expert=expert), facts))
