"""What keeps tables of the store without keeping its file open: it is open only while a method runs (or as long as a
`Store` of the same process holds it), so that several processes can work on one store in turn.

Knows how to read and write, not what.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from .database import Database, acquire, release
from .lending import patiently
from .location import default_path
from .migrations import Cursor

T = TypeVar("T")

WAIT_SECONDS = 5.0
"""How long a method waits for a store that another process has open just now."""


class Borrowed:
    """Part of the store at `path`. Methods may be called from any thread; for a person they raise StoreErrors."""

    def __init__(self, path: str | os.PathLike[str] | None = None, *, wait_seconds: float = WAIT_SECONDS) -> None:
        self.path = Path(path) if path is not None else default_path()
        self._wait = wait_seconds

    def _read(self, query: str, parameters: Mapping[str, Any] | None = None) -> list[tuple]:
        values = dict(parameters) if parameters else None
        return self._with(lambda database: database.read(lambda cursor: cursor.execute(query, values).fetchall()))

    def _write(self, work: Callable[[Cursor, Database], T]) -> T:
        return self._with(lambda database: database.write(lambda cursor: work(cursor, database)))

    def _with(self, work: Callable[[Database], T]) -> T:
        """Do `work` on the open database, waiting for it where another process has it."""
        database = patiently(lambda: acquire(self.path), self._wait, path=self.path)
        try:
            return work(database)
        finally:
            release(database)
