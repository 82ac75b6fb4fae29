"""What the clean runs of a set of facts lose without one expert: the kind `expert_knockout`.

Knockouts as protocol.md has them: zero mode takes out what the expert contributes in the run itself, reroute mode
masks it where the router's top-k selects. Knows runs and patches; no statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from .base import BaseLayer, Run
from .budget import Budget
from .derived import DerivedRequest
from .errors import InputError
from .expert_link import EVERYWHERE, MODES, PLACES, REROUTE, ZERO
from .fact_batches import in_batches, questions_of
from .fact_runs import with_best_foil
from .missing import Question
from .moe import MoeModel
from .patches import Masked, Own, Patch, Step
from .progress import SILENT, Progress
from .results import expert_name
from .sweep import sweep

COLUMNS = {
    "fact": "int32", "case_id": "int64", "relation": "object", "subject": "object", "mode": "object",
    "place": "object", "positions": "int32", "clean_active": "bool", "router_weight": "float64",
    "clean_contrast": "float64", "contrast": "float64", "change": "float64",
}  # fmt: skip
"""Table `knockouts`, one row per fact, mode and place. `positions`: how many the expert was taken out at; with none the
change is 0. `clean_active`, `router_weight`: at the last position; `change`: contrast − clean contrast (logits)."""


def answer(
    model: MoeModel, request: DerivedRequest, *, store: Any = None, progress: Progress = SILENT
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The table `knockouts` (columns above); `modes`: those that the family allows; and `left_out`.

    Settings: layer, expert, special_tokens, object_tokens, first_token.
    """
    settings = request.get()
    layer, expert = settings.pop("layer"), settings.pop("expert")
    if layer not in model.blocks or not 0 <= expert < model.n_experts:
        raise InputError(
            f"There is no expert {expert_name(layer, expert)} in this model.",
            f"Layers with experts: {model.moe_layers[0]} to {model.moe_layers[-1]}; "
            f"experts: 0 to {model.n_experts - 1}.",
            field="expert",
        )
    modes = MODES if model.structure.reroutable else (ZERO,)
    questions, left_out = questions_of(model, request, **settings)
    parts: list[pd.DataFrame] = []

    def work(batch: list[tuple[int, Question]], budget: Budget, progress: Progress) -> None:
        parts.append(_measure(model, batch, layer, expert, modes, budget, progress))

    in_batches(
        model, questions, work=work, progress=progress, label=f"knocking out {expert_name(layer, expert)}",
        tokens=lambda q: len(q.prepared.input_ids),
        rows=lambda q: (len(q.prepared.input_ids) + 1) * len(modes),
    )  # fmt: skip
    whole = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(COLUMNS))
    table = whole.astype(COLUMNS).sort_values(["fact", "mode", "place"], ignore_index=True)[list(COLUMNS)]
    said = f"{expert_name(layer, expert)} knocked out in the clean runs of {len(questions)} facts"
    return {"knockouts": table}, {"left_out": left_out, "modes": list(modes), "caption": [said]}


def knockout(run: int, *, layer: int, expert: int, positions: Sequence[int], mode: str) -> Patch:
    """The patch that takes an expert out of a run at some positions."""
    if mode == REROUTE:
        return Patch(run, (Step("router", layer, tuple(positions), "mask", Masked((expert,))),))
    return Patch(run, (Step("moe", layer, tuple(positions), "add", Own((expert,))),))


@dataclass
class _Knockouts:
    """The plan of a batch: at the expert's layer, every knockout that takes something out."""

    layer: int
    expert: int
    modes: Sequence[str]
    lasts: list[int]
    rows: list[tuple[int, str, str, int, float, int | None]] = field(default_factory=list)
    """(run, mode, place, positions, router weight at the last position, number of the patch or None)."""

    def plan(self, base: BaseLayer) -> list[Patch]:
        if base.layer != self.layer:
            return []
        patches: dict[Patch, int] = {}
        for run, last in enumerate(self.lasts):
            routed = (base.index[run] == self.expert).any(-1).nonzero().flatten().tolist()
            weight = base.routed(run, last).get(self.expert, 0.0)
            for mode in self.modes:
                for place in PLACES:
                    positions = routed if place == EVERYWHERE else [pos for pos in routed if pos == last]
                    number = None
                    if positions:
                        patch = knockout(run, layer=self.layer, expert=self.expert, positions=positions, mode=mode)
                        number = patches.setdefault(patch, len(patches))
                    self.rows.append((run, mode, place, len(positions), weight, number))
        return list(patches)


def _measure(
    model: MoeModel,
    batch: Sequence[tuple[int, Question]],
    layer: int,
    expert: int,
    modes: Sequence[str],
    budget: Budget,
    progress: Progress,
) -> pd.DataFrame:
    """The rows of some facts, in one sweep over their clean runs."""
    facts = [question.prepared for _, question in batch]
    plan = _Knockouts(layer, expert, modes, [len(fact.input_ids) - 1 for fact in facts])

    def objects(finals) -> list[tuple[int, int]]:  # noqa: ANN001 - a tensor [runs, d]
        chosen = [
            fact if fact.foil_id is not None else with_best_foil(model, fact, final[None])
            for fact, final in zip(facts, finals, strict=True)
        ]
        return [(fact.true_id, fact.foil_id) for fact in chosen]  # type: ignore[misc]

    outcome = sweep(
        model, model.structure, [Run(fact.input_ids) for fact in facts], plan.plan, objects=objects,
        chunk_tokens=budget.chunk_tokens, keep=False, progress=progress,
    )  # fmt: skip
    patched, clean = (logits.double().cpu().numpy() for logits in (outcome.patched, outcome.runs))
    rows = []
    for run, mode, place, positions, weight, number in plan.rows:
        before = clean[run, 0] - clean[run, 1]
        after = before if number is None else patched[number, 0] - patched[number, 1]
        fact = facts[run].fact
        rows.append((
            batch[run][0], fact.case_id, fact.relation, fact.subject, mode, place, positions,
            bool(weight), weight, before, after, np.float64(after - before),
        ))  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS))
