"""Mistakes planted in the engine, one at a time: the comparison with the oracle must see each of them.

The comparison is the suite's own (tests/compare.py, as in tests/test_engine_families.py and
tests/test_engine_demo.py); the mistakes are planted in the engine's modules, not in copies.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

import pandas as pd
import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import core.base
import core.facts
import core.missing
import core.packing
import core.sweep
from core.models import load_model
from core.moe import MoeModel
from core.prompts import PreparedFact, prepare
from core.trace import trace_prepared
from tests.compare import TOLERANCE, Agreement, Setting, assert_agrees, compare, oracle_of, random_fact
from tests.tiny_models import build

WELL_ABOVE = 100 * TOLERANCE
SETTING = Setting(draws=1, seed=7)


@pytest.fixture(scope="module", params=["mixtral", "granitemoe", "qwen2_moe", "demo"])
def model(request) -> MoeModel:
    """Rows made behind their layer; rows taken through it; a shared expert and dense layers in between; trained."""
    if request.param == "demo":
        return load_model("demo", dtype="float32", device="cpu")
    return MoeModel(build(request.param))


@pytest.fixture(scope="module")
def fact(model) -> PreparedFact:
    if model.tokenizer is None:
        return random_fact(5)
    bundled = (prepare(model.tokenizer, fact) for fact in core.facts.bundled())
    return next(fact for fact in bundled if len(fact.subject_positions) == 2)


@pytest.fixture(scope="module")
def wanted(model, fact):
    return oracle_of(model.model, fact, SETTING).table()


@pytest.fixture
def compared(model, fact, wanted) -> Callable[[], Agreement]:
    """What the suite finds now; far off means that `assert_agrees` fails, too."""

    def compared() -> Agreement:
        frame = traced(model, fact)
        found = compare(frame, wanted, first_subject=fact.subject_positions[0])
        if found.logits > TOLERANCE:
            with pytest.raises(AssertionError):
                assert_agrees(frame, wanted, first_subject=fact.subject_positions[0])
        return found

    return compared


def traced(model: MoeModel, fact: PreparedFact) -> pd.DataFrame:
    """The engine's frame."""
    settings = {"noise": SETTING.noise, "draws": SETTING.draws, "seed": SETTING.seed, "experts": "all"}
    return trace_prepared(model, [fact], **settings)[0].frame


def test_nothing_planted_nothing_found(compared):
    found = compared()
    assert not found.missing and found.logits <= TOLERANCE and found.relative <= TOLERANCE


@pytest.mark.parametrize("kind", ["layer_patch", "expert_patch"])
@pytest.mark.parametrize("by", [-1, 1])
def test_position_off_by_one(fact, compared, monkeypatch, kind, by):
    """The row of position t is patched at its neighbour."""
    real, last = getattr(core.missing, kind), len(fact.input_ids) - 1

    def patch(**where):
        return real(**{**where, "pos": min(max(where["pos"] + by, 0), last)})

    monkeypatch.setattr(core.missing, kind, patch)
    assert compared().logits > WELL_ABOVE


def test_neighbouring_layer(compared, monkeypatch):
    """The clean value comes from the MoE layer below."""
    below: dict[int, torch.Tensor] = {}
    real_step = core.base.BaseRuns.step

    def step(self, layer, company=None):
        base = real_step(self, layer, company)
        if base.y:
            clean, own = 0, dict(base.y)
            if below:
                base.y[clean] = below[clean]
            below.update(own)
        return base

    monkeypatch.setattr(core.base.BaseRuns, "step", step)
    assert compared().logits > WELL_ABOVE


def test_unweighted_contribution(compared, monkeypatch):
    """Expert_e(h) without its router weight."""
    real = core.base.contributions

    def unweighted(block, x, index, weight, *rest):
        return real(block, x, index, torch.ones_like(weight), *rest)

    monkeypatch.setattr(core.base, "contributions", unweighted)
    found = compared()
    assert found.logits > WELL_ABOVE
    assert found.worst[0] == "expert"


def test_weights_of_another_token(compared, monkeypatch):
    """Each expert's output is weighted as at another place of the batch."""
    real = core.base.contributions

    def mixed_up(block, x, index, weight, *rest):
        return real(block, x, index, weight.flip(0), *rest)

    monkeypatch.setattr(core.base, "contributions", mixed_up)
    assert compared().logits > WELL_ABOVE


def test_stale_keys_and_values(compared):
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
        found = compared()
    assert found.logits > WELL_ABOVE


@contextlib.contextmanager
def attention_function(function: Callable):
    """Register another function under the engine's name; put the engine's back."""
    ALL_ATTENTION_FUNCTIONS.register(core.packing.ATTENTION_NAME, function)
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS.register(core.packing.ATTENTION_NAME, core.packing.packed_attention)


def test_prefix_of_the_clean_run(compared, monkeypatch):
    """A patched row sees the clean run's tokens before it instead of its own corrupt ones."""
    prefixes_alone, pieces_of = core.sweep._Live._prefixes, core.sweep._Live._pieces

    def prefixes(self, base, slices):
        clean = {**base.h_in, 1: base.h_in[0]}
        return prefixes_alone(self, dataclasses.replace(base, h_in=clean), slices)

    def pieces(self, layer, slices, where):
        # in the call of the unpatched runs themselves the clean row lies beside the corrupt one
        where = {n: (piece, {**rows, 1: rows.get(0, rows[1])}) for n, (piece, rows) in where.items()}
        return pieces_of(self, layer, slices, where)

    monkeypatch.setattr(core.sweep._Live, "_prefixes", prefixes)
    monkeypatch.setattr(core.sweep._Live, "_pieces", pieces)
    assert compared().logits > WELL_ABOVE


def test_noise_left_behind(model, compared, monkeypatch):
    """The hook that noises the subject stays on the embedding: the first trace may be right, the next is not."""
    embedding = model.model.get_input_embeddings()
    monkeypatch.setattr(core.base, "noised", leaking_noise)
    try:
        compared()
        assert embedding._forward_hooks
        found = compared()
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


def test_patch_left_behind(model, fact, compared):
    """A hook of an earlier patch stays on a MoE block (as `core.hooks.hooks` without its `finally` would leave it)."""
    block = next(iter(model.blocks.values())).module

    def change(module, args, output):
        output = output.clone()
        rows = output.view(-1, output.shape[-1])
        if len(rows) > fact.subject_positions[0]:
            rows[fact.subject_positions[0]] += 1.0
        return output

    handle = block.register_forward_hook(change)
    try:
        found = compared()
    finally:
        handle.remove()
    assert found.logits > WELL_ABOVE
    assert compared().logits <= TOLERANCE


def test_row_that_is_missing(model, fact, wanted):
    """A frame without one of the oracle's rows does not agree, however right the others are."""
    frame = traced(model, fact)
    less = frame.drop(index=frame.index[frame.kind == "expert"][3])
    with pytest.raises(AssertionError, match="lacks 1 rows"):
        assert_agrees(less, wanted, first_subject=fact.subject_positions[0])


def test_experts_mixed_up(compared, monkeypatch):
    """Every expert patch is its neighbour's."""
    real = core.missing.expert_patch

    def neighbour(**where):
        expert = where["expert"]
        return real(**where if isinstance(expert, str) else {**where, "expert": expert ^ 1})

    monkeypatch.setattr(core.missing, "expert_patch", neighbour)
    assert compared().logits > WELL_ABOVE
