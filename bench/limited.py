"""One process of the benchmark `disk`: load the checkpoint and trace it, within a limit of the system's or without.

`python -m bench.limited trace|usual ...` (see `bench.disk`): prints one line of JSON. The limit is set when all
libraries are imported, to what they have taken so far plus so many bytes: RLIMIT_DATA counts every private writable
page of the process, touched or not.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORDS = "t11 t12 t13 {} t25 t26 t27"  # with the subject, a prompt of 9 tokens
SUBJECTS = tuple(" ".join(f"t{3 * n + i}" for i in range(60, 63)) for n in range(8))
TRUE, FOIL = "t17", "t33"


def main() -> int:
    """Do what the arguments say; 0 also where a load fails as it should (the JSON says so)."""
    parser = argparse.ArgumentParser(prog="python -m bench.limited")
    parser.add_argument("what", choices=("trace", "usual"))
    parser.add_argument("--cache", required=True, help="folder of the hub cache")
    parser.add_argument("--model", required=True, help="id of the checkpoint in it")
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--limit", type=int, help="bytes on top of what the libraries take")
    parser.add_argument("--placement", default="auto")
    parser.add_argument("--facts", type=int, default=1, help="facts whose layer sweep is timed")
    parser.add_argument("--cold", action="store_true", help="drop the files from the system's cache before each step")
    parser.add_argument("--out", help="write the trace's table here (Parquet)")
    asked = parser.parse_args()
    os.environ["HF_HUB_CACHE"] = asked.cache
    _import_everything()
    imported = _status("VmData")
    if asked.limit is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (imported + asked.limit, imported + asked.limit))
    found = _trace(asked) if asked.what == "trace" else _usual(asked)
    found |= {"imported": imported, "limit": asked.limit, "most_resident": _status("VmHWM")}
    print(json.dumps(found))
    return 0


def _import_everything() -> None:
    """All that a trace imports on the way, so that it counts as libraries."""
    import importlib

    for name in (
        "pyarrow.parquet", "safetensors.torch", "transformers", "transformers.models.qwen3_moe.modeling_qwen3_moe",
        "transformers.models.auto.modeling_auto", "accelerate", "core.models", "core.trace", "core.missing",
        "core.provenance", "core.identity", "huggingface_hub",
    ):  # fmt: skip
        importlib.import_module(name)


def _trace(asked: argparse.Namespace) -> dict[str, Any]:
    import core
    from core.asking import prepare_for
    from core.budget import Budget
    from core.fact_runs import runs_of
    from core.patches import layer_patch
    from core.requests import Fact, TraceRequest
    from core.sweep import listed, sweep
    from core.trace import trace_many

    _cool(asked)
    begun = time.perf_counter()
    model = core.load_model(asked.model, dtype=asked.dtype, placement=asked.placement, device="cpu")
    found: dict[str, Any] = {
        "load_seconds": time.perf_counter() - begun, "load_read": model.bytes_read, "remark": model.remark,
        "per_pass": 0 if model.weights is None else model.weights.per_pass,
    }  # fmt: skip
    resident = _status("VmRSS")

    def timed(name: str, work: Callable[[], Any], *, cool: bool = True) -> Any:
        if cool:
            _cool(asked)
        before, begun = model.bytes_read, time.perf_counter()
        result = work()
        found[f"{name}_seconds"], found[f"{name}_read"] = time.perf_counter() - begun, model.bytes_read - before
        return result

    asking = [
        TraceRequest(Fact(WORDS, subject, TRUE, FOIL, case_id=i), model=model.spec)
        for i, subject in enumerate(SUBJECTS[: asked.facts])
    ]

    def layer_sweep() -> list[float]:
        """Layer patches at the last position, every layer and fact: the contrasts of the patched runs."""
        runs, objects, patches = [], [], []
        for request in asking:
            fact, clean = prepare_for(model, request), len(runs)
            runs += runs_of(model, request, fact)[0]
            objects += [(fact.true_id, fact.foil_id)] * 2
            last = len(fact.input_ids) - 1
            ends = {"clean": clean, "corrupt": clean + 1, "pos": last}
            patches += [layer_patch(**ends, layer=layer) for layer in model.moe_layers]
        outcome = sweep(
            model, model.structure, runs, listed(patches), objects=objects, keep=False,
            chunk_tokens=Budget.measure(model).chunk_tokens,
        )  # fmt: skip
        order = {patch: i for i, patch in enumerate(outcome.patches)}
        return [float(outcome.patched[order[patch]] @ outcome.patched.new_tensor([1, -1])) for patch in patches]

    found["contrasts"] = timed("sweep", layer_sweep)
    if asked.cold:
        timed("sweep_cached", layer_sweep, cool=False)
    (result,) = timed("trace", lambda: trace_many(model, asking[:1]))
    frame = result.frame
    found |= {"rows": len(frame), "placement": result.provenance.placement, "dtype": result.provenance.dtype}
    found |= {"bytes_read": result.provenance.bytes_read, "resident_when_loaded": resident}
    if asked.out:
        frame.to_parquet(asked.out)
    return found


def _usual(asked: argparse.Namespace) -> dict[str, Any]:
    """The calls that everybody uses; what they say under the limit."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from core.identity import locate
    from core.requests import ModelSpec

    folder = locate(ModelSpec(asked.model))
    assert folder is not None
    found: dict[str, Any] = {}

    def attempt(name: str, call: Any) -> None:
        try:
            call()
            found[name] = "works"
        except Exception as error:  # noqa: BLE001 - however it fails
            words = str(error).splitlines()[0].split(" from file")[0][:160] if str(error) else ""
            found[name] = f"{type(error).__name__}: {words}"

    def load_all() -> None:
        kept = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
        [tensor.sum() for tensors in kept for tensor in tensors.values()]

    attempt("load_file", load_all)
    dtype = getattr(torch, asked.dtype)
    attempt("from_pretrained", lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=dtype))
    return found


def _cool(asked: argparse.Namespace) -> None:
    if asked.cold:
        from core.identity import locate
        from core.requests import ModelSpec

        drop_cached(locate(ModelSpec(asked.model)))


def drop_cached(folder: Path | None) -> None:
    """Let the system forget what it has of the weight files in memory."""
    assert folder is not None
    for path in folder.glob("*.safetensors"):
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"the system does not tell {field}")


if __name__ == "__main__":
    raise SystemExit(main())
