"""The rows of a table one by one, by the names of its columns.

As `DataFrame.itertuples(index=False)`, which makes a new class in every call: a good part of the time that a table of a
few rows takes, and one that stays in memory until Python looks for old cycles.
"""

from __future__ import annotations

import functools
from collections import namedtuple
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a command line that only says what it can do loads nothing heavy
    import pandas as pd

_KINDS = 256
"""Sets of columns whose class is kept."""


def named_rows(table: pd.DataFrame) -> Iterator[Any]:
    """Each row as a named tuple of plain Python values. A column whose name is no identifier is only reached by its
    place."""
    kind = _kind(tuple(map(str, table.columns)))
    return map(kind._make, zip(*(table.iloc[:, place].tolist() for place in range(table.shape[1])), strict=True))


@functools.lru_cache(_KINDS)
def _kind(columns: tuple[str, ...]) -> type[Any]:
    return namedtuple("Row", columns, rename=True)
