"""Who works on what, between processes: a lock on a file that the system gives back when its holder dies.

Studies of one model wait for one another, and nobody resumes a study that someone else runs. Knows files only.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ..progress import SILENT, Progress

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
    import msvcrt

_POLL = 0.1


@contextlib.contextmanager
def waiting(folder: Path, name: str, *, label: str, progress: Progress = SILENT) -> Iterator[None]:
    """Hold the lock `name`. As long as someone else has it: show `label`, wait, raise what `progress.check` raises."""
    with _open(folder, name) as handle:
        while not _take(handle):
            progress.update(0, 1, label)
            progress.check()
            time.sleep(_POLL)
        try:
            yield
        finally:
            _release(handle)


@contextlib.contextmanager
def trying(folder: Path, name: str, *, patience: float = 0.0) -> Iterator[bool]:
    """Whether the lock `name` could be had within `patience` seconds; it is held inside the block then."""
    with _open(folder, name) as handle:
        deadline = time.monotonic() + patience
        while not (taken := _take(handle)) and time.monotonic() < deadline:
            time.sleep(_POLL / 10)
        try:
            yield taken
        finally:
            if taken:
                _release(handle)


def _open(folder: Path, name: str) -> IO[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    return open(folder / f"{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:24]}.lock", "ab")


def _take(handle: IO[bytes]) -> bool:
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            handle.seek(0)
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError:
        return False
    return True


def _release(handle: IO[bytes]) -> None:
    with contextlib.suppress(OSError):
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_UN)
        else:
            handle.seek(0)
            msvcrt.locking(handle.fileno(), msvcrt.LK_UNLCK, 1)


def folder_beside(store: str | os.PathLike[str]) -> Path:
    """Where the locks that belong to a store lie."""
    return Path(store).parent / "locks"
