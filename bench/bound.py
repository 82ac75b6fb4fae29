"""The arithmetic that a heat map cannot do without, in seconds: multiplications with active weights at the rate at
which this machine multiplies matrices.

Attention scores, norms, routing, activations, memory traffic and Python are left out, so this is a lower bound.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from core.moe import MoeModel

_TOKENS = 2048  # rows of the measured products: what the engine puts through a layer at a time on a CPU


@dataclass(frozen=True)
class LayerCost:
    """Active weights of one decoder layer: those that every token needs for its keys and values (`kept`), and all the
    others that a token's own output needs (`own`), of experts the top k only."""

    kept: int
    own: int

    @property
    def all(self) -> int:
        return self.kept + self.own


def layer_cost(model: MoeModel) -> LayerCost:
    """Of the first MoE layer; the models measured here have equal layers."""
    layer, block = model.layers[model.moe_layers[0]], model.blocks[model.moe_layers[0]]
    matrices = {name: p.numel() for name, p in layer.named_parameters() if p.ndim >= 2}
    experts = sum(p.numel() for p in block.experts.parameters())
    kept = sum(size for name, size in matrices.items() if "k_proj" in name or "v_proj" in name)
    active = experts * model.top_k // model.n_experts
    return LayerCost(kept, sum(matrices.values()) - experts - kept + active)


def multiplications(
    model: MoeModel, *, n_tokens: int, positions: range, draws: int, facts: int, layers: range | None = None
) -> int:
    """Multiply-adds of heat maps: the unpatched runs, and each patched row from behind its layer and from its position
    on, in the last layer only as far as the last position needs it."""
    cost, n = layer_cost(model), model.n_layers
    unpatched = (1 + draws) * n_tokens * n * cost.all
    cells = 0
    for layer in layers or range(n - 1):
        for pos in positions if layer < n - 1 else ():
            suffix = n_tokens - pos
            cells += (n - 2 - layer) * suffix * cost.all + suffix * cost.kept + cost.own
    return facts * (unpatched + draws * cells)


def measured_rate(model: MoeModel, *, rounds: int = 5) -> float:
    """Multiply-adds per second: the best of the model's own shapes and a large square product."""
    shapes = {(model.hidden, model.hidden), (1024, 1024)}
    shapes |= {tuple(p.shape[-2:]) for p in model.blocks[model.moe_layers[0]].experts.parameters() if p.ndim == 3}
    best = 0.0
    for rows, columns in shapes:
        x, weight = torch.randn(_TOKENS, columns), torch.randn(rows, columns)
        for _ in range(rounds):
            begin = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            best = max(best, _TOKENS * rows * columns / (time.perf_counter() - begin))
    return best
