"""Tables made of a result, made once: they are kept with the result itself and go when it goes.

Knows neither results nor tables: only that equal arguments give an equal table, and that a table's reader may add
columns to it as if it were his own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pandas as pd

KEPT = 32
"""How many tables are kept with one result."""


def remembered(make: Callable[..., pd.DataFrame]) -> Callable[..., pd.DataFrame]:
    """`make(result, *arguments)`, done once for each result and arguments (hashable ones).

    Each caller gets a copy that shares the values until one of the two is changed (pandas' copy-on-write).
    """

    @functools.wraps(make)
    def call(result: Any, *arguments: Any) -> pd.DataFrame:
        tables = vars(result).setdefault("_tables", {})  # frozen dataclasses have a dictionary, too
        key = (make.__name__, *arguments)
        table = tables.get(key)
        if table is None:
            table = make(result, *arguments)
            if len(tables) >= KEPT:
                tables.clear()  # two threads may be here at once: nothing that could fail, no order to keep
            tables[key] = table
        return table.copy(deep=False)

    return call
