"""What whoever runs a shared dashboard fixes for its viewers: which models and folders may be loaded.

`EXPERTSCOPE_MODELS` lists them, separated by commas: `demo`, hub ids (`org/name`, or `org/*` for all of one owner), and
folders (absolute; every model in or below one). Of a hub id the hub's own revision is meant, for anybody may propose
another one there: `org/name@v1` names one, `@*` allows all. Not set: anything may be loaded.
`EXPERTSCOPE_MODELS_IN_MEMORY`: how many models may stay loaded at once, as far as memory allows; 1 unless given. The
command line is not bound by either.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from .errors import InputError, ModelError
from .identity import DEMO
from .requests import ModelSpec

VARIABLE = "EXPERTSCOPE_MODELS"
IN_MEMORY = "EXPERTSCOPE_MODELS_IN_MEMORY"


def allowed(environ: Mapping[str, str] = os.environ) -> tuple[str, ...] | None:
    """The entries of the setting; None where everything is allowed. Set but empty: nothing is."""
    text = environ.get(VARIABLE)
    return None if text is None else tuple(entry.strip() for entry in text.split(",") if entry.strip())


def is_allowed(name: str, entries: tuple[str, ...] | None, *, revision: str | None = None) -> bool:
    """Whether a model may be loaded under this name. What counts of a folder is where it really lies; of a hub model
    its revision too."""
    if entries is None or (name == DEMO and DEMO in entries):
        return True
    try:
        folder = Path(name).expanduser()
        is_folder = folder.is_dir()
    except (OSError, ValueError, RuntimeError):  # no folder's name
        return False
    if is_folder:
        real = folder.resolve()
        roots = [root for entry in entries if (root := Path(entry).expanduser()).is_absolute()]
        return name in entries or any(real.is_relative_to(root.resolve()) for root in roots)
    for entry in entries:
        model, _, revisions = entry.partition("@")
        if revision in (None, revisions) or revisions == "*":
            owner, slash, rest = name.partition("/")
            if model == name or (slash and rest and model == f"{owner}/*"):
                return True
    return False


def listed(entries: tuple[str, ...]) -> list[str]:
    """The models that the entries name: hub ids as they are, of a folder of models each model in it."""
    out = []
    for entry in entries:
        folder = Path(entry).expanduser()
        if not folder.is_absolute():
            model = entry.partition("@")[0]
            out += [] if model.endswith("/*") or model in out else [model]
        elif (folder / "config.json").is_file():
            out.append(entry)
        elif folder.is_dir():
            out += sorted(str(path.parent) for path in folder.glob("*/config.json"))
    return out


def models_in_memory(environ: Mapping[str, str] = os.environ) -> int:
    """How many models may stay loaded. Raises InputError for what is no whole number from 1 on."""
    text = environ.get(IN_MEMORY, "1").strip()
    if not (text.isascii() and text.isdecimal() and int(text[:9]) >= 1):
        raise InputError(f"{IN_MEMORY} is {text[:40]!r}.", "Set it to a whole number from 1 on, or leave it out.")
    return int(text[:9])


def check_allowed(spec: ModelSpec, environ: Mapping[str, str] = os.environ) -> None:
    """Raises ModelError for a model that this dashboard does not load."""
    entries = allowed(environ)
    if is_allowed(spec.name, entries, revision=spec.revision):
        return
    named = [entry for entry in entries or () if entry == DEMO or not Path(entry).expanduser().is_absolute()]
    choose = f"Choose one of: {', '.join(named)}." if named else "Ask whoever runs it."
    name = spec.name if spec.revision is None else f"{spec.name} at the revision {spec.revision}"
    raise ModelError(f"This dashboard does not load {name}.", choose)
