"""Effects on the whole vocabulary against one gradient per token (`core.direct`), over heads of several kinds."""

from __future__ import annotations

import pytest
import torch
from transformers import CONFIG_MAPPING

from core.direct import directions
from core.lens import vocabulary_effects
from core.moe import MoeModel
from core.shrink import shrunken_model
from tests import tiny_models
from tests.test_direct import Capped, Odd


def build(head: str) -> MoeModel:
    if head == "capped":
        return MoeModel(Capped(tiny_models.build("qwen3_moe")))
    if head in tiny_models.FAMILIES:
        return MoeModel(tiny_models.build(head))
    return MoeModel(shrunken_model(CONFIG_MAPPING[head]()))


@pytest.mark.parametrize("head", ["qwen3_moe", "granitemoe", "phimoe", "capped", "qwen3_next", "beam"])
def test_effects_are_the_means_of_the_gradients(head: str) -> None:
    """A norm with a bias (phimoe), zero-centred ones, soft-caps, logit scales."""
    model = build(head)
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(5, model.hidden, generator=generator) * torch.tensor([[0.5], [1], [2], [4], [9]])
    vectors = torch.randn(3, model.hidden, generator=generator) * torch.tensor([[1e-3], [1], [40]])
    got = vocabulary_effects(model, states, vectors)
    n = got.shape[1]
    ids = torch.arange(min(n, 40))
    along = directions(model, states, ids.expand(len(states), -1)).mean(0)
    want = vectors @ along.T
    for mine, right in zip(got[:, ids], want, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-3, atol=1e-4 * right.abs().max().item())
    assert want.abs().amax(1).min() > 1e-4


def test_what_has_no_effect_to_tell() -> None:
    model = build("qwen3_moe")
    states = torch.randn(3, model.hidden, generator=torch.Generator().manual_seed(2))
    some = torch.stack([torch.zeros(model.hidden), torch.ones(model.hidden)])
    got = vocabulary_effects(model, states, some)
    assert got[0].isnan().all() and got[1].isfinite().all()
    assert vocabulary_effects(model, states[:0], some).isnan().all()
    module = tiny_models.build("qwen3_moe")
    module.model.norm = Odd()
    assert vocabulary_effects(MoeModel(module), states, some).isnan().all()
