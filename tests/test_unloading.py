"""Unloading gives the memory back: resident memory of a process of its own, before, with and after a model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import checkpoints

from core.catalog import entry

LIFE = """
import json, os, sys
import psutil
from core.requests import Fact, ModelSpec, TraceRequest
from core.workbench import Workbench

def memory():
    return psutil.Process().memory_info().rss

def done(job):
    assert job.wait(300) and job.state == "done", job.error

bench, seen = Workbench(None), []
fact = Fact("The capital of {} is", "France", "Paris", "Rome")
for seed in range(2):  # the first time, what is imported and kept for good comes too
    request = TraceRequest(fact, ModelSpec(sys.argv[1], dtype="float32", device="cpu"), seed=seed, first_token=True)
    done(bench.unload())
    before = memory()
    done(bench.submit(request))
    loaded = memory()
    done(bench.unload())
    seen.append((before, loaded, memory()))
print(json.dumps(seen))
"""


def test_the_memory_of_an_unloaded_model_comes_back(tmp_path):
    model = str(checkpoints.save(tmp_path / "model", "mixtral", width=6000, shard="20MB"))
    weights = entry(model).size
    assert weights > 100e6
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", LIFE, model], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    before, loaded, after = json.loads(done.stdout)[-1]
    print(f"{weights / 1e6:.0f} MB of weights: {before / 1e6:.0f}, {loaded / 1e6:.0f}, {after / 1e6:.0f} MB resident")
    assert loaded - before > 0.8 * weights, "the model was in memory"
    assert after - before < 0.2 * weights, "and is not any more"
