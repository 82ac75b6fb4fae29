"""The terminal: progress with the time left on stderr, messages that no terminal chokes on.

Knows nothing of facts or models.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from typing import TextIO

from .progress import Progress

_REDRAW = 0.1  # seconds between two updates of the line
_LOG_EVERY = 10.0  # seconds between two lines where stderr is no terminal


class TerminalProgress(Progress):
    """One line, redrawn, on a terminal; a new line now and then elsewhere (a log). `close()` ends the line.

    Time left = time since this label began ÷ done × what is left, once that can be told at all.
    """

    def __init__(self, stream: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        self._tty = False
        with contextlib.suppress(OSError, ValueError, AttributeError):  # a closed stream is no terminal
            self._tty = bool(self._stream.isatty())
        self._label = ""
        self._began = (0.0, 0.0)  # (time, done) when the label was first seen
        self._last_shown = float("-inf")
        self._width = 0

    def update(self, done: float, total: float, label: str = "") -> None:
        """Show `done` of `total`."""
        now = self._clock()
        fresh = label != self._label or done < self._began[1]
        if fresh:
            self._label, self._began = label, (now, done)
        finished = total > 0 and done >= total
        interval = _REDRAW if self._tty else _LOG_EVERY
        if not fresh and not finished and now - self._last_shown < interval:
            return
        self._last_shown = now
        share = min(max(done / total, 0.0), 1.0) if total > 0 else 0.0
        started, base = self._began
        left = ""
        if not finished and done > base and now - started > 0.5:
            left = f", {duration((now - started) / (done - base) * (total - done))} left"
        self._show(f"{label or 'working'}: {share:4.0%}{left}")

    def close(self) -> None:
        """Remove the line from the terminal, so that what follows stands on a line of its own."""
        if self._tty and self._width:
            self._show("")
            self._write("\r")
            self._width = 0

    def _show(self, text: str) -> None:
        if self._tty:
            self._write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self._write(text + "\n")

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # stderr closed: nobody is watching
            self._stream.write(text)
            self._stream.flush()


def duration(seconds: float) -> str:
    """`8 s`, `3 min 20 s`, `2 h 5 min`."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s" if seconds < 600 else f"{round(seconds / 60)} min"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def tolerant(stream: TextIO) -> None:
    """Let `stream` write characters that its encoding lacks as escapes instead of failing."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        with contextlib.suppress(OSError, ValueError):
            reconfigure(errors="backslashreplace")


def visible(text: str) -> str:
    """`text` without control characters (which could drive the terminal): they are shown as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def say(text: str) -> None:
    """`text` on stderr; a closed stderr stops nothing."""
    with contextlib.suppress(OSError, ValueError):
        print("\n".join(visible(line) for line in text.split("\n")), file=sys.stderr, flush=True)
