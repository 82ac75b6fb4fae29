"""Ending a server soon after it is told to: work is stopped, the store closed, then the process is gone.

The web server's own end waits for its viewers' connections, Python's for every thread; one viewer whose machine sleeps,
or a weight file that is being read, would hold both up. So it is done here, with a limit. Ending the process hard is
safe: what was acknowledged is committed. Knows signals and threads only.
"""

from __future__ import annotations

import atexit
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
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)  # written to at once, also while the main thread is busy
    threading.Thread(target=_wait, args=(told, signals), name="expertscope-closing", daemon=True).start()


def _wait(told: int, signals: tuple[signal.Signals, ...]) -> None:
    while (number := os.read(told, 1)[0]) not in signals:
        pass
    begun = time.monotonic()
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
