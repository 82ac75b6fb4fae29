"""What DuckDB and the disk report, in words for a person. Knows messages; opens nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from core.errors import StoreBusy, StoreError

Kind = Literal["locked", "newer", "full", "denied", "damaged", "conflict", "other"]

_PATTERNS: list[tuple[Kind, str]] = [
    ("locked", r"could not set lock on file|conflicting lock|being used by another process"),
    ("newer", r"newer (version of )?duckdb|storage version|version number \d+, but"),
    ("full", r"no space left|disk quota|file too large|disk full|not enough space"),
    ("denied", r"permission denied|read-only|access is denied|operation not permitted"),
    ("damaged", r"not a valid duckdb|corrupt|checksum|could not read enough bytes|serializ|deserializ|failed to load"),
    ("conflict", r"conflict|duplicate key|write-write"),
]


def kind(error: BaseException) -> Kind:
    """Which sort of fault this is, judged by the message (DuckDB's error classes do not tell them apart)."""
    text = str(error).lower()
    for name, pattern in _PATTERNS:
        if re.search(pattern, text):
            return name
    return "other"


def breaks_connection(error: BaseException) -> bool:
    """Whether DuckDB refuses all further work on the open database after this error."""
    return "invalidated" in str(error).lower() or type(error).__name__ in ("FatalException", "InternalException")


def explain(error: BaseException, path: Path) -> StoreError:
    """The same fault as a StoreError that says what to do. Damage is reported by `set_aside_message`."""
    name = kind(error)
    if name == "locked":
        pid = re.search(r"\(PID (\d+)\)", str(error))
        who = f"another process (PID {pid.group(1)})" if pid else "another process"
        return StoreBusy(
            f"The store {path} is in use by {who}; only one process at a time can have it open.",
            "Stop that one (an ExpertScope dashboard or command that is still running), use its dashboard instead, "
            "give --no-cache on the command line, or set EXPERTSCOPE_HOME to another folder.",
        )
    if name == "newer":
        return StoreError(
            f"The store {path} was written by a newer DuckDB; nothing in it was changed.",
            "Update the packages, or set EXPERTSCOPE_HOME to another folder.",
        )
    if name == "full":
        return StoreError(
            f"The disk with the store {path} is full; nothing was stored.",
            "Free some space, lower the store's limit and compact it, or set EXPERTSCOPE_HOME to another disk.",
        )
    if name == "denied" or isinstance(error, PermissionError):
        return StoreError(
            f"The store {path} cannot be written: no permission, or a read-only folder.",
            "Set EXPERTSCOPE_HOME to a folder that you can write to.",
        )
    if name == "damaged":
        return StoreError(f"The store {path} is damaged.", "Move the file away; a new, empty store is then made.")
    return StoreError(
        f"The store {path} cannot be used: {_one_line(error)}.", "Set EXPERTSCOPE_HOME to another folder, or move it."
    )


def set_aside_message(path: Path, aside: Path) -> StoreError:
    """For a damaged file that was renamed from `path` to `aside`."""
    return StoreError(
        f"The store {path} is damaged. It was set aside as {aside.name}, its contents untouched.",
        "Ask again: a new, empty store takes its place, and answers are computed anew.",
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
