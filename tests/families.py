"""All sparse-MoE causal LMs of the installed transformers, found by walking its Auto classes, as tiny random models.

Knows configurations and modeling files; nothing of what the engine makes of them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from core.shrink import shrunken_config

LAYERS = 6

SWITCHED_ON: dict[str, Any] = {
    "enable_moe_block": True, "is_moe": True, "num_experts": 8, "n_routed_experts": 8, "num_experts_per_tok": 2,
    "top_k_experts": 2, "moe_intermediate_size": 32, "n_shared_experts": 1, "shared_intermediate_size": 32,
    "final_logit_softcapping": 30.0,
}  # fmt: skip
"""What default configurations leave out: set wherever a configuration has the field and it says none or off."""

SCALED: dict[str, float] = {
    "residual_multiplier": 0.5, "embedding_multiplier": 3.0, "logits_scaling": 2.0, "attention_multiplier": 0.2,
    "routed_scaling_factor": 1.5,
}  # fmt: skip
"""Multipliers that would not show at their default of one."""

NEEDED: dict[str, dict[str, Any]] = {
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0}},
    "hunyuan_v1_moe": {"num_experts": 8, "moe_topk": 2, "head_dim": 128},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "minimax_m3_vl_text": {"layer_types": ["full_attention", "minimax_m3_sparse"] * 30},
    "nemotron_h": {"layers_block_type": ["moe", "mamba", "mlp", "moe", "attention", "moe"]},
    "qwen4_exp_text": {
        "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 256, "indexer_budget": 2048,
        "indexer_compress_ratio": 4,
    },
}  # fmt: skip
"""Fields without which a configuration of the family cannot be built, or has no experts to speak of."""


def discover() -> dict[str, str]:
    """{model type: causal LM class} of every family whose modeling file selects experts by top-k.

    A type whose text part is a family of its own (`x` and `x_text`, one class) counts once.
    """
    choosing: set[str] = set()
    for file in (Path(transformers.__file__).parent / "models").glob("*/modeling_*.py"):
        source = file.read_text("utf-8")
        if "topk" in source and re.search("expert", source, re.IGNORECASE):
            choosing |= set(re.findall(r"^class (\w+)", source, re.MULTILINE))
    found = {kind: name for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items() if name in choosing}
    return {kind: name for kind, name in found.items() if f"{kind}_text" not in found or not _takes_text(kind)}


def _takes_text(kind: str) -> bool:
    config = CONFIG_MAPPING[kind]
    return MODEL_FOR_CAUSAL_LM_MAPPING[config].config_class is not config


def config_of(kind: str) -> Any:
    """A small configuration of the family with experts in it."""
    config = CONFIG_MAPPING[kind]
    given = {**_switches(config().get_text_config()), **NEEDED.get(kind, {})}
    whole = config(text_config=given) if "text_config" in config.sub_configs else config(**given)
    small = shrunken_config(whole, layers=LAYERS)
    small.get_text_config().tie_word_embeddings = small.tie_word_embeddings = False
    return small


def _switches(default: Any) -> dict[str, Any]:
    data = default.to_dict()
    on = {name: value for name, value in SWITCHED_ON.items() if name in data and not data[name]}
    return on | {name: value for name, value in SCALED.items() if data.get(name) == 1}


def build(kind: str, seed: int = 0) -> PreTrainedModel:
    """A random fp32 model of the family in eval mode, the same for the same seed. Raises what transformers raises."""
    return random_model(config_of(kind), seed)


def random_model(config: Any, seed: int = 0) -> PreTrainedModel:
    """A random fp32 model of this configuration, with everything away from where it starts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    parameter.normal_(0, 0.15)
                else:
                    parameter.add_(torch.randn(parameter.shape), alpha=0.1)  # norms, biases: away from 0 and 1
    return model
