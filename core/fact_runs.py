"""The unpatched runs of one fact, clean first, then one corrupt run per draw; and the foil that a clean run chooses.

Knows how a request's corruption becomes token ids and noise; nothing of patches, stores or tables.
"""

from __future__ import annotations

import torch

from .base import Run
from .budget import Budget
from .corruption import draw_noise
from .head import all_logits
from .moe import MoeModel
from .prompts import PreparedFact, with_foil
from .requests import TraceRequest
from .sweep import listed, sweep


def runs_of(model: MoeModel, request: TraceRequest, fact: PreparedFact) -> tuple[list[Run], float]:
    """The runs [clean, corrupt draw 0, draw 1, ...] and the std of the noise in embedding units (0 without any)."""
    if request.corruption == "replace":
        return [Run(fact.input_ids), *(Run(ids) for ids in fact.replaced_ids)], 0.0
    sigma = request.noise * model.embedding_std
    noise = draw_noise(
        seed=request.seed, case_id=request.fact.case_id, draws=request.draws,
        n_subject=len(fact.subject_positions), hidden=model.hidden, sigma=sigma,
    )  # fmt: skip
    return [Run(fact.input_ids), *(Run(fact.input_ids, draw, fact.subject_positions) for draw in noise)], sigma


def with_chosen_foil(model: MoeModel, fact: PreparedFact, clean: Run, budget: Budget) -> PreparedFact:
    """The fact; if its foil is automatic, with the most probable next token of the clean run but the true object's."""
    if fact.foil_id is not None:
        return fact
    outcome = sweep(
        model, model.structure, [clean], listed(()), objects=[(0,)], chunk_tokens=budget.chunk_tokens, keep=False
    )
    return with_best_foil(model, fact, outcome.final)


def with_best_foil(model: MoeModel, fact: PreparedFact, final: torch.Tensor) -> PreparedFact:
    """The fact with its foil chosen from the clean run's last hidden state [1, d]."""
    logits = all_logits(model, final)[0]
    logits[fact.true_id] = -torch.inf
    return with_foil(fact, model.tokenizer, int(logits.argmax()))
