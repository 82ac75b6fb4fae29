"""Few at a time, the others in line: for work that many threads ask for at once and none of them gets done sooner by
working at the same time, as Python lets one of them run anyway and each change from one to another costs all of them.

Knows threads, not what they do.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator


class Line:
    """`most` threads have a place at a time. Who comes later waits, first come first served, but at most `patience`
    seconds: then it goes on beside them, so nobody is kept out by somebody who takes long."""

    def __init__(self, most: int, *, patience: float) -> None:
        self._patience = patience
        self._lock = threading.Lock()
        self._free = most
        self._waiting: deque[threading.Event] = deque()
        self._mine = threading.local()

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place for the time of the block, after waiting for it."""
        self._mine.has = self._enter()
        try:
            yield
        finally:
            self._leave()

    @contextlib.contextmanager
    def outside(self) -> Iterator[None]:
        """For the time of the block, in which this thread waits for something else, its place, if it has one, is
        somebody else's."""
        if not getattr(self._mine, "has", False):
            yield
            return
        self._leave()
        try:
            yield
        finally:
            self._mine.has = self._enter()

    def _enter(self) -> bool:
        """Whether there was a place in time."""
        with self._lock:
            if self._free:  # nobody waits, for a place that becomes free goes to who waits
                self._free -= 1
                return True
            turn = threading.Event()
            self._waiting.append(turn)
        if turn.wait(self._patience):
            return True
        with self._lock:
            if turn.is_set():
                return True
            self._waiting.remove(turn)
            return False

    def _leave(self) -> None:
        if not self._mine.has:
            return
        self._mine.has = False
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1
