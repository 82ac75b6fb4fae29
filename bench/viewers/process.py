"""The server process from outside: memory, threads, open files over time, and whether memory grows.

Knows no viewers.
"""

from __future__ import annotations

import statistics
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

MB = 1e6
FIRST = 60.0
"""Seconds after which memory has to be flat: until then things are imported, loaded and cached."""
GROWTH = 0.01
"""Share of its memory that the process may grow by per minute after that."""
LEAST = 90.0
"""Seconds of samples after the first minute that a statement about growth needs."""


@dataclass(frozen=True)
class Sample:
    """`at`: seconds since the viewers came; `memory`: resident bytes; `files`: open descriptors, sockets included;
    `cpu`: processor seconds so far."""

    at: float
    memory: int
    threads: int
    files: int
    cpu: float


class Watch:
    """Looks at a process."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._begun = time.monotonic()
        self.samples: list[Sample] = []

    def look(self) -> Sample:
        """Take and keep a sample."""
        with self._process.oneshot():
            times = self._process.cpu_times()
            sample = Sample(
                time.monotonic() - self._begun, self._process.memory_info().rss, self._process.num_threads(),
                self._process.num_fds(), times.user + times.system,
            )  # fmt: skip
        self.samples.append(sample)
        return sample


def growth(samples: Sequence[Sample], *, first: float = FIRST) -> float | None:
    """Bytes of memory per minute after `first` seconds: the median of the slopes between any two samples (Theil and
    Sen), which single jumps do not move. None where the time is too short to say."""
    later = [sample for sample in samples if sample.at >= first]
    if not later or later[-1].at - later[0].at < LEAST:
        return None
    thin = later[:: max(1, len(later) // 150)]
    slopes = [(b.memory - a.memory) / (b.at - a.at) for i, a in enumerate(thin) for b in thin[i + 1 :] if b.at > a.at]
    return 60 * statistics.median(slopes)


def allowed(samples: Sequence[Sample], *, first: float = FIRST) -> float:
    """Bytes per minute that `growth` may be: `GROWTH` of the median memory after `first` seconds."""
    return GROWTH * statistics.median([sample.memory for sample in samples if sample.at >= first] or [0])


def sessions(url: str) -> int:
    """How many tabs the server knows to be open."""
    with urllib.request.urlopen(f"{url}/_stcore/metrics?families=active_sessions", timeout=30) as reply:
        lines = reply.read().decode().splitlines()
    return int(sum(float(line.split()[1]) for line in lines if line.startswith("active_sessions ")))
