"""A random Qwen3-MoE checkpoint in the hub's layout, written layer by layer: it may be larger than the memory.

One tensor per expert and matrix, as on the hub; safetensors shards with an index; blobs, a snapshot of links to them
and a ref, as the hub's client lays a downloaded repository out. Weights are large enough that patches move the logits.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig

REPOSITORY = "bench/random-qwen3-moe"
STD, STD_UNEMBEDDING = 0.06, 0.24


@dataclass(frozen=True)
class Shape:
    """Sizes of the model; `per_shard`: layers in a file."""

    layers: int
    hidden: int
    experts: int
    intermediate: int
    vocabulary: int
    top_k: int = 8
    heads: int = 8
    per_shard: int = 4
    dtype: torch.dtype = torch.bfloat16

    def config(self) -> Qwen3MoeConfig:
        """As transformers describes it."""
        return Qwen3MoeConfig(
            vocab_size=self.vocabulary, hidden_size=self.hidden, num_hidden_layers=self.layers,
            num_attention_heads=self.heads, num_key_value_heads=self.heads // 2, head_dim=self.hidden // self.heads,
            num_experts=self.experts, num_experts_per_tok=self.top_k, moe_intermediate_size=self.intermediate,
            norm_topk_prob=True, max_position_embeddings=256, tie_word_embeddings=False, decoder_sparse_step=1,
            mlp_only_layers=[], architectures=["Qwen3MoeForCausalLM"], dtype=str(self.dtype).removeprefix("torch."),
            bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )  # fmt: skip


def write(cache: Path, shape: Shape, *, seed: int = 0) -> Path:
    """Write the checkpoint into the hub cache folder `cache`; returns the snapshot. Takes memory for one shard."""
    root = cache / f"models--{REPOSITORY.replace('/', '--')}"
    snapshot = root / "snapshots" / hashlib.sha1(str(shape).encode()).hexdigest()
    for folder in (root / "blobs", snapshot, root / "refs"):
        folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    starts = range(0, shape.layers, shape.per_shard)
    index: dict[str, str] = {}
    total = 0
    for number, start in enumerate(starts):
        tensors: dict[str, torch.Tensor] = {}
        for layer in range(start, min(start + shape.per_shard, shape.layers)):
            tensors |= _layer(shape, layer, generator)
        if start == 0:
            tensors["model.embed_tokens.weight"] = _matrix(shape, generator, shape.vocabulary, shape.hidden)
        if start == starts[-1]:
            tensors["model.norm.weight"] = torch.ones(shape.hidden, dtype=shape.dtype)
            tensors["lm_head.weight"] = _matrix(shape, generator, shape.vocabulary, shape.hidden, STD_UNEMBEDDING)
        name = f"model-{number + 1:05d}-of-{len(starts):05d}.safetensors"
        save_file(tensors, root / "new", metadata={"format": "pt"})
        total += sum(tensor.nbytes for tensor in tensors.values())
        index |= dict.fromkeys(tensors, name)
        del tensors
        _as_blob(root, snapshot, name)
    written = {
        "model.safetensors.index.json": json.dumps({"metadata": {"total_size": total}, "weight_map": index}),
        "config.json": shape.config().to_json_string(use_diff=False),
    }
    for name, content in written.items():
        (root / "new").write_text(content)
        _as_blob(root, snapshot, name)
    _tokenizer(shape.vocabulary).save_pretrained(root / "tokenizer")
    for path in sorted((root / "tokenizer").iterdir()):
        path.rename(root / "new")
        _as_blob(root, snapshot, path.name)
    (root / "tokenizer").rmdir()
    (root / "refs" / "main").write_text(snapshot.name)
    return snapshot


def _layer(shape: Shape, layer: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """The tensors of one decoder layer under the names that they have on the hub."""
    wide, size = shape.hidden, shape.hidden // shape.heads
    keys = size * (shape.heads // 2)
    sizes = {
        "self_attn.q_proj": (wide, wide), "self_attn.k_proj": (keys, wide), "self_attn.v_proj": (keys, wide),
        "self_attn.o_proj": (wide, wide), "mlp.gate": (shape.experts, wide),
    }  # fmt: skip
    for expert in range(shape.experts):
        sizes |= {
            f"mlp.experts.{expert}.gate_proj": (shape.intermediate, wide),
            f"mlp.experts.{expert}.up_proj": (shape.intermediate, wide),
            f"mlp.experts.{expert}.down_proj": (wide, shape.intermediate),
        }
    norms = {"self_attn.q_norm": size, "self_attn.k_norm": size, "input_layernorm": wide}
    norms["post_attention_layernorm"] = wide
    prefix = f"model.layers.{layer}"
    tensors = {f"{prefix}.{name}.weight": _matrix(shape, generator, *rows) for name, rows in sizes.items()}
    return tensors | {f"{prefix}.{name}.weight": torch.ones(n, dtype=shape.dtype) for name, n in norms.items()}


def _matrix(shape: Shape, generator: torch.Generator, rows: int, columns: int, std: float = STD) -> torch.Tensor:
    return torch.empty(rows, columns, dtype=shape.dtype).normal_(0, std, generator=generator)


def _as_blob(root: Path, snapshot: Path, name: str) -> None:
    """Move the new file to the blobs, under its hash, and link to it."""
    new, found = root / "new", hashlib.sha256()
    with new.open("rb") as handle:
        while piece := handle.read(2**24):
            found.update(piece)
        os.fsync(handle.fileno())
    blob = root / "blobs" / found.hexdigest()
    new.rename(blob)
    (snapshot / name).symlink_to(os.path.relpath(blob, snapshot))


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One word per token id: `t17` is token 17."""
    inner = Tokenizer(WordLevel({f"t{i}": i for i in range(vocabulary)}, unk_token="t0"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="t0", pad_token="t0", eos_token="t2")
