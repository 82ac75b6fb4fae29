"""Pages are drawn a few at a time, those of other tabs in line: twenty at once take longer for every one of them, the
last one too. What a page waits for is waited for outside the line.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from core.jobs import Job
from core.line import Line

AT_ONCE = 2
"""One is drawn while another one waits for the store or the network."""
PATIENCE = 1.0
"""Seconds in line at most."""
LINE = Line(AT_ONCE, patience=PATIENCE)


def drawn(draw: Callable[[], None]) -> Callable[[], None]:
    """`draw()` draws a whole page; with this it does when it has a place."""

    @functools.wraps(draw)
    def in_turn() -> None:
        with LINE.place():
            draw()

    return in_turn


def waited(job: Job, seconds: float) -> bool:
    """Wait for a job, at most so long; whether it has ended."""
    with LINE.outside():
        return job.wait(seconds)
