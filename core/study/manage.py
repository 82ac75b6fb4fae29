"""Stopping, renaming and deleting studies of a store, whoever runs them. Knows states; measures nothing."""

from __future__ import annotations

from typing import Any

from ..errors import InputError
from .data import CANCELLED, INTERRUPTED, QUEUED, RUNNING, running_already, state_of


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
