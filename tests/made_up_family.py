"""A family that does not exist: what a library that is newer than this project might bring.

Follows the pattern (a module with a child `experts` that takes hidden states, indices and weights) and nothing else.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts, Qwen3MoeMLP

SMALL = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_experts": 8, "num_experts_per_tok": 3,
    "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "tie_word_embeddings": False,
}  # fmt: skip


class MadeUpConfig(Qwen3MoeConfig):
    """Qwen3's fields under another name."""

    model_type = "made_up_moe"


class MadeUpExperts(Qwen3MoeExperts):
    """Other argument names."""

    def forward(self, tokens: torch.Tensor, chosen: torch.Tensor, gains: torch.Tensor) -> torch.Tensor:
        return super().forward(tokens, chosen, gains)


class MadeUpMixture(nn.Module):
    """Sigmoid scores, chosen with a bias, weights that add up to 2, a shared expert."""

    def __init__(self, config: MadeUpConfig) -> None:
        super().__init__()
        self.experts = MadeUpExperts(config)
        self.always = Qwen3MoeMLP(config, intermediate_size=config.moe_intermediate_size)
        self.chooser = nn.Linear(config.hidden_size, config.num_experts)
        self.k = config.num_experts_per_tok

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        tokens = stream.flatten(0, -2)
        scores = nn.functional.linear(tokens, self.chooser.weight).sigmoid()
        _, chosen = torch.topk(scores + self.chooser.bias, self.k, dim=-1)
        gains = scores.gather(-1, chosen)
        gains = 2 * gains / gains.sum(-1, keepdim=True)
        return (self.experts(tokens, chosen, gains) + self.always(tokens)).view_as(stream)


class MadeUpForCausalLM(Qwen3MoeForCausalLM):
    """Every second layer has a mixture."""

    config_class = MadeUpConfig

    def __init__(self, config: MadeUpConfig) -> None:
        super().__init__(config)
        for i, layer in enumerate(self.model.layers):
            layer.mlp = MadeUpMixture(config) if i % 2 else Qwen3MoeMLP(config)


def register() -> None:
    """Make the Auto classes know it."""
    AutoConfig.register(MadeUpConfig.model_type, MadeUpConfig, exist_ok=True)
    AutoModelForCausalLM.register(MadeUpConfig, MadeUpForCausalLM, exist_ok=True)
