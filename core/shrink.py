"""A tiny fp32 copy of a model's own configuration, with random weights: everything structural, nothing large.

Used to hold the sweep against naive hooks within seconds, whatever the size of the real model. Structural switches
(normalisations, scoring functions, multipliers, layer patterns, sliding windows) stay as they are.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

_LAYERS = 8
_SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "ffn_hidden_size": 96, "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32, "moe_shared_expert_intermediate_size": 32, "shared_intermediate_size": 32,
    "expert_ffn_hidden_size": 32, "vocab_size": 256, "vocab_size_per_layer_input": 256, "num_attention_heads": 4,
    "head_dim": 16, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
    "v_head_dim": 16, "num_experts": 8, "num_local_experts": 8, "n_routed_experts": 8, "moe_num_experts": 8,
    "num_experts_per_tok": 4, "moe_topk": 4, "moe_k": 4, "top_k_experts": 4, "n_group": 2, "topk_group": 1,
    "sliding_window": 5, "index_topk": 4,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_num_heads": 8,
    "mamba_head_dim": 16, "ssm_state_size": 8, "mamba_dt_rank": 8, "chunk_size": 8, "mamba_chunk_size": 8,
    "num_nextn_predict_layers": 0, "num_mtp_layers": 0,
}  # fmt: skip
"""Sizes of the copy. A field is only ever made smaller, and only where the configuration has it. Windows and index
sizes are smaller than the checks' prompts, so that what they do to longer prompts shows."""

_WEIGHT_STD = 0.15  # for width 64: patches move the contrast by tenths of a logit, so that errors show


def shrunken_config(config: Any) -> Any:
    """A copy of a text configuration with small sizes. Raises whatever the configuration class objects to."""
    data = copy.deepcopy(config.to_dict())
    old_layers = int(config.num_hidden_layers)
    layers = min(old_layers, _LAYERS)
    rotary = (int(data.get("head_dim") or 0) or config.hidden_size // config.num_attention_heads) // 2
    for name, size in _SIZES.items():
        if isinstance(data.get(name), int) and not isinstance(data[name], bool) and data[name] > size:
            data[name] = size
    heads = data.get("num_key_value_heads")
    if isinstance(heads, int):
        same = heads == config.num_attention_heads
        data["num_key_value_heads"] = data["num_attention_heads"] if same else min(heads, 2)
    rope = data.get("qk_rope_head_dim")  # latent attention: the other head sizes follow from two of them
    if isinstance(rope, int):
        data.update({name: rope for name in ("head_dim",) if data.get(name) is not None})
        data.update({name: rope + data["qk_nope_head_dim"] for name in ("qk_head_dim",) if data.get(name) is not None})
    data["num_hidden_layers"] = layers
    for name, value in data.items():
        if isinstance(value, list) and len(value) == old_layers:
            data[name] = value[:layers]
    half = (data.get("head_dim") or data["hidden_size"] // data["num_attention_heads"]) // 2
    data = _shorten_rotary(data, rotary, half)
    data.update(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    for name in ("quantization_config", "torch_dtype", "dtype", "architectures", "transformers_version"):
        data.pop(name, None)
    return type(config).from_dict(data)


def _shorten_rotary(value: Any, old: int, new: int) -> Any:
    """Per-frequency lists of rotary settings follow the head size; multimodal sections keep their proportions."""
    if isinstance(value, dict):
        out = {}
        for name, item in value.items():
            if name in ("short_factor", "long_factor") and isinstance(item, list):
                out[name] = item[:new]
            elif name == "mrope_section" and isinstance(item, list):
                parts = [max(1, part * new // max(1, old)) for part in item]
                parts[0] += new - sum(parts)
                out[name] = parts
            else:
                out[name] = _shorten_rotary(item, old, new)
        return out
    return value


def shrunken_model(config: Any, *, seed: int = 0, attention: str | None = None) -> nn.Module:
    """The copy as a model in evaluation mode, fp32, on the CPU, weights drawn so that patches matter."""
    small = shrunken_config(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(small, dtype=torch.float32, attn_implementation=attention)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.is_floating_point() and parameter.ndim >= 2:
                    parameter.normal_(0, _WEIGHT_STD)
    return model.eval()
