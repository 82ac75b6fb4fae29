"""Whose turn it is with the one loaded model: short work soon, long work in between and giving way to it.

Knows threads and what they want (any value that can be compared: a model's name and settings), no models.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterator

from .progress import SILENT, Progress

_POLL = 0.05  # seconds between two looks whether someone asked to stop


class GaveWay(Exception):
    """Long work has to let go of its model, for someone waits for another one. It starts again where it was."""


class Turns:
    """One thread at a time computes. Long work is asked to let others in at moments that suit it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken = False
        self._asking: list[Hashable] = []
        self._held: Hashable | None = None

    @contextlib.contextmanager
    def short(self, wanted: Hashable, progress: Progress = SILENT) -> Iterator[None]:
        """Alone inside the block. Waits for whoever computes now, and until long work has let go of another model
        than `wanted`. Raises what `progress.check` raises while it waits."""
        with self._changed:
            self._asking.append(wanted)
        try:
            self._take(lambda: self._held in (None, wanted), progress, "waiting for a study to pause")
            try:
                yield
            finally:
                self._give()
        finally:
            with self._changed:
                self._asking.remove(wanted)
                self._changed.notify_all()

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
                while self._asking and not self._others(held):
                    self._changed.wait(_POLL)
                    progress.check()
        finally:
            self._take(lambda: True)
        if self._others(held):
            raise GaveWay()

    def _others(self, held: Hashable) -> bool:
        return any(wanted != held for wanted in self._asking)

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
