"""Tiny random models of real transformers families, for tests: four layers or so, hidden 64, eight experts, top-2.

They know nothing of ExpertScope. Every family has what makes it special: dense layers mixed in, shared
experts, group-limited routing, biases, sinks, sliding windows, linear attention, multipliers. Weights are
random and large enough that patches move the logits; inputs are token ids, there is no tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 256
HIDDEN = 64
N_EXPERTS = 8
TOP_K = 2

COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "num_experts_per_tok": TOP_K,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "use_cache": False,
}


@dataclass(frozen=True)
class Family:
    """How a tiny model of one family is made.

    `config`: what differs from `COMMON`; `moe_layers`: decoder layers that have experts (the others are
    dense); `top_k_sums_to_one`: the router weights of a token add up to 1; `embedding`, `mixer`, `down`: std of
    the random input embeddings, of the attention (or other token mixer) and of the experts' last matrix.
    """

    config: dict[str, Any]
    moe_layers: tuple[int, ...] = (0, 1, 2, 3)
    top_k_sums_to_one: bool = True
    embedding: float = 0.15
    mixer: float = 0.2
    down: float = 0.4


GRANITE = {
    "num_local_experts": N_EXPERTS,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.0625,
    "logits_scaling": 6.0,
}

MLA = {"num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 16} | {
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}

FAMILIES: dict[str, Family] = {
    "mixtral": Family({"num_local_experts": N_EXPERTS}),
    "qwen3_moe": Family(
        {
            "num_experts": N_EXPERTS,
            "head_dim": 16,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [1],
        },
        moe_layers=(0, 2, 3),
    ),
    "qwen2_moe": Family(
        {
            "num_hidden_layers": 5,
            "num_experts": N_EXPERTS,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 40,
            "norm_topk_prob": False,
            "decoder_sparse_step": 2,
            "qkv_bias": True,
        },
        moe_layers=(1, 3),
        top_k_sums_to_one=False,
    ),
    "olmoe": Family({"num_experts": N_EXPERTS, "norm_topk_prob": False, "clip_qkv": 2.0}, top_k_sums_to_one=False),
    "deepseek_v3": Family(
        {
            **MLA,
            "n_routed_experts": N_EXPERTS,
            "n_shared_experts": 1,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
            "n_group": 2,
            "topk_group": 1,
            "routed_scaling_factor": 1.5,
            "norm_topk_prob": True,
            "num_mtp_layers": 0,
        },
        moe_layers=(1, 2, 3),
        top_k_sums_to_one=False,
        mixer=0.3,
    ),
    "granitemoe": Family(GRANITE, embedding=0.02, mixer=0.4, down=1.6),
    "granitemoeshared": Family({**GRANITE, "shared_intermediate_size": 40}, embedding=0.02, mixer=0.4, down=1.6),
    "gpt_oss": Family(
        {
            "num_local_experts": N_EXPERTS,
            "head_dim": 16,
            "sliding_window": 4,
            "attention_bias": True,
            "max_position_embeddings": 131072,
            "swiglu_limit": 1.5,
        },
    ),
    "glm4_moe": Family(
        {
            "head_dim": 16,
            "n_routed_experts": N_EXPERTS,
            "n_shared_experts": 1,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 1.5,
            "norm_topk_prob": True,
            "use_qk_norm": True,
            "num_mtp_layers": 0,
        },
        moe_layers=(1, 2, 3),
        top_k_sums_to_one=False,
    ),
    "phimoe": Family(
        {
            "num_local_experts": N_EXPERTS,
            "attention_bias": True,
            "lm_head_bias": True,
            "router_jitter_noise": 0.01,
            "input_jitter_noise": 0.0,
        },
        top_k_sums_to_one=False,
    ),
    "ernie4_5_moe": Family(
        {
            "moe_num_experts": N_EXPERTS,
            "moe_k": TOP_K,
            "moe_intermediate_size": 32,
            "moe_num_shared_experts": 2,
            "moe_layer_start_index": 1,
            "tie_word_embeddings": True,
        },
        moe_layers=(1, 2, 3),
        embedding=0.3,
        mixer=0.3,
        down=0.8,
    ),
    "qwen3_next": Family(
        {
            "num_experts": N_EXPERTS,
            "head_dim": 16,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 40,
            "norm_topk_prob": True,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
        },
        embedding=0.4,
        mixer=0.15,
    ),
    "jamba": Family(
        {
            "num_experts": N_EXPERTS,
            "attn_layer_period": 2,
            "attn_layer_offset": 0,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 8,
        },
        moe_layers=(1, 3),
        embedding=0.3,
        down=1.0,
        top_k_sums_to_one=False,
    ),
}
"""The families that the engine must agree with the oracle on; `model_type` is the key."""


def config_of(family: str) -> Any:
    """The transformers configuration of the tiny model of `family`."""
    values = {k: v for k, v in COMMON.items() if not (family == "ernie4_5_moe" and k == "num_experts_per_tok")}
    return AutoConfig.for_model(family, **{**values, **FAMILIES[family].config})


def build(family: str, seed: int = 0, *, experts_implementation: str | None = None) -> PreTrainedModel:
    """A random fp32 model of `family` in eval mode, the same for the same seed.

    `experts_implementation`: `eager`, or None for the default of transformers.
    """
    options = {} if experts_implementation is None else {"experts_implementation": experts_implementation}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config_of(family), **options).float().eval()
    randomise(model, FAMILIES[family], seed)
    return model


@torch.no_grad()
def randomise(model: PreTrainedModel, family: Family, seed: int) -> None:
    """Overwrite all weights: matrices normal, vectors (norms, biases, decay rates) moved away from 0 and 1."""
    generator = torch.Generator("cpu").manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1 or name.endswith(("A_log", "proj_bias")):
            parameter.add_(0.1 * noise)
        else:
            parameter.copy_(std_of(name, family) * noise)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(0.05 * torch.randn(buffer.shape, generator=generator))


def std_of(name: str, family: Family) -> float:
    """Std of the random matrix called `name`."""
    if "embed_tokens" in name:
        return family.embedding
    if "lm_head" in name:
        return 2.0 if family.config.get("logits_scaling") else 0.4
    if "e_score_correction_bias" in name:
        return 0.05
    if "conv1d" in name:
        return 0.5
    if any(part in name for part in ("self_attn", "linear_attn", "mamba")):
        return family.mixer
    if name.endswith(("experts.down_proj", "output_linear.weight")) or "shared_expert" in name and "down" in name:
        return family.down
    return 0.15
