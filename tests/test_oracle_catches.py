"""Mistakes planted in the engine, one at a time: the comparison with the oracle must see each of them.

The comparison is the suite's own (tests/compare.py, as in tests/test_engine_families.py and
tests/test_engine_demo.py); the mistakes are planted in the engine's modules, not in copies.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import core.base
import core.missing
import core.packing
from core.moe import MoeModel
from core.trace import trace_prepared
from tests.compare import TOLERANCE, Setting, assert_agrees, compare, oracle_of, random_fact
from tests.tiny_models import build

WELL_ABOVE = 100 * TOLERANCE
SETTING = Setting(draws=1, seed=7)
FACT = random_fact(5)


@pytest.fixture(scope="module", params=["mixtral", "granitemoe", "qwen2_moe"])
def model(request) -> MoeModel:
    """Rows made behind their layer; rows taken through it; a shared expert and dense layers in between."""
    return MoeModel(build(request.param))


@pytest.fixture(scope="module")
def wanted(model):
    return oracle_of(model.model, FACT, SETTING).table()


def compared(model: MoeModel, wanted):
    """What the suite finds now."""
    frame = trace_prepared(
        model, [FACT], noise=SETTING.noise, draws=SETTING.draws, seed=SETTING.seed, experts="all"
    )[0].frame
    found = compare(frame, wanted, first_subject=FACT.subject_positions[0])
    if found.logits > TOLERANCE:
        with pytest.raises(AssertionError):
            assert_agrees(frame, wanted, first_subject=FACT.subject_positions[0])
    return found


def test_nothing_planted_nothing_found(model, wanted):
    found = compared(model, wanted)
    assert not found.missing and found.logits <= TOLERANCE and found.relative <= TOLERANCE


def other_place(change: Callable[[dict], dict]) -> Callable:
    """A `layer_patch` or `expert_patch` that takes its value from somewhere else and writes it where it should."""

    def wrap(real):
        def patch(**where):
            right, wrong = real(**where), real(**{**where, **change(where)})
            steps = tuple(
                dataclasses.replace(step, layer=other.layer, positions=other.positions)
                for step, other in zip(right.steps, wrong.steps, strict=True)
            )
            return dataclasses.replace(right, steps=steps)

        return patch

    return wrap


@pytest.mark.parametrize("kind", ["layer_patch", "expert_patch"])
@pytest.mark.parametrize("by", [-1, 1])
def test_position_off_by_one(model, wanted, monkeypatch, kind, by):
    """The row of position t is patched at its neighbour."""
    last = len(FACT.input_ids) - 1
    plant = other_place(lambda where: {"pos": min(max(where["pos"] + by, 0), last)})
    monkeypatch.setattr(core.missing, kind, plant(getattr(core.missing, kind)))
    assert compared(model, wanted).logits > WELL_ABOVE


def test_neighbouring_layer(model, wanted, monkeypatch):
    """The clean value comes from the MoE layer below."""
    import core.sweep

    below: dict[int, torch.Tensor] = {}
    real_step = core.base.BaseRuns.step

    def step(self, layer):
        base = real_step(self, layer)
        if base.y:
            clean, own = 0, dict(base.y)
            if below:
                base.y[clean] = below[clean]
            below.update(own)
        return base

    monkeypatch.setattr(core.base.BaseRuns, "step", step)
    assert compared(model, wanted).logits > WELL_ABOVE


def test_unweighted_contribution(model, wanted, monkeypatch):
    """Expert_e(h) without its router weight."""
    real = core.base.contributions

    def unweighted(block, x, index, weight, *rest):
        return real(block, x, index, torch.ones_like(weight), *rest)

    monkeypatch.setattr(core.base, "contributions", unweighted)
    found = compared(model, wanted)
    assert found.logits > WELL_ABOVE
    assert found.worst[0] == "expert"


def test_weight_of_the_corrupt_run_for_the_clean_one(model, wanted, monkeypatch):
    """Each expert's clean output is weighted as in the corrupt run (one expert and slot at a time)."""
    real = core.base.contributions

    def mixed_up(block, x, index, weight, *rest):
        return real(block, x, index, weight.flip(0), *rest)

    monkeypatch.setattr(core.base, "contributions", mixed_up)
    assert compared(model, wanted).logits > WELL_ABOVE


def test_stale_keys_and_values(model, wanted):
    """Later positions go on attending to the corrupt keys and values of the patched token."""
    real = core.packing.packed_attention

    def stale(module, query, key, value, attention_mask, **kwargs):
        plan = core.packing._current.plan
        if plan is not None:
            key, value = key.clone(), value.clone()
            for piece, offset in zip(plan.pieces, plan.offsets, strict=True):
                if piece.prefix is None:
                    continue
                source, rows = piece.prefix
                origin, at = plan.pieces[source], plan.offsets[source]
                if piece.start >= origin.span:
                    continue  # the last position: nobody attends to it but itself
                for i, row in enumerate(rows.tolist()):
                    here, there = offset + i * piece.span, at + row * origin.span + piece.start
                    key[:, :, here], value[:, :, here] = key[:, :, there], value[:, :, there]
        return real(module, query, key, value, attention_mask, **kwargs)

    with attention_function(stale):
        found = compared(model, wanted)
    assert found.logits > WELL_ABOVE


@contextlib.contextmanager
def attention_function(function: Callable):
    """Register another function under the engine's name; put the engine's back."""
    ALL_ATTENTION_FUNCTIONS.register(core.packing.ATTENTION_NAME, function)
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS.register(core.packing.ATTENTION_NAME, core.packing.packed_attention)


def test_prefix_of_the_clean_run(model, wanted, monkeypatch):
    """A patched row sees the clean run's tokens before it instead of its own corrupt ones."""
    import core.sweep

    real = core.sweep._Live._pieces

    def pieces(self, base, slices):
        clean = {**base.h_in, 1: base.h_in[0]}
        return real(self, dataclasses.replace(base, h_in=clean), slices)

    monkeypatch.setattr(core.sweep._Live, "_pieces", pieces)
    assert compared(model, wanted).logits > WELL_ABOVE


def test_noise_left_behind(model, wanted, monkeypatch):
    """The hook that noises the subject stays on the embedding: the first trace may be right, the next is not."""
    embedding = model.model.get_input_embeddings()
    monkeypatch.setattr(core.base, "noised", leaking_noise)
    try:
        compared(model, wanted)
        assert embedding._forward_hooks
        found = compared(model, wanted)
    finally:
        embedding._forward_hooks.clear()
    assert found.logits > WELL_ABOVE


@contextlib.contextmanager
def leaking_noise(embedding, noise, positions):
    """As `core.corruption.noised`, but it forgets to remove its hook (which skips what is not there)."""

    def add(module, args, output):
        output = output.clone()
        for row, (values, where) in enumerate(zip(noise, positions, strict=True)):
            if values is not None and row < output.shape[0] and max(where) < output.shape[1]:
                output[row, list(where)] += values
        return output

    embedding.register_forward_hook(add)
    yield


def test_patch_left_behind(model, wanted):
    """A hook of an earlier patch stays on a MoE block (as `core.hooks.hooks` without its `finally` would leave it)."""
    block = next(iter(model.blocks.values())).module

    def change(module, args, output):
        output = output.clone()
        output.view(-1, output.shape[-1])[FACT.subject_positions[0]] += 1.0
        return output

    handle = block.register_forward_hook(change)
    try:
        found = compared(model, wanted)
    finally:
        handle.remove()
    assert found.logits > WELL_ABOVE
    assert compared(model, wanted).logits <= TOLERANCE


def test_row_that_is_missing(model, wanted):
    """A frame without one of the oracle's rows does not agree, however right the others are."""
    frame = trace_prepared(model, [FACT], noise=3.0, draws=1, seed=SETTING.seed, experts="all")[0].frame
    with pytest.raises(AssertionError, match="lacks 1 rows"):
        assert_agrees(frame.drop(index=frame.index[frame.kind == "expert"][3]), wanted, first_subject=2)


def test_experts_mixed_up(model, wanted, monkeypatch):
    """Every expert patch is its neighbour's."""
    real = core.missing.expert_patch

    def neighbour(**where):
        expert = where["expert"]
        return real(**where if isinstance(expert, str) else {**where, "expert": expert ^ 1})

    monkeypatch.setattr(core.missing, "expert_patch", neighbour)
    assert compared(model, wanted).logits > WELL_ABOVE
