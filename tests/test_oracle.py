"""The oracle against itself and against the models: identities that hold whatever the engine does."""

from __future__ import annotations

import pytest
import torch

from tests import oracle
from tests.compare import PATCHES, Setting, oracle_of, random_fact
from tests.tiny_models import FAMILIES, TOP_K, build

SETTING = Setting(draws=1)
FACT = random_fact(5)


@pytest.fixture(scope="module", params=list(FAMILIES))
def asked(request) -> oracle.Oracle:
    return oracle_of(build(request.param), FACT, SETTING)


def family_of(asked: oracle.Oracle) -> str:
    return asked.model.config.model_type


def test_blocks_are_where_the_family_has_them(asked):
    assert tuple(oracle.find_blocks(asked.model)) == FAMILIES[family_of(asked)].moe_layers


def test_contributions_and_shared_add_up_to_the_block_output(asked):
    for records in (asked.clean_run, *asked.corrupt_runs):
        for layer, seen in records.items():
            for pos in range(len(seen.y)):
                active = seen.active(pos)
                assert len(active) == TOP_K
                total = sum(oracle.contribution(asked.model, layer, seen, pos, e) for e in active)
                if seen.shared is not None:
                    total = total + seen.shared[pos]
                assert (total - seen.y[pos]).abs().max() <= 2e-6 * seen.y.abs().max()


def test_router_weights_are_those_of_the_family(asked):
    for seen in asked.clean_run.values():
        sums = seen.weight.sum(-1)
        ones = torch.allclose(sums, torch.ones_like(sums), atol=1e-5)
        assert ones == FAMILIES[family_of(asked)].top_k_sums_to_one


def test_shared_part_is_there_exactly_where_the_family_has_one(asked):
    has = family_of(asked) in oracle.GATED_SHARED | oracle.PLAIN_SHARED | oracle.BESIDE_SHARED
    assert all((seen.shared is not None) == has for seen in asked.clean_run.values())


def test_all_updates_together_are_the_layer_patch(asked):
    layer, pos = max(asked.clean_run), len(FACT.input_ids) - 1
    y = asked.corrupt_runs[0][layer].y[pos].clone()
    for expert in asked.experts_at(0, layer, pos):
        y += asked.expert_update(0, layer, pos, expert)
    if asked.clean_run[layer].shared is not None:
        y += asked.shared_update(0, layer, pos)
    together = oracle.patched(asked.model, asked.case, 0, layer=layer, pos=pos, y=y)
    assert together == pytest.approx(asked.layer_patch(0, layer, pos), abs=1e-5)


def test_writing_what_is_there_changes_nothing(asked):
    before = oracle.corrupt(asked.model, asked.case, 0)
    for layer, seen in asked.corrupt_runs[0].items():
        for pos in range(len(seen.y)):
            same = oracle.patched(asked.model, asked.case, 0, layer=layer, pos=pos, y=seen.y[pos])
            assert same == pytest.approx(before, abs=2e-5)


def test_positions_before_the_subject_have_nothing_to_restore(asked):
    before = oracle.corrupt(asked.model, asked.case, 0)
    for layer in asked.clean_run:
        for pos in range(FACT.subject_positions[0]):
            assert asked.layer_patch(0, layer, pos) == pytest.approx(before, abs=2e-5)


def test_corrupt_run_is_the_model_on_noised_embeddings(asked):
    embedded = asked.model.get_input_embeddings()(asked.case.input_ids).detach().clone()
    for i, position in enumerate(FACT.subject_positions):
        embedded[position] += asked.case.noise[0, i]
    with torch.no_grad():
        logits = asked.model(inputs_embeds=embedded[None], use_cache=False).logits[0, -1]
    assert oracle.corrupt(asked.model, asked.case, 0) == pytest.approx(
        (logits[FACT.true_id].item(), logits[FACT.foil_id].item()), abs=1e-5
    )


def test_no_hook_is_left_behind(asked):
    asked.table(positions=range(2, 3))
    for module in asked.model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_rounding_is_not_amplified(asked):
    """Layer outputs shaken by twice fp32's rounding step move no cell by more than 3e-5: no routing near-tie flips,
    so an error of 1e-4 is an error and not rounding."""
    positions = range(2, len(FACT.input_ids), 2)
    calm = asked.table(positions=positions)
    with oracle.shaken(asked.model, 1.2e-7):
        again = oracle.Oracle(asked.model, asked.case).table(positions=positions)
    assert calm.keys() == again.keys()
    largest = max(abs(a - b) for key in calm for a, b in zip(calm[key], again[key], strict=True))
    assert 0 < largest <= 3e-5
    assert any(kind in PATCHES for kind, *_ in calm)


@pytest.mark.parametrize("family", FAMILIES)
def test_eager_and_default_experts_agree(family):
    model, eager = build(family), build(family, experts_implementation="eager")
    assert (model.config._experts_implementation, eager.config._experts_implementation) == ("grouped_mm", "eager")
    ids = torch.tensor(FACT.input_ids)
    default = oracle.contrast(model, ids, FACT.true_id, FACT.foil_id)
    assert oracle.contrast(eager, ids, FACT.true_id, FACT.foil_id) == pytest.approx(default, abs=1e-5)


def test_noise_follows_the_rule():
    """Level × std of the whole table × the generator's normal numbers; draws come from one generator in a row."""
    model = build("mixtral")
    noise = oracle.make_noise(model, draws=3, n_subject=2, seed=11, case_id=31, level=2.5)
    generator = torch.Generator("cpu").manual_seed(42)
    table = model.model.embed_tokens.weight
    sigma = (table - table.mean()).square().sum().div(table.numel() - 1).sqrt()
    for draw in range(3):
        for token in range(2):
            expected = torch.randn(64, generator=generator) * 2.5 * sigma
            assert torch.allclose(noise[draw, token], expected, atol=1e-6)
