"""Whose turn it is to compute: one at a time, first come first served, without changing models to and fro.

The rule. Who asked first is served first, but for a *term* after a model was loaded (`TERM_SHARE` times what loading
took, at least `LEAST_TERM`) what wants a loaded model goes before what would have to load another one. So at most a
third of the time goes into loading, and nobody is overtaken for longer than a term. Work that pauses lets those in who
are quicker than it is; where one of them wants another model it gives way, after the term. Studies come after all
others.

Knows threads, who asks, and what they want (any value that can be compared: a model and its settings); no models.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass

from .progress import SILENT, Progress

SHORT, PAUSED, LONG = 0, 1, 2
"""Ranks: what is not interrupted; what pauses for the short; what pauses for both and begins when nobody else asks."""
TERM_SHARE = 2.0
LEAST_TERM = 2.0
"""Seconds."""
_POLL = 0.05  # seconds between two looks whether someone asked to stop
FOLLOW = 0.05
"""Seconds that long work waits, when those whom it let in are done, for the next one of a queue: each would wait for a
whole step otherwise."""


class GaveWay(Exception):
    """Work has to let go of its model, for someone waits for another one. It starts again where it was."""


@dataclass(frozen=True)
class Asked:
    """Someone who waits. `key`: who; `wanted`: the model, None: none may be in use; `since`: seconds, of the clock."""

    key: Hashable
    wanted: Hashable
    since: float
    rank: int


def order(waiting: Iterable[Asked], near: Callable[[Hashable], bool], *, term: bool) -> list[Asked]:
    """Those who wait, in the order of their turns as things stand. `near`: whether a model is loaded; `term`: whether
    the one that was loaded last still has its term."""
    return sorted(
        waiting, key=lambda a: (a.rank == LONG, term and a.wanted is not None and not near(a.wanted), a.since)
    )


class Turns:
    """One thread at a time computes. `queue`: all who will ask for a turn but have not come to it yet (who asks is
    known by the same `key`); `near`: whether a model is loaded."""

    def __init__(
        self,
        *,
        queue: Callable[[], Iterable[Asked]] = tuple,
        near: Callable[[Hashable], bool] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._changed = threading.Condition()
        self._queue, self._clock = queue, clock
        self._near = near or (lambda wanted: wanted == self._last)
        self._taken = False
        self._tickets = itertools.count()
        self._asking: dict[Hashable, Asked] = {}
        self._holders: list[Asked] = []  # who computes, behind those who pause for it
        self._last: Hashable | None = None
        self._term_ends = clock()

    # -- who waits ----------------------------------------------------------------------------------------------

    @property
    def inside(self) -> Asked | None:
        """Who computes now."""
        holders = self._holders
        return holders[-1] if holders else None

    @property
    def held(self) -> Hashable | None:
        """The model that someone who pauses is about to go on with."""
        holders = self._holders
        return holders[0].wanted if len(holders) > 1 else None

    def waiting(self) -> list[Asked]:
        """Who waits, in the order of their turns as things stand."""
        with self._changed:
            return self._order()

    def loaded(self, seconds: float) -> None:
        """A model was just loaded, which took so long: its term begins."""
        with self._changed:
            self._term_ends = self._clock() + max(LEAST_TERM, TERM_SHARE * seconds)

    def _order(self) -> list[Asked]:
        everyone = {asked.key: asked for asked in self._queue()} | self._asking
        inside = {holder.key for holder in self._holders}
        return order([a for a in everyone.values() if a.key not in inside], self._near, term=self._in_term())

    def _in_term(self) -> bool:
        return self._clock() < self._term_ends

    # -- taking turns -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def short(self, wanted: Hashable, progress: Progress = SILENT, *, asked: Asked | None = None) -> Iterator[None]:
        """Alone inside the block. Raises what `progress.check` raises while it waits. `asked`: how `queue` knows it."""
        with self._turn(asked or self._new(wanted, SHORT), progress):
            yield

    @contextlib.contextmanager
    def paused(
        self, wanted: Hashable, progress: Progress = SILENT, *, asked: Asked | None = None, patience: float = 0.0
    ) -> Iterator[Callable[[], None]]:
        """As `short`, but not alone in calls of the function that it gives: there, short work that has asked meanwhile
        is let in, and where some of it wants another model, `GaveWay` is raised, though not in the first `patience`
        seconds."""
        me = asked or self._new(wanted, PAUSED)
        with self._turn(me, progress):
            until = self._clock() + patience
            yield lambda: self._let_in(me, progress, until)

    @contextlib.contextmanager
    def long(self, wanted: Hashable, progress: Progress = SILENT) -> Iterator[Callable[[], None]]:
        """As `paused`, for work that begins when nobody else asks, and lets in all others."""
        me = self._new(wanted, LONG)
        with self._turn(me, progress):
            yield lambda: self._let_in(me, progress, 0.0)

    def _new(self, wanted: Hashable, rank: int) -> Asked:
        return Asked(("ticket", next(self._tickets)), wanted, self._clock(), rank)

    @contextlib.contextmanager
    def _turn(self, me: Asked, progress: Progress) -> Iterator[None]:
        with self._changed:
            self._asking[me.key] = me
        try:
            self._take(lambda: self._is_next(me), progress)
            with self._changed:
                del self._asking[me.key]
                self._holders.append(me)
                self._last = me.wanted
        except BaseException:
            with self._changed:
                self._asking.pop(me.key, None)
                self._changed.notify_all()
            raise
        progress.turn(waits=False)
        try:
            yield
        finally:
            with self._changed:
                self._holders.remove(me)
            self._give()

    def _is_next(self, me: Asked) -> bool:
        """Whether `me` may have the turn that is free: of those whom the one who pauses lets in, the first."""
        return next((asked for asked in self._order() if self._may_enter(asked)), None) == me

    def _may_enter(self, asked: Asked) -> bool:
        top = self.inside
        return top is None or (asked.rank < top.rank and asked.wanted is not None and self._near(asked.wanted))

    def _let_in(self, me: Asked, progress: Progress, until: float) -> None:
        """Let others in: of those who wait now the ones who may enter, for long work also who comes meanwhile."""
        with self._changed:
            self._check_way(me, until)
            ahead = {asked.key for asked in self._order() if self._may_enter(asked)}
        if not ahead:
            return
        self._give()
        try:
            with self._changed:
                last = time.monotonic()
                while True:
                    if self._taken or any(
                        (asked.key in ahead or me.rank == LONG) and self._may_enter(asked) for asked in self._order()
                    ):
                        last = time.monotonic()
                    elif me.rank != LONG or time.monotonic() - last >= FOLLOW:
                        break
                    self._changed.wait(_POLL)
                    progress.check()
                    if not self._taken:
                        self._check_way(me, until)
        finally:
            self._take(lambda: self.inside == me)

    def _check_way(self, me: Asked, until: float) -> None:
        """Raises `GaveWay` where one who goes first waits for another model, and `me` has had its time."""
        if self._in_term() or self._clock() < until:
            return
        if any(asked.rank < me.rank and not (asked.wanted and self._near(asked.wanted)) for asked in self._order()):
            raise GaveWay()

    def _take(self, may: Callable[[], bool], progress: Progress = SILENT) -> None:
        said = False
        with self._changed:
            while self._taken or not may():
                if not said and progress is not SILENT:
                    progress.update(0, 1, "waiting for others")
                    said = True
                self._changed.wait(_POLL)
                progress.check()
            self._taken = True

    def _give(self) -> None:
        with self._changed:
            self._taken = False
            self._changed.notify_all()
