"""How much memory there is, and how much a token on the packed axis takes: measured, not guessed.

Knows devices and modules, nothing of tracing.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

try:
    import resource
except ImportError:  # Windows: no such limits
    resource = None  # type: ignore[assignment]

_OWN_LIMITS = (("RLIMIT_DATA", "VmData"), ("RLIMIT_AS", "VmSize"))  # of the process, and how much of it is taken
_M_MMAP_THRESHOLD, _LARGE = -3, 2**20
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_CGROUP_USAGE = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")


def available_bytes(device: torch.device | str) -> int:
    """Memory that can still be taken on `device`. On the CPU a container's and the process's own limits count too."""
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0])
    free = psutil.virtual_memory().available
    limit, used = _first_number(_CGROUP_LIMITS), _first_number(_CGROUP_USAGE)
    if limit is not None and used is not None:
        free = min(free, max(0, limit - used))
    return int(min(free, _left_to_this_process()))


def limited() -> bool:
    """Whether a limit was set for this process's own memory (see `ulimit`), which counts more than what it uses."""
    return not math.isinf(_left_to_this_process())


def _left_to_this_process() -> float:
    """Bytes up to the limits that were set for this process (`ulimit -d`, `-v`); endless without any."""
    if resource is None:
        return math.inf
    left = math.inf
    for name, taken in _OWN_LIMITS:
        limit = resource.getrlimit(getattr(resource, name))[0]
        if limit != resource.RLIM_INFINITY:
            left = min(left, max(0, limit - _status_bytes(taken)))
    return left


def _status_bytes(field: str) -> int:
    """A size out of this process's status."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


def return_large_blocks() -> None:
    """From now on this process gives blocks of `_LARGE` bytes and more back to the system when they are freed.

    glibc raises that limit to 32 MB as a program goes on; the holes that smaller blocks then leave in the heap cost
    hundreds of MB where layers come and go. Does nothing with another C library.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)


def _first_number(paths: tuple[str, ...]) -> int | None:
    for path in paths:
        try:
            return int(Path(path).read_text().strip())
        except (OSError, ValueError):  # no such controller, or "max"
            continue
    return None


class AllocationWatch(TorchDispatchMode):
    """Adds up the storages that operations inside allocate; `peak` is the most that was alive at once, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204 - torch's signature
        given = {id(t.untyped_storage()) for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage(), given)
        return out

    def _count(self, storage: Any, given: set[int]) -> None:
        key = id(storage)
        if key in self._known or key in given:  # a view, or written in place
            return
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def bytes_per_token(call: Callable[[int], Any], small: int = 64, large: int = 192) -> float:
    """Peak bytes that `call(n_tokens)` allocates per token, from the difference of two sizes (fixed costs drop out)."""
    peaks = []
    for n in (small, large):
        with AllocationWatch() as watch:
            call(n)
        peaks.append(watch.peak)
    return max(1.0, (peaks[1] - peaks[0]) / (large - small))
