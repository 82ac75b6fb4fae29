"""What stands beside every number: which model, versions, implementations, tokens and settings made it."""

from __future__ import annotations

import datetime
from typing import Any

from .identity import versions
from .moe import MoeModel
from .prompts import PreparedFact
from .results import Provenance


def about(model: MoeModel) -> dict[str, Any]:
    """What is said of the model with every kind of answer, as fields of `core.results.Provenance`."""
    return {
        "model": model.spec.name,
        "fingerprint": model.fingerprint,
        "revision": model.spec.revision,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "versions": dict(versions()),
        "implementation": model.implementation(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "n_layers": model.n_layers,
        "moe_layers": list(model.moe_layers),
        "n_experts": model.n_experts,
        "top_k": model.top_k,
        "has_shared": model.structure.has_shared,
        "noise_floor": model.noise_floor.rescue,
        "noise_floor_largest": model.noise_floor.largest,
    }


def partly_corrupted(model: MoeModel) -> list[str]:
    """What has to be said where noise does not reach all that a family makes of the subject; else nothing."""
    if not model.structure.ids_inside:
        return []
    return [
        "This family gives its layers further embeddings of the token ids; those of the subject are not "
        "corrupted, so the corruption is partial."
    ]


def provenance_of(model: MoeModel, prepared: PreparedFact, sigma: float, *, bytes_read: int = 0) -> Provenance:
    """The provenance of an answer that is being computed now.

    `sigma`: std of the added noise, embedding units; `bytes_read`: of weights, for it and what came along.
    """
    assert prepared.foil_id is not None
    notes = [*prepared.notes, *([] if prepared.replaced_ids else partly_corrupted(model))]
    return Provenance(
        **about(model),
        noise_sigma=sigma,
        token_ids=list(prepared.input_ids),
        tokens=list(prepared.tokens),
        subject_positions=list(prepared.subject_positions),
        true_id=prepared.true_id,
        foil_id=prepared.foil_id,
        true_token=prepared.true_token,
        foil_token=prepared.foil_token,
        notes=notes,
        quantisation=model.quantisation,
        placement="memory" if model.weights is None else "disk",
        bytes_read=bytes_read,
        replacements=list(prepared.replacements),
        replaced_ids=[list(ids) for ids in prepared.replaced_ids],
    )
