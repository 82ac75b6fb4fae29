"""Any interventions asked for: patch specifications and facts in, one row per fact, patch and draw out.

Knows how a specification becomes patches of a sweep and how their logits become scores; not where they were read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from .asking import prepare_for
from .budget import Budget
from .fact_runs import runs_of, with_chosen_foil
from .head import all_logits
from .moe import MoeModel
from .parts import sweep_in_parts
from .patch_file import PatchSpec, build, check_choice, check_shape
from .progress import SILENT, Progress
from .prompts import PreparedFact
from .provenance import provenance_of
from .requests import TraceRequest
from .results import LEAST_DROP, Provenance, is_defined
from .sweep import Outcome

COLUMNS = [
    "case_id", "name", "run", "draw", "true_logit", "foil_logit", "contrast", "rescue", "restoration",
    "log_probability", "probability", "rank",
]  # fmt: skip
"""Columns of `PatchResult.frame`. Patches of the corrupt run: rescue = contrast − corrupt contrast, restoration =
rescue ÷ drop. Patches of the clean run: rescue = change of the clean contrast, restoration = that ÷ clean contrast.
`log_probability`, `probability`, `rank`: of the true object's token in the patched run (rank 1 = most probable).
With another score than the contrast, rescue and restoration are of that score."""

_ROWS = 256


@dataclass(frozen=True)
class PatchResult:
    """The answer for one fact: `frame` has the unpatched runs too, under the names `clean` and `corrupt`."""

    request: TraceRequest
    provenance: Provenance
    frame: pd.DataFrame
    score: str = "contrast"


@dataclass(frozen=True)
class _Shape:
    n_layers: int
    n_experts: int
    top_k: int
    moe_layers: list[int]
    has_shared: bool
    reroutable: bool
    has_attention: list[bool]


def shape_of(model: MoeModel) -> _Shape:
    """What a patches file may name in this model."""
    structure = model.structure
    return _Shape(
        model.n_layers, model.n_experts, structure.top_k, model.moe_layers, structure.has_shared, structure.reroutable,
        [bool(name) for name in structure.attention],
    )  # fmt: skip


def patch_many(
    model: MoeModel,
    requests: Sequence[TraceRequest],
    specs: Sequence[PatchSpec],
    *,
    score: str = "contrast",
    progress: Progress = SILENT,
) -> list[PatchResult]:
    """Run every patch on every fact and draw: one sweep per fact, results in the order of the requests.

    `score`: one of `core.requests.SCORES`, in which rescue and restoration are measured. Raises `InputError` for a
    patch that names what the model or the prompt does not have.
    """
    check_shape(specs, shape_of(model))
    facts = [prepare_for(model, request) for request in requests]
    budget = Budget.measure(model)
    results = []
    for i, (request, fact) in enumerate(zip(requests, facts, strict=True)):
        progress.update(i, len(requests), "patching")
        results.append(patch_prepared(model, request, fact, specs, budget=budget, score=score, progress=progress))
    return results


def patch_prepared(
    model: MoeModel,
    request: TraceRequest,
    fact: PreparedFact,
    specs: Sequence[PatchSpec],
    *,
    budget: Budget,
    score: str = "contrast",
    progress: Progress = SILENT,
) -> PatchResult:
    """One fact that is token ids already."""
    read_before = model.bytes_read
    runs, sigma = runs_of(model, request, fact)
    fact = with_chosen_foil(model, fact, runs[0], budget)
    place = {"n_tokens": len(fact.input_ids), "last_subject": fact.subject_positions[-1], "clean": 0}
    asked = [(spec, j, build(spec, **place, corrupt=j + 1)) for j in range(request.draws) for spec in specs]
    for spec, _, patch in asked[: len(specs)]:
        check_choice(spec, patch, shape_of(model))
    outcome = sweep_in_parts(
        model, runs, list(dict.fromkeys(patch for _, _, patch in asked)),
        objects=[(fact.true_id, fact.foil_id)] * len(runs), chunk_tokens=budget.chunk_tokens, keep=False,
        with_attention=any(step.site == "attention" for _, _, patch in asked for step in patch.steps),
        keep_final=True, progress=progress,
    )  # fmt: skip
    # the sweep numbers patches in the order in which they joined: equal patches have equal numbers
    number = {patch: i for i, patch in enumerate(outcome.patches)}
    rows = [(spec.name, spec.run, j, number[patch]) for spec, j, patch in asked]
    frame = _frame(model, request, fact, outcome, rows, score)
    read = model.bytes_read - read_before
    return PatchResult(request, provenance_of(model, fact, sigma, bytes_read=read), frame, score)


def _frame(
    model: MoeModel,
    request: TraceRequest,
    fact: PreparedFact,
    outcome: Outcome,
    rows: list[tuple[str, str, int, int]],
    score: str,
) -> pd.DataFrame:
    assert fact.foil_id is not None and outcome.patched_final is not None
    runs = pd.DataFrame(_scores(model, outcome.final, outcome.runs, fact.true_id))
    patched = pd.DataFrame(_scores(model, outcome.patched_final, outcome.patched, fact.true_id))
    names = pd.DataFrame(rows, columns=["name", "run", "draw", "_at"])
    out = pd.concat([names, patched.iloc[names._at].reset_index(drop=True)], axis=1)
    clean, corrupts = float(runs[score].iloc[0]), runs[score].iloc[1:].to_numpy(dtype=float)
    corrupt = corrupts[names.draw.to_numpy(dtype=int)]
    in_clean = (names.run == "clean").to_numpy()
    out["rescue"] = out[score] - np.where(in_clean, clean, corrupt)
    whole = np.where(in_clean, clean, clean - corrupt)
    divides = np.where(in_clean, np.abs(whole) >= LEAST_DROP[score], is_defined(whole, score))
    out["restoration"] = out.rescue / np.where(divides, whole, np.nan)
    ends = runs.assign(name=["clean", *["corrupt"] * request.draws], draw=[pd.NA, *range(request.draws)])
    ends["run"] = ends.name
    ends["rescue"] = np.where(ends.name == "clean", clean - corrupts.mean(), 0.0)
    whole = np.r_[clean - corrupts.mean(), clean - corrupts]
    ends["restoration"] = (ends.name == "clean").astype(float).where(is_defined(whole, score))
    frame = pd.concat([ends.astype({"draw": "Int64"}), out.astype({"draw": "Int64"})], ignore_index=True)
    return frame.assign(case_id=request.fact.case_id)[COLUMNS]


def _scores(model: MoeModel, states: torch.Tensor, objects: torch.Tensor, true_id: int) -> dict[str, np.ndarray]:
    """Contrast and the true object's log-probability, probability and rank, for final states [R, d]."""
    log_probability, rank = [], []
    for at in range(0, states.shape[0], _ROWS):
        logits = all_logits(model, states[at : at + _ROWS]).double()
        true = logits[:, true_id]
        log_probability.append(true - logits.logsumexp(-1))
        rank.append((logits > true[:, None]).sum(-1) + 1)
    log_p = torch.cat(log_probability).numpy() if log_probability else np.zeros(0)
    both = objects.double().numpy()
    return {
        "true_logit": both[:, 0], "foil_logit": both[:, 1], "contrast": both[:, 0] - both[:, 1],
        "log_probability": log_p, "probability": np.exp(log_p),
        "rank": torch.cat(rank).numpy() if rank else np.zeros(0, dtype=int),
    }  # fmt: skip
