"""How long work reports how far it is, and learns that it should stop.

The engine knows only the `Progress` class; the job worker, the command line and the tests pass their own.
"""

from __future__ import annotations

from collections.abc import Callable


class Progress:
    """Receives progress of one piece of work. This base class ignores it all and never cancels.

    `update(done, total, label)`: `done` of `total` units of comparable cost are finished; `label` says in a
    few words what is being done. `check()` raises `core.errors.Cancelled` when the work should stop; the
    engine calls it between steps that take well under a second.
    """

    def update(self, done: float, total: float, label: str = "") -> None:
        """Report that `done` of `total` units are finished."""

    def check(self) -> None:
        """Raise `Cancelled` if the work should stop."""

    def pause(self) -> None:
        """A moment between two sweeps, while nothing of the model is in use: whoever waits for it may be let in."""
        self.check()

    def turn(self, *, waits: bool) -> None:
        """Whether the work waits for its turn to compute (see `core.turns`) from now on."""


class Share(Progress):
    """A part of a whole: from `before`, `mine` of the `total` units that `outer` is told about."""

    def __init__(self, outer: Progress, before: float, mine: float, total: float, label: str = "") -> None:
        """`label`: what the outer one is told, if not the part's own words."""
        self._outer, self._before, self._mine, self._total = outer, before, mine, total
        self._label = label

    def update(self, done: float, total: float, label: str = "") -> None:
        self._outer.update(self._before + self._mine * done / total, self._total, self._label or label)

    def check(self) -> None:
        self._outer.check()

    def pause(self) -> None:
        self._outer.pause()


class Pausing(Progress):
    """`outer` with something to do in the pauses."""

    def __init__(self, outer: Progress, between: Callable[[], None]) -> None:
        self._outer, self._between = outer, between

    def update(self, done: float, total: float, label: str = "") -> None:
        self._outer.update(done, total, label)

    def check(self) -> None:
        self._outer.check()

    def pause(self) -> None:
        self._outer.check()
        self._between()


SILENT = Progress()
