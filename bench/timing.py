"""Timing one heat map, and what the measurement ran on. Knows no method."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch


@dataclass(frozen=True)
class Taken:
    """Wall and processor seconds (all threads) of one call, and what it returned."""

    seconds: float
    cpu_seconds: float
    logits: torch.Tensor


def prepare_torch(threads: int) -> None:
    """Fixed threads, no gradients."""
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)


def timed(heat_map: Callable[[], torch.Tensor]) -> Taken:
    """One timed call, garbage collected before."""
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    logits = heat_map()
    return Taken(time.perf_counter() - wall, time.process_time() - cpu, logits)


def package_version(name: str) -> str:
    """The installed version of a distribution."""
    return importlib.metadata.version(name)


def machine(threads: int) -> dict[str, object]:
    """What the measurement ran on, in words and numbers that name nobody."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": platform.system(),
        "python": platform.python_version(),
        "threads": threads,
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", ""),
        "versions": {name: package_version(name) for name in ("torch", "transformers")},
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
