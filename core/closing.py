"""Ending a server soon after it is told to: work is stopped, the store closed, then the process is gone.

The web server's own end waits for its viewers' connections, Python's for every thread; one viewer whose machine sleeps,
or a weight file that is being read, would hold both up. So it is done here, with a limit. Ending the process hard is
safe: what was acknowledged is committed. Knows signals and threads only.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from .logs import event

log = logging.getLogger(__name__)

LIMIT = 1.5
"""Seconds from the signal to the end of the process at the latest."""
SHARE = 1.0
"""Seconds of them that work has for coming to its end."""

_closers: list[Callable[[float], None]] = []
_closing = threading.Lock()
_ending = threading.Event()


def at_end(close: Callable[[float], None]) -> None:
    """Have `close(seconds)` called once when the process ends, by `end_soon` or as Python itself ends."""
    _closers.append(close)
    atexit.register(_close, 5.0)


def end_soon(*, signals: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGINT)) -> None:
    """From now on the process ends within `LIMIT` seconds of one of these signals, with status 0, whatever handler
    they have. To be called in the main thread. Does nothing where the system has no such descriptors (Windows)."""
    if sys.platform == "win32":
        return
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    others = _Others(signal.set_wakeup_fd(tell, warn_on_full_buffer=False))  # written to also while this thread is busy
    signal.set_wakeup_fd = others.set
    waiting = threading.Thread(target=_wait, args=(told, signals, others), name="expertscope-closing", daemon=True)
    waiting.start()
    # Where Python itself comes to its end meanwhile, it waits: it must not take apart what is being closed.
    atexit.register(lambda: _ending.is_set() and waiting.join(LIMIT))


class _Others:
    """Who else wants to be written to when a signal comes. There is one place for that in a process, and uvloop takes
    it for its event loop, never asking what was there: it is told through ours."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def set(self, descriptor: int, *, warn_on_full_buffer: bool = True) -> int:
        """In the place of `signal.set_wakeup_fd`; nobody is warned."""
        before, self.descriptor = self.descriptor, descriptor
        return before

    def tell(self, number: int) -> None:
        """Write a signal's number to them."""
        if self.descriptor >= 0:
            with contextlib.suppress(OSError):  # full: they know; closed: nobody is there any more
                os.write(self.descriptor, bytes([number]))


def _wait(told: int, signals: tuple[signal.Signals, ...], others: _Others) -> None:
    while (number := os.read(told, 1)[0]) not in signals:
        others.tell(number)
    begun = time.monotonic()
    _ending.set()
    last = threading.Timer(LIMIT, os._exit, (0,))
    last.daemon = True
    last.start()
    event(log, "ending", signal=signal.Signals(number).name)
    _close(SHARE)
    event(log, "ended", seconds=round(time.monotonic() - begun, 2))
    os._exit(0)


def _close(seconds: float) -> None:
    with _closing:  # whoever comes second waits: Python must not end in the middle of it
        while _closers:
            try:
                _closers.pop()(seconds)
            except Exception:  # the others have to be closed all the same
                log.exception("closing failed")
