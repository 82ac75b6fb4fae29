"""Small checkpoints on disk, as tests of loading need them: a plain folder, and the hub cache's own layout."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import tiny_models
import tokenizers_for_tests
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel


def build(family: str = "qwen3_moe", *, width: int | None = None) -> PreTrainedModel:
    """A random model of `family` whose vocabulary is that of the tokenizer that `save` puts beside it. `width`: inner
    width of the experts and dense layers."""
    recipe = tiny_models.FAMILIES[family]
    size = {"vocab_size": len(tokenizers_for_tests.tokenizer("prefix_space"))}
    if width is not None:
        size["intermediate_size"] = width
    config = AutoConfig.for_model(family, **{**tiny_models.COMMON, **recipe.config, **size})
    model = AutoModelForCausalLM.from_config(config).float().eval()
    tiny_models.randomise(model, recipe, 0)
    return model


def save(
    folder: Path, family: str = "qwen3_moe", *, dtype: torch.dtype = torch.float32, shard: str = "50GB",
    width: int | None = None,
) -> Path:  # fmt: skip
    """A random model of `family` with a trained byte-level tokenizer, written as transformers writes it."""
    build(family, width=width).to(dtype).save_pretrained(folder, max_shard_size=shard)
    tokenizers_for_tests.tokenizer("prefix_space").save_pretrained(folder)
    return folder


def as_hub_cache(folder: Path, cache: Path, repository: str, revision: str = "main") -> Path:
    """Copy `folder` into `cache` as the hub's client lays a downloaded repository out: blobs, a snapshot, a ref."""
    root = cache / f"models--{repository.replace('/', '--')}"
    commit = hashlib.sha1(repository.encode()).hexdigest()
    snapshot = root / "snapshots" / commit
    for sub in (root / "blobs", snapshot, root / "refs"):
        sub.mkdir(parents=True)
    for path in folder.iterdir():
        blob = root / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(blob)
    (root / "refs" / revision).write_text(commit)
    return snapshot
