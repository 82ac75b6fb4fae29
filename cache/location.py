"""Where the store's file lives. Knows the platform's habits and one environment variable; touches no disk."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

HOME_VARIABLE = "EXPERTSCOPE_HOME"
FILE_NAME = "store.duckdb"


def home(environ: Mapping[str, str] | None = None, *, platform: str | None = None) -> Path:
    """ExpertScope's own folder: `EXPERTSCOPE_HOME`, else a folder in the user's cache folder.

    Linux: `$XDG_CACHE_HOME` or `~/.cache`; macOS: `~/Library/Caches`; Windows: `%LOCALAPPDATA%`.
    """
    environ = os.environ if environ is None else environ
    platform = sys.platform if platform is None else platform
    if environ.get(HOME_VARIABLE):
        return Path(environ[HOME_VARIABLE]).expanduser()
    if platform == "win32":
        base = Path(environ["LOCALAPPDATA"]) if environ.get("LOCALAPPDATA") else Path.home() / "AppData" / "Local"
    elif platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(environ.get("XDG_CACHE_HOME", ""))
        if not base.is_absolute():  # the XDG rule: unset, empty and relative values do not count
            base = Path.home() / ".cache"
    return base / "expertscope"


def default_path(environ: Mapping[str, str] | None = None) -> Path:
    """The store's file in `home()`."""
    return home(environ) / FILE_NAME
