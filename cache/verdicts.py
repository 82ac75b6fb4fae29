"""The verdicts of a store that is opened only for the moment of a question, so that others can use it meanwhile.

For work that takes long and needs nothing else of the store. Verdicts are a convenience: a store that cannot be had
is taken for one that knows nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from core.errors import StoreError

from .borrowed import WAIT_SECONDS
from .lending import patiently
from .location import default_path
from .store import Store


class Verdicts:
    """`Store.get_verdict` and `Store.put_verdict` of the store at `path` (default: its usual place)."""

    def __init__(self, path: str | os.PathLike[str] | None = None, *, wait_seconds: float = WAIT_SECONDS) -> None:
        self._path = Path(path) if path is not None else default_path()
        self._wait = wait_seconds

    def get_verdict(self, key: str) -> dict[str, Any] | None:
        """The verdict stored under `key`, or None."""
        try:
            with patiently(lambda: Store.open(self._path), self._wait, path=self._path) as store:
                return store.get_verdict(key)
        except StoreError:
            return None

    def put_verdict(self, key: str, model: str, verdict: dict[str, Any]) -> None:
        """Store a verdict if that can be done."""
        try:
            with patiently(lambda: Store.open(self._path), self._wait, path=self._path) as store:
                store.put_verdict(key, model, verdict)
        except StoreError:
            return
