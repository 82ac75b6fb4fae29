"""Small checkpoints on disk, as tests of loading need them: a plain folder, and the hub cache's own layout."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import tiny_models
import tokenizers_for_tests
import torch


def save(folder: Path, family: str = "qwen3_moe", *, dtype: torch.dtype = torch.float32, shard: str = "50GB") -> Path:
    """A random model of `family` with a trained byte-level tokenizer, written as transformers writes it."""
    model = tiny_models.build(family)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
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
