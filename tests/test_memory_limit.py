"""A checkpoint larger than the memory that the operating system allows: traced all the same, and the numbers are right.

The small version of `python -m bench disk`. On Linux, RLIMIT_DATA counts every private writable page of a process,
memory maps of files for private use included.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import core
from bench.checkpoint import REPOSITORY, Shape, write
from bench.disk import MOST_DIFFERENCE, difference, process
from bench.limited import FOIL, SUBJECTS, TRUE, WORDS
from core import memory, models
from core.requests import Fact

SHAPE = Shape(layers=28, hidden=256, experts=32, intermediate=128, vocabulary=2000, per_shard=5)
LIMIT = 165_000_000  # 0.12 GB is about the least that does: threads and their stacks count too


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    write(folder / "cache", SHAPE)
    return folder


def test_a_checkpoint_larger_than_the_limit_is_traced(folder: Path) -> None:
    (snapshot,) = (folder / "cache").glob("models--*/snapshots/*")
    size = sum(path.stat().st_size for path in snapshot.glob("*.safetensors"))
    assert size > 1.1 * LIMIT
    common = {"cache": folder / "cache", "model": REPOSITORY, "dtype": "float32", "limit": LIMIT}
    usual = process("usual", **common)
    assert "works" not in (usual["load_file"], usual["from_pretrained"])
    within = process("trace", **common, facts=3, out=folder / "within.parquet")
    assert within["placement"] == "disk" and "MB are free" in within["remark"]
    assert within["trace_read"] == within["bytes_read"]
    for step in ("load", "sweep", "trace"):  # the layers once; embedding and unembedding are small here
        assert within["per_pass"] <= within[f"{step}_read"] <= size
    assert 0.9 * size < within["per_pass"] < size
    model = core.load_model(str(snapshot), dtype="float32", placement="memory")
    result = core.trace(model, Fact(WORDS, SUBJECTS[0], TRUE, FOIL))
    result.frame.to_parquet(folder / "free.parquet")
    assert difference(folder / "free.parquet", folder / "within.parquet") <= MOST_DIFFERENCE
    frame = pd.read_parquet(folder / "within.parquet")
    assert (frame.rescue.abs() > 0.05).sum() > 50


def test_the_limit_of_the_process_counts_as_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    taken = memory._status_bytes("VmData")
    assert taken > 10**7
    monkeypatch.setattr(resource, "getrlimit", lambda which: (
        (taken + 10**8, resource.RLIM_INFINITY) if which == resource.RLIMIT_DATA else (resource.RLIM_INFINITY,) * 2
    ))  # fmt: skip
    assert memory.limited()
    assert 0 < memory.available_bytes("cpu") <= 10**8 + 10**7
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)
    assert not memory.limited()
    assert memory.available_bytes("cpu") > 10**8


def test_the_checkpoint_is_as_the_hub_lays_it_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by its id in the hub cache, with a tensor per expert."""
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(folder / "cache"))
    place = models.fetch(core.ModelSpec(REPOSITORY))
    assert place.parent.name == "snapshots" and (place / "config.json").is_symlink()
    from core.checkpoint import Checkpoint

    names = Checkpoint(place).tensors
    assert names["model.layers.3.mlp.experts.7.gate_proj.weight"].shape == (128, 256)
