"""Which weights, run how: the part of a cache key that a request alone does not say. No torch.

The identity of a model is a digest over its files, number format, device kind, implementations and the versions of
the libraries that compute. What was asked, together with the identity, keys an answer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from .catalog import DEMO_FOLDER
from .facts import bundled_digest
from .prompts import subject_span
from .requests import ModelSpec, TraceRequest, digest

DEMO = "demo"
ENGINE = 2
"""Counted up whenever a change of the engine changes numbers: answers of another engine are not reused."""
_WHOLE = 64 * 2**20  # files up to this size are hashed whole, of larger ones blocks spread over the file
_BLOCK, _BLOCKS = 2**20, 64
_SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".jinja")


@functools.cache
def versions() -> dict[str, str]:
    """Versions of everything that can change a number in its last digits. Not to be changed by the caller."""
    found = {"python": platform.python_version()}
    for package in ("torch", "transformers", "tokenizers", "accelerate"):
        found[package] = importlib.metadata.version(package)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found["torchao"] = importlib.metadata.version("torchao")
    return found


def locate(spec: ModelSpec) -> Path | None:
    """The folder with the model's files on this machine, or None: the demo's, a local one, or the hub cache's."""
    if spec.name == DEMO:
        return DEMO_FOLDER
    try:
        folder = Path(spec.name).expanduser()
        if folder.is_dir():
            return folder
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, an unknown user: no folder
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(spec.name, "config.json", revision=spec.revision)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def fingerprint(folder: Path) -> str:
    """A digest of the files that make up a model: same weights, configuration and tokenizer, same fingerprint."""
    files = sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES and path.is_file())
    return digest("model", [[path.name, _file_mark(path)] for path in files])


def _file_mark(path: Path) -> str:
    real = Path(os.path.realpath(path)) if path.is_symlink() else path  # every page asks: resolving asks a lot more
    stat = real.stat()
    if real.parent.name == "blobs":  # the hub cache names its files by their content
        return real.name
    return _content_hash(str(real), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _content_hash(path: str, size: int, changed: int) -> str:
    """Of the whole file, or of its size and blocks from first byte to last. `changed` only keys what is remembered."""
    found = hashlib.sha256(str(size).encode())
    with open(path, "rb") as handle:
        if size <= _WHOLE:
            found.update(handle.read())
        else:
            for i in range(_BLOCKS):
                handle.seek((size - _BLOCK) * i // (_BLOCKS - 1))
                found.update(handle.read(_BLOCK))
    return found.hexdigest()


def identity_of(
    *, fingerprint: str, dtype: str, device: str, implementation: dict[str, str], quantisation: str = ""
) -> str:
    """The identity of a loaded model. Two that could give different numbers never share one."""
    return digest("identity", ENGINE, fingerprint, dtype, device, implementation, quantisation, versions())


def _spec_key(spec: ModelSpec) -> str | None:
    folder = locate(spec)
    if folder is None or not folder.is_dir():
        return None
    return digest("spec", ENGINE, dataclasses.asdict(spec), fingerprint(folder), versions())


def remember_identity(store: Any, spec: ModelSpec, identity: str, *, label: str) -> None:
    """Note under which identity the model that `spec` asks for was loaded, so that answers are found without it.

    `label`: the model's name in the store.
    """
    key = _spec_key(spec)
    if key is not None:
        store.put_verdict(key, label, {"identity": identity})


def recall_identity(store: Any, spec: ModelSpec) -> str | None:
    """The identity under which `spec` was loaded before on this machine, or None."""
    key = _spec_key(spec)
    noted = None if key is None else store.get_verdict(key)
    return None if noted is None else noted["identity"]


def imported_key(request: TraceRequest) -> str:
    """The key of an answer that came from elsewhere: by the model as it was asked for there, whatever it is here."""
    return manifest_key(request, digest("imported", dataclasses.asdict(request.model)))


def manifest_key(request: TraceRequest, identity: str) -> str:
    """The key of an answer: everything in the request that can change a number, and the model's identity.

    The case id counts only through seed + case id (the generator's seed); relation and source do not count, unless
    other subjects are chosen by them.
    """
    fact = request.fact
    corruption: tuple[Any, ...] = request.noise, request.draws, request.seed + fact.case_id
    if request.corruption == "replace" and request.replacement:
        corruption = "replace", request.replacement
    elif request.corruption == "replace":
        corruption = "choose", request.draws, request.seed + fact.case_id, fact.relation, bundled_digest()
    return digest(
        "manifest", identity, fact.text, subject_span(fact), fact.true.strip(),
        None if fact.foil is None or fact.foil_auto else fact.foil.strip(), fact.foil_auto,
        corruption, request.special_tokens, request.object_tokens, request.first_token,
        request.experts,
    )  # fmt: skip
