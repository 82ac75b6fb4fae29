"""Taking turns with a store's file between processes: who waits leaves a mark, who has it open lends it when idle.

DuckDB lets one process have the file open. A dashboard keeps it open for hours, a study on a command line needs it for
a moment per batch; so the one lends it to the other. Knows files, times and threads; no database.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from core.errors import StoreBusy

T = TypeVar("T")

POLL = 0.05
"""Seconds between two attempts of who waits, and between two looks of who lends."""
FRESH = 2.0
"""Seconds for which a mark counts; it is renewed as long as someone waits."""
AWAY = 4 * POLL
"""Seconds for which a lent file is left to the others."""


def patiently(work: Callable[[], T], seconds: float, *, path: Path | None = None) -> T:
    """What `work()` returns, which opens a file; tried again for so long as another process has that file open.
    `path`: of that file, so that the other one can be asked for it."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return work()
        except StoreBusy:
            if time.monotonic() > deadline:
                raise
            if path is not None:
                ask(path)
            time.sleep(POLL)


def ask(path: Path) -> None:
    """Leave a mark that someone waits for the file `path`."""
    with contextlib.suppress(OSError):
        _mark(path).touch()


def asked(path: Path) -> bool:
    """Whether someone waits for the file `path` now."""
    try:
        return abs(time.time() - _mark(path).stat().st_mtime) < FRESH
    except OSError:
        return False


class Lender:
    """Calls `lend` whenever someone waits for the file `path`, in a thread of its own, until `stop()`."""

    def __init__(self, path: Path, lend: Callable[[], None]) -> None:
        self._path, self._lend = path, lend
        self._stopped = threading.Event()
        threading.Thread(target=self._loop, name="expertscope-lender", daemon=True).start()

    def stop(self) -> None:
        """No more lending."""
        self._stopped.set()

    def _loop(self) -> None:
        while not self._stopped.wait(POLL):
            if asked(self._path):
                self._lend()


def _mark(path: Path) -> Path:
    return path.with_name(f"{path.name}.wanted")
