"""What stands beside a study's numbers: which model, versions and implementations made them, and how they differ."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from ..identity import versions
from ..moe import MoeModel
from .settings import StudySettings


def provenance_of_study(model: MoeModel, settings: StudySettings) -> dict[str, Any]:
    """Where the numbers of a study that begins now come from, as JSON values; `noise_sigma` in embedding units."""
    notes = []
    if model.structure.ids_inside:
        notes.append(
            "This family gives its layers further embeddings of the token ids; those of the subject are not "
            "corrupted, so the corruption is partial."
        )
    return {
        "model": model.spec.name,
        "fingerprint": model.fingerprint,
        "identity": model.identity,
        "revision": model.spec.revision,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "versions": dict(versions()),
        "implementation": model.implementation(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "noise_sigma": settings.noise * model.embedding_std,
        "n_layers": model.n_layers,
        "moe_layers": model.moe_layers,
        "n_experts": model.n_experts,
        "top_k": model.top_k,
        "has_shared": model.structure.has_shared,
        "notes": notes,
    }


def differences(stored: Mapping[str, Any], model: MoeModel) -> str:
    """In words, what of a study's provenance is not so of `model`: `dtype float32 (now bfloat16), torch 2.13 (...)`."""
    now = {
        "model files": model.fingerprint,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        **model.implementation(),
        **versions(),
    }
    then = {
        "model files": stored["fingerprint"],
        "dtype": stored["dtype"],
        "device": stored["device"],
        **stored["implementation"],
        **stored["versions"],
    }
    found = [f"{name} {then.get(name)} (now {value})" for name, value in now.items() if then.get(name) != value]
    return ", ".join(found) or "other settings of the engine"
