"""A model larger than the memory that it may take: traced, compared with the unlimited run, timed against a plain read.

Writes a random Qwen3-MoE checkpoint (see `bench.checkpoint`), then runs processes of `bench.limited`: within the limit;
the calls that everybody uses; and without a limit, all weights in memory. `python -m bench disk`: the table goes to
bench/results/, the checkpoint is deleted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from .checkpoint import REPOSITORY, Shape, write
from .limited import drop_cached
from .timing import machine

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 750_000_000
FULL = Shape(layers=40, hidden=1024, experts=64, intermediate=224, vocabulary=151_936)
FACTS = 8
MOST_DIFFERENCE = 1e-4  # logits
COLUMNS = ("true_logit", "foil_logit", "contrast", "rescue", "restoration", "router_weight_clean")


def main(arguments: list[str] | None = None) -> int:
    """Measure and write the table; 1 if a number differs or the limit was not kept."""
    parser = argparse.ArgumentParser(prog="python -m bench disk", description=__doc__.split("\n\n")[0])
    parser.add_argument("--folder", type=Path, help="where the checkpoint goes for a while (the temporary folder)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--dtype", default="float32", help="number format of the computation (float32)")
    asked = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="expertscope-bench-", dir=asked.folder))
    try:
        snapshot = write(folder / "cache", FULL)
        found = measure(snapshot, folder, dtype=asked.dtype, limit=LIMIT, facts=FACTS, threads=asked.threads)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text = _markdown(found)
    results = ROOT / "bench" / "results"
    (results / "disk.json").write_text(json.dumps(found, indent=1) + "\n")
    (results / "disk.md").write_text(text)
    print(text)
    return 0 if found["largest_difference"] <= MOST_DIFFERENCE else 1


def measure(
    snapshot: Path, folder: Path, *, dtype: str, limit: int, facts: int, threads: int
) -> dict[str, Any]:
    """All processes one after the other. `snapshot`: of the checkpoint, inside `folder`/cache."""
    files = sorted(path.resolve() for path in snapshot.glob("*.safetensors"))
    common = {"cache": folder / "cache", "model": REPOSITORY, "dtype": dtype}
    cold = sequential(snapshot, files)
    warm = sequential(None, files)
    within = process("trace", **common, limit=limit, facts=facts, cold=True, out=folder / "within.parquet")
    usual = process("usual", **common, limit=limit)
    free = process("trace", **common, facts=facts, placement="memory", out=folder / "free.parquet")
    return {
        "measured": datetime.now(UTC).date().isoformat(), "machine": machine(threads),
        "load_average": round(os.getloadavg()[0], 1), "checkpoint_bytes": sum(file.stat().st_size for file in files),
        "files": len(files), "limit_bytes": limit, "dtype": dtype, "facts": facts, "sequential_cold": cold,
        "sequential_warm": warm, "within": within, "usual": usual, "unlimited": free,
        "largest_difference": max(
            difference(folder / "free.parquet", folder / "within.parquet"),
            *(abs(one - other) for one, other in zip(within["contrasts"], free["contrasts"], strict=True)),
        ),
    }  # fmt: skip


def sequential(snapshot: Path | None, files: list[Path]) -> float:
    """Seconds that one read of the files takes from first byte to last; `snapshot`: forget what is cached first."""
    if snapshot is not None:
        drop_cached(snapshot)
    buffer = bytearray(2**24)
    begun = time.perf_counter()
    for file in files:
        with file.open("rb", buffering=0) as handle:
            while handle.readinto(buffer):
                pass
    return time.perf_counter() - begun


def process(what: str, **options: Any) -> dict[str, Any]:
    """Run `bench.limited` and return what it says."""
    given = [f"--{name}={value}" for name, value in options.items() if value is not True]
    given += [f"--{name}" for name, value in options.items() if value is True]
    # without a memory pool of its own, Arrow does not set a gigabyte aside that it never uses, which would count
    env = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "bench.limited", what, *given], cwd=ROOT, env=env, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"bench.limited {what} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def difference(one: Path, other: Path) -> float:
    """The largest difference of any number of two tables; infinite where their rows are not the same."""
    left, right = pd.read_parquet(one), pd.read_parquet(other)
    keys = ["kind", "draw", "layer", "pos", "expert"]
    if not left[keys].equals(right[keys]):
        return float("inf")
    return max(
        (left[name] - right[name]).abs().max() if left[name].isna().equals(right[name].isna()) else float("inf")
        for name in COLUMNS
    )


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _markdown(found: dict[str, Any]) -> str:
    within, free, usual = found["within"], found["unlimited"], found["usual"]
    size, cold = found["checkpoint_bytes"], found["sequential_cold"]
    where = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    rows = [
        ("one sequential read of the files", size, cold, found["sequential_warm"], None),
        ("loading, with all checks", within["load_read"], within["load_seconds"], None, free["load_seconds"]),
        (f"layer sweep at the last position, {found['facts']} facts", within["sweep_read"], within["sweep_seconds"],
         within["sweep_cached_seconds"], free["sweep_seconds"]),
        ("heat map of one fact, with experts", within["trace_read"], within["trace_seconds"], None,
         free["trace_seconds"]),
    ]  # fmt: skip
    return "\n".join([
        "# A model larger than the memory it may take",
        "",
        f"A random Qwen3-MoE checkpoint of {size / 1e9:.2f} GB (bfloat16, {FULL.layers} layers, hidden {FULL.hidden}, "
        f"{FULL.experts} experts of {FULL.intermediate}, top-{FULL.top_k}, vocabulary {FULL.vocabulary}; "
        f"{found['files']} safetensors shards in the hub's layout, a tensor per expert), computed in {found['dtype']} "
        f"with RLIMIT_DATA {found['limit_bytes'] / 1e9:.2f} GB above the {within['imported'] / 1e9:.2f} GB that the "
        "imported libraries take. Its layers stay on the disk and are read by plain reads, one ahead of the "
        "computation; of embedding and unembedding only rows are read. \"Unlimited\": the same without a limit, all "
        "weights in memory, loaded by transformers.",
        "",
        f"Machine: {where['processor']}, {where['cores']} cores, {where['memory_gib']} GiB, {where['system']}; Python "
        f"{where['python']}, {versions}; {where['threads']} torch threads. Measured {found['measured']}, load average "
        f"{found['load_average']}. Cold: the files were dropped from the system's cache before each step.",
        "",
        "| | bytes read | ÷ files | seconds, cold | ÷ sequential | seconds, cached | unlimited |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {name} | {read / 1e9:.2f} GB | {read / size:.2f} | {seconds:.1f} | {seconds / cold:.1f} "
            f"| {_seconds(cached)} | {_seconds(unlimited)} |"
            for name, read, seconds, cached, unlimited in rows
        ),
        "",
        f"* One pass over the layers is {within['per_pass'] / 1e9:.2f} GB. The layer sweep reads that and single rows "
        "of the tables; a heat map the unembedding too, for the most probable next tokens; loading the embedding for "
        "its std, and the unembedding for the checks.",
        f"* Largest difference of any number from the unlimited run ({within['rows']} rows of the heat map's table, "
        f"{len(within['contrasts'])} of the sweep): {found['largest_difference']:.1e}.",
        f"* Most memory resident at once: {within['most_resident'] / 1e9:.2f} GB, libraries included; unlimited "
        f"{free['most_resident'] / 1e9:.2f} GB.",
        f"* Within the same limit, `safetensors.torch.load_file` of the shards ends in \"{usual['load_file']}\", "
        f"`from_pretrained` in \"{usual['from_pretrained']}\".",
        "",
    ])  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
