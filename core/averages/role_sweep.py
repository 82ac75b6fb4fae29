"""Every clean-active expert alone, and the whole layer patch, at the positions of one role of many facts.

Several facts share a sweep; nothing but those positions is patched. Knows runs, patches and roles; nothing of averages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch

from ..base import BaseLayer, Run
from ..budget import Budget
from ..fact_runs import runs_of, with_best_foil
from ..missing import Question
from ..moe import MoeModel
from ..patches import SHARED, Patch, expert_patch, layer_patch
from ..progress import SILENT, Progress
from ..prompts import PreparedFact
from ..roles import roles_of
from ..sweep import sweep
from ..views import SHARED_INDEX
from .site_sweep import contrast_of

_LAYER = -2
"""Stands for the layer patch where an expert's number is expected."""


@dataclass(frozen=True)
class RoleExperts:
    """Of one fact: contrasts in logits (the corrupt one a mean over draws); `cells` (layer, pos, rescue) of the layer
    patch, and `experts` (layer, pos, expert, router_weight, rescue) of every clean-active expert and the shared one
    (`SHARED_INDEX`, router weight missing), rescues in logits as means over the draws."""

    prepared: PreparedFact
    clean_contrast: float
    corrupt_contrast: float
    cells: pd.DataFrame
    experts: pd.DataFrame


def positions_of(fact: PreparedFact, role: str) -> list[int]:
    """The positions of a role in a prompt."""
    return [pos for pos, its in enumerate(roles_of(len(fact.input_ids), fact.subject_positions)) if its == role]


def patched_tokens(model: MoeModel, question: Question, role: str) -> int:
    """About how many tokens all patched rows of a fact have."""
    length = len(question.prepared.input_ids)
    spans = sum(length - pos for pos in positions_of(question.prepared, role))
    return question.request.draws * len(model.moe_layers) * (model.top_k + 2) * spans


def role_experts(
    model: MoeModel, questions: Sequence[Question], *, role: str, budget: Budget, progress: Progress = SILENT
) -> list[RoleExperts]:
    """All questions, in one sweep."""
    seen = _Seen(model, role)
    for question in questions:
        seen.add(question)
    objects: list[tuple[int, int]] = []

    def choose_objects(finals: torch.Tensor) -> list[tuple[int, int]]:
        for i, (clean, corrupts) in enumerate(seen.ends):
            if seen.prepared[i].foil_id is None:
                seen.prepared[i] = with_best_foil(model, seen.prepared[i], finals[clean][None])
            objects.extend([(seen.prepared[i].true_id, int(seen.prepared[i].foil_id))] * (1 + len(corrupts)))  # type: ignore[arg-type]
        return objects

    outcome = sweep(
        model, model.structure, seen.runs, seen.plan, objects=choose_objects, chunk_tokens=budget.chunk_tokens,
        keep=False, progress=progress,
    )  # fmt: skip
    return seen.answers(contrast_of(outcome.patched), contrast_of(outcome.runs))


@dataclass
class _Seen:
    """The runs of some facts, and the rows that come of them layer by layer."""

    model: MoeModel
    role: str
    runs: list[Run] = field(default_factory=list)
    prepared: list[PreparedFact] = field(default_factory=list)
    ends: list[tuple[int, range]] = field(default_factory=list)
    _rows: list[tuple[int, int, int, int, float, int, int]] = field(default_factory=list)
    """(fact, layer, pos, expert, router weight, corrupt run, patch or −1 where nothing can come of it)."""
    _n: int = 0

    def add(self, question: Question) -> None:
        """One fact's clean run, then its corrupt ones."""
        its, _ = runs_of(self.model, question.request, question.prepared)
        self.ends.append((len(self.runs), range(len(self.runs) + 1, len(self.runs) + len(its))))
        self.prepared.append(question.prepared)
        self.runs += its

    def plan(self, base: BaseLayer) -> list[Patch]:
        """The patches of one layer (see `core.sweep.Plan`)."""
        if base.layer not in self.model.blocks:
            return []
        patches: list[Patch] = []
        for i, (fact, (clean, corrupts)) in enumerate(zip(self.prepared, self.ends, strict=True)):
            length = len(fact.input_ids)
            first = base.structure.first_to_matter(base.layer, fact.subject_positions[0], length)
            for pos in positions_of(fact, self.role):
                weights = {_LAYER: np.nan} | base.routed(clean, pos)
                if base.structure.has_shared:
                    weights[SHARED_INDEX] = np.nan
                for corrupt in corrupts:
                    place = {"clean": clean, "corrupt": corrupt, "layer": base.layer, "pos": pos}
                    for expert, weight in weights.items():
                        live = pos >= first
                        self._rows.append((i, base.layer, pos, expert, weight, corrupt, self._n if live else -1))
                        if live:
                            self._n += 1
                            patches.append(_patch(expert, place))
        return patches

    def answers(self, patched: np.ndarray, runs: np.ndarray) -> list[RoleExperts]:
        """`patched`, `runs`: contrasts of the patches and of the unpatched runs."""
        columns = ["fact", "layer", "pos", "expert", "router_weight", "corrupt", "patch"]
        table = pd.DataFrame(self._rows, columns=columns)
        live = table.patch.to_numpy(dtype=int) >= 0
        table["rescue"] = 0.0
        table.loc[live, "rescue"] = patched[table.patch[live]] - runs[table.corrupt[live]]
        means = table.groupby(["fact", "layer", "pos", "expert"], as_index=False)[["router_weight", "rescue"]].mean()
        out = []
        for i, (clean, corrupts) in enumerate(self.ends):
            own = means[means.fact == i].drop(columns="fact")
            whole = own.expert == _LAYER
            cells, experts = own.loc[whole, ["layer", "pos", "rescue"]], own[~whole]
            corrupt = float(np.mean([runs[run] for run in corrupts]))
            out.append(RoleExperts(self.prepared[i], float(runs[clean]), corrupt, cells, experts))
        return out


def _patch(expert: int, place: dict[str, int]) -> Patch:
    if expert == _LAYER:
        return layer_patch(**place)
    return expert_patch(**place, expert=SHARED if expert == SHARED_INDEX else expert)
