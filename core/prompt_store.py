"""Long lists of pasted prompts in the store, under their content key, so that a short link brings them back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from .prompt_lists import key_of

LABEL = "pasted prompts"
"""Under which name the store counts them."""


class StoreLike(Protocol):
    """What is needed of `cache.store.Store`: JSON values under a key that are never evicted, only cleared."""

    def get_verdict(self, key: str) -> dict[str, Any] | None: ...
    def put_verdict(self, key: str, model: str, verdict: dict[str, Any]) -> None: ...


def keep(store: StoreLike, prompts: Sequence[str]) -> str:
    """Store the prompts; their key."""
    key = key_of(prompts)
    if store.get_verdict(f"prompts-{key}") is None:
        store.put_verdict(f"prompts-{key}", LABEL, {"prompts": list(prompts)})
    return key


def find(store: StoreLike, key: str) -> tuple[str, ...] | None:
    """The prompts under a key, or None where the store has none."""
    found = store.get_verdict(f"prompts-{key}")
    return None if found is None else tuple(found["prompts"])
