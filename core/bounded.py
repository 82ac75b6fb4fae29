"""A memory with a bound: what was asked for longest ago is forgotten. Knows only how large tables are."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import pandas as pd

VALUES = 3_000_000
"""Values in all tables together: about 100 MB, for most are short texts."""
BYTES = 32
"""Of a packed table (`core.picture.packed`) that count as a value."""


class Bounded:
    """Things by key. From any thread."""

    def __init__(self, most: int = 512, values: int = VALUES) -> None:
        """`most`: how many things are kept; `values`: how many values in their tables together. The last one that came
        is always there."""
        self._most, self._values = most, values
        self._things: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Any:
        """What is kept under the key, or None."""
        with self._lock:
            if key not in self._things:
                return None
            self._things.move_to_end(key)
            return self._things[key][0]

    def keep(self, key: Hashable, thing: Any, size: int) -> Any:
        """Keep it, and give it back; or, where another thread was faster, what is there already. `size`: how many
        values it counts for (see `values_in`)."""
        with self._lock:
            if key in self._things:
                self._things.move_to_end(key)
                return self._things[key][0]
            self._things[key] = thing, size
            self._held += size
            while len(self._things) > 1 and (len(self._things) > self._most or self._held > self._values):
                self._held -= self._things.popitem(last=False)[1][1]
            return thing

    def drop(self, unwanted: Callable[[Any], bool]) -> None:
        """Forget the things for which `unwanted` is true."""
        with self._lock:
            gone = [self._things.pop(key) for key, (thing, _) in list(self._things.items()) if unwanted(thing)]
            self._held -= sum(size for _, size in gone)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._things.clear()
            self._held = 0

    def __len__(self) -> int:
        return len(self._things)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._things


def values_in(thing: Any) -> int:
    """How many values the tables hold that a thing is, or has in its fields, or in a dictionary there."""
    if isinstance(thing, pd.DataFrame):
        return thing.size
    if isinstance(thing, bytes):
        return len(thing) // BYTES
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        return sum(map(values_in, vars(thing).values()))
    if isinstance(thing, dict):
        return sum(values_in(part) for part in thing.values() if isinstance(part, pd.DataFrame | bytes))
    return 0
