"""Whose turn it is with the one loaded model: short work soon, longer work with pauses, long work in between.

Knows threads and what they want (any value that can be compared: a model's name and settings), no models.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Hashable, Iterator

from .progress import SILENT, Progress

_POLL = 0.05  # seconds between two looks whether someone asked to stop
FOLLOW = 0.05
"""Seconds that long work waits, when those whom it let in are done, for the next one of a queue: each would wait for a
whole step otherwise."""


class GaveWay(Exception):
    """Long work has to let go of its model, for someone waits for another one. It starts again where it was."""


class Turns:
    """One thread at a time computes. Long work is asked to let others in at moments that suit it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken = False
        self._tickets = itertools.count()
        self._asking: dict[int, Hashable] = {}
        self._held: Hashable | None = None

    @contextlib.contextmanager
    def short(self, wanted: Hashable, progress: Progress = SILENT) -> Iterator[None]:
        """Alone inside the block. Waits for whoever computes now, and until long work has let go of another model
        than `wanted`. Raises what `progress.check` raises while it waits."""
        with self._ask(wanted), self._alone(lambda: self._held in (None, wanted), progress):
            yield

    @contextlib.contextmanager
    def paused(self, wanted: Hashable, progress: Progress = SILENT) -> Iterator[Callable[[], None]]:
        """As `short`, but after all who have asked before, and not alone in calls of the function that it gives: there,
        whoever has asked meanwhile is let in, and where one of them wants another model, `GaveWay` is raised."""

        def may() -> bool:
            return self._held in (None, wanted) and min(self._asking) == ticket

        with self._ask(wanted) as ticket, self._alone(may, progress):
            yield lambda: self._pause(ticket, wanted, progress)

    @contextlib.contextmanager
    def _ask(self, wanted: Hashable) -> Iterator[int]:
        with self._changed:
            ticket = next(self._tickets)
            self._asking[ticket] = wanted
        try:
            yield ticket
        finally:
            with self._changed:
                del self._asking[ticket]
                self._changed.notify_all()

    @contextlib.contextmanager
    def _alone(self, may: Callable[[], bool], progress: Progress) -> Iterator[None]:
        self._take(may, progress, "waiting for other work to pause")
        try:
            yield
        finally:
            self._give()

    def _pause(self, ticket: int, wanted: Hashable, progress: Progress) -> None:
        with self._changed:
            ahead = {other for other in self._asking if other != ticket}
            if not ahead:
                return
            if any(self._asking[other] != wanted for other in ahead):
                raise GaveWay()
        self._give()
        try:
            with self._changed:
                while ahead & self._asking.keys():
                    self._changed.wait(_POLL)
                    progress.check()
        finally:
            self._take(lambda: True)

    @contextlib.contextmanager
    def long(self, wanted: Hashable, progress: Progress = SILENT) -> Iterator[Callable[[], None]]:
        """Alone inside the block, but for calls of the function that it gives: there, short work that wants the same
        model is let in; for one that wants another, `GaveWay` is raised. Begins when nobody else asks."""
        self._take(lambda: not self._asking, progress, "waiting for others")
        with self._changed:
            self._held = wanted
        try:
            yield lambda: self._let_in(wanted, progress)
        finally:
            with self._changed:
                self._held = None
            self._give()

    def _let_in(self, held: Hashable, progress: Progress) -> None:
        with self._changed:
            if not self._asking:
                return
        self._give()
        try:
            with self._changed:
                last = time.monotonic()
                while not self._others(held) and (self._asking or time.monotonic() - last < FOLLOW):
                    if self._asking:
                        last = time.monotonic()
                    self._changed.wait(_POLL)
                    progress.check()
        finally:
            self._take(lambda: True)
        if self._others(held):
            raise GaveWay()

    def _others(self, held: Hashable) -> bool:
        return any(wanted != held for wanted in self._asking.values())

    def _take(self, may: Callable[[], bool], progress: Progress = SILENT, label: str = "") -> None:
        said = False
        with self._changed:
            while self._taken or not may():
                if not said:
                    progress.update(0, 1, label)
                    said = True
                self._changed.wait(_POLL)
                progress.check()
            self._taken = True

    def _give(self) -> None:
        with self._changed:
            self._taken = False
            self._changed.notify_all()
