"""What stands beside a study's numbers: which model, versions and implementations made them, and how they differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..identity import versions
from ..moe import MoeModel
from ..provenance import about, partly_corrupted
from .settings import StudySettings


def provenance_of_study(model: MoeModel, settings: StudySettings) -> dict[str, Any]:
    """Where the numbers of a study that begins now come from, as JSON values; `noise_sigma` in embedding units,
    `noise_floor` in logits (see `core.noise_floor`)."""
    return {
        **about(model),
        "identity": model.identity,
        "noise_sigma": settings.noise * model.embedding_std,
        "notes": partly_corrupted(model),
    }


def marks(model: MoeModel) -> dict[str, Any]:
    """What has to be equal on two machines for equal numbers, to the last bit on a CPU, as JSON values."""
    return {
        "identity": model.identity,
        "fingerprint": model.fingerprint,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "implementation": model.implementation(),
        "versions": dict(versions()),
        "processor": torch.backends.cpu.get_cpu_capability(),
    }


def differences(stored: Mapping[str, Any], model: MoeModel) -> str:
    """In words, what of a study's provenance is not so of `model`: `dtype float32 (now bfloat16), torch 2.13 (...)`."""
    return differing(stored, marks(model)) or "other settings of the engine"


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """In words, what of the `marks` `after` is not as in those of `before`, where these have it; empty: nothing."""
    then, now = _named(before), _named(after)
    return ", ".join(f"{name} {then[name]} (now {now.get(name)})" for name in then if then[name] != now.get(name))


def _named(found: Mapping[str, Any]) -> dict[str, Any]:
    """Marks or provenance as what people read."""
    plain = {"model files": "fingerprint", "dtype": "dtype", "device": "device", "processor": "processor"}
    named = {name: found[key] for name, key in plain.items() if key in found}
    return {**named, **found["implementation"], **found["versions"]}
