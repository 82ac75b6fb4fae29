"""Holding, stopping, renaming and deleting studies of a store, whoever runs them. Knows states; measures nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ..errors import Cancelled, ExpertScopeError, InputError
from . import locks
from .data import CANCELLED, INTERRUPTED, QUEUED, RUNNING, running_already, state_of


@contextlib.contextmanager
def preparing(book: Any, name: str, doing: str) -> Iterator[None]:
    """Hold the study `name` while its model is loaded: whoever looks at it sees that it waits, and what for (`doing`,
    its note), and can cancel it, which raises `Cancelled` at the end of the block at the latest. Where the block fails,
    the study is as before. Raises `InputError` where somebody works on it."""
    record = book.get(name)
    with locks.trying(locks.folder_beside(book.path), f"study {record.id}", patience=1.0) as mine:
        if not mine:
            raise running_already(name)
        end: dict[str, Any] = {"state": record.state, "note": record.note}
        book.update(name, state=QUEUED, note=doing, stop=False)
        try:
            yield
            if book.get(name).stop:
                raise Cancelled()
            end = {"note": ""}
        except (Cancelled, KeyboardInterrupt):
            end = {"state": CANCELLED, "note": ""}
            raise
        finally:
            with contextlib.suppress(ExpertScopeError):
                book.update(name, **end)


def cancel(book: Any, name: str) -> bool:
    """Ask a study to stop; whether somebody was working on it (then it stops within seconds). What is done is kept.

    Raises `InputError` for one that has ended.
    """
    record = book.get(name)
    state = state_of(book, record)
    if state == INTERRUPTED:
        book.update(record.name, state=CANCELLED)
    elif state in (RUNNING, QUEUED):
        book.update(record.name, stop=True)
    else:
        raise InputError(f"The study {name!r} is not running: it is {state}.", "", field="name")
    return state != INTERRUPTED


def rename(book: Any, name: str, new: str) -> None:
    """Give a study that is not running another name."""
    check_idle(book, name)
    book.rename(name, new)


def delete(book: Any, name: str) -> None:
    """Remove a study that is not running."""
    check_idle(book, name)
    book.delete(name)


def check_idle(book: Any, name: str) -> None:
    """Raises `InputError` where somebody works on the study, or there is none."""
    if state_of(book, book.get(name)) in (RUNNING, QUEUED):
        raise running_already(name)
