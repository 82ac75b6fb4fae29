"""Tokenizers of models that need not be loaded: read from their files on this machine, once for each state of them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import catalog
from .deployment import check_allowed
from .errors import ModelError
from .identity import locate
from .requests import ModelSpec

log = logging.getLogger(__name__)


class Tokenizers:
    """See the module. May be called from any thread."""

    def __init__(self, imported: Callable[[], None]) -> None:
        """`imported`: waits until nobody else is importing transformers; two at once, and one may see half of it."""
        self._imported = imported
        self._lock = threading.Lock()
        self._known: dict[tuple[str, float], Any] = {}

    def of(self, spec: ModelSpec) -> tuple[Any, int | None]:
        """(tokenizer, the model's context in tokens). Raises ModelError where the files are not on this machine or
        cannot be read."""
        check_allowed(spec)
        folder = locate(spec)
        files = [] if folder is None else [p for p in Path(folder).glob("tokenizer*") if p.is_file()]
        if not files:
            raise ModelError(
                f"The tokenizer of {spec.name} is not on this machine.",
                "Its tokens are shown once the model was loaded.",
            )
        key = (str(folder), max(p.stat().st_mtime for p in files))
        with self._lock:
            if key in self._known:
                return self._known[key]
        catalog.check_tokenizer(Path(folder))
        self._imported()
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        except Exception as error:
            log.exception("tokenizer cannot be read", extra={"fields": {"model": spec.name}})
            raise ModelError(f"The tokenizer of {spec.name} cannot be read ({type(error).__name__}).") from error
        found = tokenizer, _context(Path(folder))
        with self._lock:
            return self._known.setdefault(key, found)


def _context(folder: Path) -> int | None:
    """The model's context in tokens, from its configuration."""
    config = catalog.json_file(folder / "config.json") or {}
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and isinstance(part.get("max_position_embeddings"), int):
            return part["max_position_embeddings"]
    return None
