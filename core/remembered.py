"""What is made of a result, made once: it is kept for as long as the result itself.

Knows neither results nor tables: only that equal arguments give an equal answer, and that a table's reader may add
columns to it as if it were his own.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import pandas as pd

T = TypeVar("T")

KEPT = 32
"""How many answers are kept with one result."""
SMALL = 100_000
"""Values up to which a table is copied whole: less than a millisecond. A copy that shares its values leaves a reference
behind with each of the original's blocks, hundreds of them before pandas clears away the dead ones."""

_made: dict[int, tuple[weakref.ref, dict[tuple, Any]]] = {}


def remembered(make: Callable[..., T]) -> Callable[..., T]:
    """`make(result, *arguments)`, done once for each result (this very object) and arguments (hashable ones).

    Each caller gets a copy of a table; that of a large one shares its values until one of the two is changed (pandas'
    copy-on-write).
    """

    @functools.wraps(make)
    def call(result: Any, *arguments: Any) -> T:
        kept, key = _of(result), (make.__qualname__, *arguments)
        found = kept.get(key)
        if found is None:
            found = make(result, *arguments)
            if isinstance(found, pd.DataFrame):
                found = found.copy()  # without the references that its making left behind, columns of one type together
            if len(kept) >= KEPT:
                kept.clear()  # other threads may be here at the same time: no order to keep, nothing that could fail
            kept[key] = found
        return found.copy(deep=found.size <= SMALL) if isinstance(found, pd.DataFrame) else found

    return call


def _of(result: Any) -> dict[tuple, Any]:
    """What was made of a result, by (function, arguments). By its id, for results have no hash."""
    number = id(result)
    entry = _made.get(number)
    if entry is None or entry[0]() is not result:
        entry = _made[number] = weakref.ref(result, functools.partial(_forget, _made, number)), {}
    return entry[1]


def _forget(made: dict[int, tuple[weakref.ref, Any]], number: int, gone: weakref.ref) -> None:
    """`made` is given, for at the end of a process a module's own names may be gone before a result is."""
    entry = made.get(number)
    if entry is not None and entry[0] is gone:  # another object may have the number by now
        made.pop(number, None)
