"""The C library's heaps: as many as the process says, not one for every thread."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EIGHT_THREADS = """
import sys, threading
from core.room import few_heaps
if sys.argv[1] == "few":
    few_heaps()
kept, end, filled = [], threading.Event(), threading.Barrier(9)
def fill():
    kept.append([bytes(2000) for _ in range(500)])
    filled.wait()
    end.wait()
for _ in range(8):
    threading.Thread(target=fill, daemon=True).start()
filled.wait()
maps = [line.split() for line in open("/proc/self/maps")]
starts = [int(parts[0].split("-")[0], 16) for parts in maps if parts[1] == "rw-p" and len(parts) == 5]
print(sum(start % 2**26 == 0 for start in starts))
"""
"""Prints how many heaps there are beside the first; each of glibc's begins at a multiple of 64 MB."""


def heaps(how: str) -> int:
    said = subprocess.run([sys.executable, "-c", EIGHT_THREADS, how], cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    return int(said.stdout)


def test_all_threads_share_two_heaps():
    assert heaps("few") <= 1 < 3 < heaps("as usual")
