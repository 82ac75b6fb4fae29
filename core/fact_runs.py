"""The unpatched runs of one fact, clean first, then one corrupt run per draw; and the foil that a clean run chooses.

Knows how a request's corruption becomes token ids and noise; nothing of patches, stores or tables.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    return with_best_foil_of(model, fact, all_logits(model, final)[0])


def with_best_foil_of(model: MoeModel, fact: PreparedFact, logits: torch.Tensor) -> PreparedFact:
    """The same from the clean run's next-token logits [V]."""
    others = logits.clone()
    others[fact.true_id] = -torch.inf
    return with_foil(fact, model.tokenizer, int(others.argmax()))


class Objects:
    """True and foil ids of several facts' runs, as `core.sweep.sweep` asks for them; a foil left to the model is chosen
    when the clean runs' final states are known, and then stands in `facts`.

    `runs`: the numbers of each fact's runs, clean first; all facts' runs one after the other.
    """

    def __init__(self, model: MoeModel, runs: Sequence[tuple[PreparedFact, Sequence[int]]]) -> None:
        self._model = model
        self.facts = [fact for fact, _ in runs]
        self._runs = [numbers for _, numbers in runs]

    def __call__(self, finals: torch.Tensor) -> list[tuple[int, int]]:
        """The ids for every run, given their last hidden states [n, d]."""
        for i, (fact, runs) in enumerate(zip(self.facts, self._runs, strict=True)):
            if fact.foil_id is None:
                self.facts[i] = with_best_foil(self._model, fact, finals[runs[0]][None])
        return self.ids

    @property
    def ids(self) -> list[tuple[int, int]]:
        """(true, foil) of every run, once the foils are chosen."""
        return [
            (fact.true_id, int(fact.foil_id))  # type: ignore[arg-type]
            for fact, runs in zip(self.facts, self._runs, strict=True)
            for _ in runs
        ]
