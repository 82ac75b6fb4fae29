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
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

_LAYERS = 8
_SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "intermediate_size_mlp": 96, "ffn_hidden_size": 96,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "shared_experts_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32, "shared_intermediate_size": 32, "expert_ffn_hidden_size": 32,
    "moe_latent_size": 32, "vocab_size": 256, "vocab_size_per_layer_input": 256, "hidden_size_per_layer_input": 16,
    "num_attention_heads": 4, "head_dim": 16, "kv_channels": 16, "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2, "swa_head_dim": 16, "q_lora_rank": 24, "kv_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16,
    "num_experts": 8, "num_local_experts": 8, "n_routed_experts": 8, "moe_num_experts": 8, "zero_expert_num": 4,
    "num_experts_per_tok": 4, "moe_topk": 4, "moe_top_k": 4, "moe_k": 4, "top_k_experts": 4, "n_group": 2,
    "topk_group": 1,
    "sliding_window": 5, "attention_chunk_size": 5, "index_topk": 4, "index_block_size": 2,
    "index_topk_blocks": 2, "index_n_heads": 2, "index_head_dim": 16,
    "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 4, "hc_lowrank": 16,
    "ple_embed_dim": 64, "ngram_vocab_size_base": 256,
    "linear_num_heads": 4, "linear_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8,
    "mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 8, "mamba_dt_rank": 8, "chunk_size": 8,
    "mamba_chunk_size": 8, "num_nextn_predict_layers": 0, "num_mtp_layers": 0,
}  # fmt: skip
"""Sizes of the copy. A field is only ever made smaller, and only where the configuration has it (under this name or
its own for the same thing). Windows and index sizes are smaller than the checks' prompts, so that what they do to
longer prompts shows."""

_WEIGHT_STD = 0.15  # for width 64: patches move the contrast by tenths of a logit, so that errors show
_VECTOR_STD = 0.1


def shrunken_config(config: Any, *, layers: int = _LAYERS) -> Any:
    """A copy of a configuration with small sizes and at most `layers` layers, of its text part where it has others.

    Raises whatever the configuration class objects to.
    """
    text = config.get_text_config()
    if text is config:
        return _shrunken(config, layers)
    small = _shrunken(text, layers)
    if MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].config_class is type(text):
        return small
    whole = copy.deepcopy(config)  # a model that reads images too: without that part
    for name in config.sub_configs:
        setattr(whole, name, small if name == "text_config" else None)
    return whole


def _shrunken(config: Any, most: int) -> Any:
    names = dict(getattr(config, "attribute_map", None) or {})
    data = copy.deepcopy(config.to_dict())

    def field(name: str) -> str:
        return name if name in data else names.get(name, name)

    layers_before = int(config.num_hidden_layers)
    layers = min(layers_before, most)
    before = _head_sizes(data, field)
    _shrink_sizes(data, names)
    if field("num_hidden_layers") in data:
        data[field("num_hidden_layers")] = layers
    elif isinstance(data.get("num_layers"), int):  # counted otherwise: so many for each of these
        data["num_layers"] = max(1, data["num_layers"] * layers // layers_before)
    for name, value in data.items():
        if isinstance(value, list) and len(value) == layers_before:
            data[name] = value[:layers]
    special = data.get("per_layer_config")
    if isinstance(special, dict):  # what single layers have instead of the common sizes
        kept = {str(int(at)): values for at, values in special.items() if int(at) < layers}
        for values in kept.values():
            _shrink_sizes(values, names)
        data["per_layer_config"] = kept
    after = _head_sizes(data, field)
    data = _shorten_rotary(data, before // 2, after // 2)
    data.update(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    for name in ("quantization_config", "torch_dtype", "dtype", "architectures", "transformers_version"):
        data.pop(name, None)
    return type(config).from_dict(data)


def _head_sizes(data: dict[str, Any], field: Any) -> int:
    """Size of an attention head."""
    own = data.get("head_dim")
    return own if isinstance(own, int) and own else data[field("hidden_size")] // data[field("num_attention_heads")]


def _shrink_sizes(data: dict[str, Any], names: dict[str, str]) -> None:
    """Make the fields of a configuration, and of what is nested in it, small; in place."""
    heads_field = names.get("num_attention_heads", "num_attention_heads")
    heads_before = data.get(heads_field)
    rotary_head = data.get("head_dim") == data.get("qk_rope_head_dim")
    for name, size in _SIZES.items():
        for known in dict.fromkeys((name, names.get(name, name))):
            value = data.get(known)
            if isinstance(value, int) and not isinstance(value, bool) and value > size:
                data[known] = size
    for known in ("num_key_value_heads", "kv_n_heads"):
        heads = data.get(known)
        if isinstance(heads, int):
            same = heads == heads_before
            data[known] = data[heads_field] if same else min(heads, 2)
    rope = data.get("qk_rope_head_dim")  # latent attention: the other head sizes follow from two of them
    if isinstance(rope, int) and isinstance(data.get("qk_nope_head_dim"), int):
        both = rope + data["qk_nope_head_dim"]
        data.update({name: size for name, size in (("qk_head_dim", both), ("head_dim", rope if rotary_head else both))
                     if data.get(name) is not None})  # fmt: skip
    for name in ("attn_config", "ffn_config"):
        if isinstance(data.get(name), dict):
            _shrink_sizes(data[name], names)
            if isinstance(data[name].get("hidden_size"), int):
                data[name]["hidden_size"] = _SIZES["hidden_size"]


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


def shrunken_model(config: Any, *, seed: int = 0, attention: str | None = None, layers: int = _LAYERS) -> nn.Module:
    """The copy as a model in evaluation mode, fp32, on the CPU, weights drawn so that patches matter."""
    small = shrunken_config(config, layers=layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(small, dtype=torch.float32, attn_implementation=attention)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.is_floating_point() and parameter.ndim >= 2:
                    parameter.normal_(0, _WEIGHT_STD)
                elif parameter.is_floating_point():  # norms, biases, gates: what stands at 0 or 1 hides mistakes
                    parameter.add_(torch.randn(parameter.shape), alpha=_VECTOR_STD)
    return model.eval()
