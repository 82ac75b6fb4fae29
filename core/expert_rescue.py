"""What the patch of every expert at the last position restores, over a set of facts: the kind `expert_rescue`.

One pass over the layers for all experts of all layers, so that the next expert needs no model: `core.expert_tables`
makes the numbers of a single one from it. Knows runs and patches; no statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from .base import BaseLayer
from .budget import Budget
from .derived import DerivedRequest
from .fact_batches import in_batches, questions_of
from .fact_runs import runs_of, with_best_foil
from .missing import Question
from .moe import MoeModel
from .patches import Patch, expert_patch
from .progress import SILENT, Progress
from .sweep import sweep

FACT_COLUMNS = {
    "fact": "int32", "case_id": "int64", "relation": "object", "subject": "object", "prompt": "object",
    "true": "object", "foil": "object", "last": "int32", "clean_contrast": "float64", "corrupt_contrast": "float64",
    "drop": "float64",
}  # fmt: skip
"""Table `facts`, one row per fact that the model can take. `fact`: its number in the request; `prompt` as the model
gets it; `foil`: the token's piece where it was chosen automatically; `last`: the last position; contrasts in logits,
mean over draws."""
PATCH_COLUMNS = {
    "fact": "int32", "layer": "int16", "expert": "int16", "router_weight": "float64", "rescue": "float64",
    "rescue_sd": "float64",
}  # fmt: skip
"""Table `patches`, one row per fact and clean-active expert at the last position: clean router weight; rescue (logits)
of its expert patch there, mean over draws, and its sample standard deviation (missing for one draw)."""


def answer(
    model: MoeModel, request: DerivedRequest, *, store: Any = None, progress: Progress = SILENT
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The tables `facts` and `patches` (columns above), `left_out` and `caption`.

    Settings: those of a `TraceRequest` (noise, draws, seed, special_tokens, object_tokens, first_token, corruption).
    """
    questions, left_out = questions_of(model, request, **request.get())
    batches: list[_Batch] = []

    def work(batch: list[tuple[int, Question]], budget: Budget, progress: Progress) -> None:
        batches.append(_Batch.measure(model, batch, budget, progress))

    in_batches(
        model, questions, work=work, progress=progress, label="patching experts",
        tokens=lambda q: len(q.prepared.input_ids) * (1 + q.request.draws),
        rows=lambda q: len(model.moe_layers) * model.top_k * q.request.draws,
    )  # fmt: skip
    tables = {}
    for name, types in (("facts", FACT_COLUMNS), ("patches", PATCH_COLUMNS)):
        parts = [getattr(batch, name) for batch in batches]
        whole = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(types))
        order = [column for column in ("fact", "layer", "expert") if column in types]
        tables[name] = whole.astype(types).sort_values(order, ignore_index=True)[list(types)]
    said = f"expert patches at the last position, every clean-active expert of every layer, {len(questions)} facts"
    return tables, {"left_out": left_out, "caption": [said]}


@dataclass
class _Batch:
    """The tables of some facts."""

    facts: pd.DataFrame
    patches: pd.DataFrame

    @classmethod
    def measure(
        cls, model: MoeModel, batch: Sequence[tuple[int, Question]], budget: Budget, progress: Progress
    ) -> _Batch:
        """One sweep."""
        seen = _Seen(model)
        objects: list[tuple[int, int]] = []
        for number, question in batch:
            seen.add(number, question)

        def choose_objects(finals) -> list[tuple[int, int]]:  # noqa: ANN001 - a tensor [runs, d]
            for one in seen.facts:
                one.prepared = _with_foil(model, one, finals)
                objects.extend([(one.prepared.true_id, one.prepared.foil_id)] * (1 + len(one.corrupt)))
            return objects

        outcome = sweep(
            model, model.structure, seen.runs, seen.plan, objects=choose_objects, chunk_tokens=budget.chunk_tokens,
            keep=False, progress=progress,
        )  # fmt: skip
        patched, ends = (_contrast(logits) for logits in (outcome.patched, outcome.runs))
        return cls(_facts(seen, ends), _patches(seen, patched, ends))


@dataclass
class _Fact:
    """A fact of a batch: its number in the request, and its runs' numbers in the sweep."""

    number: int
    question: Question
    clean: int
    corrupt: tuple[int, ...]

    def __post_init__(self) -> None:
        self.prepared = self.question.prepared

    @property
    def last(self) -> int:
        return len(self.prepared.input_ids) - 1


@dataclass
class _Seen:
    """The runs of a batch, and which patches were made of them."""

    model: MoeModel
    runs: list = field(default_factory=list)
    facts: list[_Fact] = field(default_factory=list)
    rows: list[tuple[int, int, int, float, int]] = field(default_factory=list)
    """(index in `facts`, layer, expert, router weight, draw) of each patch, in the order of the sweep."""

    def add(self, number: int, question: Question) -> None:
        runs, _ = runs_of(self.model, question.request, question.prepared)
        first = len(self.runs)
        self.runs += runs
        self.facts.append(_Fact(number, question, first, tuple(range(first + 1, first + len(runs)))))

    def plan(self, base: BaseLayer) -> list[Patch]:
        """Every clean-active expert at the last position, in every draw."""
        if base.layer not in self.model.blocks:
            return []
        patches = []
        for i, one in enumerate(self.facts):
            for expert, weight in sorted(base.routed(one.clean, one.last).items()):
                for draw, corrupt in enumerate(one.corrupt):
                    patches.append(
                        expert_patch(clean=one.clean, corrupt=corrupt, layer=base.layer, pos=one.last, expert=expert)
                    )
                    self.rows.append((i, base.layer, expert, weight, draw))
        return patches


def _with_foil(model: MoeModel, one: _Fact, finals: Any) -> Any:
    if one.prepared.foil_id is not None:
        return one.prepared
    return with_best_foil(model, one.prepared, finals[one.clean][None])


def _contrast(logits: Any) -> np.ndarray:
    both = logits.double().cpu().numpy()
    return both[:, 0] - both[:, 1]


def _facts(seen: _Seen, ends: np.ndarray) -> pd.DataFrame:
    rows = []
    for one in seen.facts:
        fact, clean, corrupt = one.prepared.fact, ends[one.clean], ends[list(one.corrupt)].mean()
        rows.append((
            one.number, fact.case_id, fact.relation, fact.subject, fact.text, fact.true,
            one.prepared.foil_token if fact.foil is None else fact.foil, one.last, clean, corrupt, clean - corrupt,
        ))  # fmt: skip
    return pd.DataFrame(rows, columns=list(FACT_COLUMNS))


def _patches(seen: _Seen, patched: np.ndarray, ends: np.ndarray) -> pd.DataFrame:
    at = pd.DataFrame(seen.rows, columns=["at", "layer", "expert", "router_weight", "draw"])
    corrupt = np.array([seen.facts[i].corrupt[draw] for i, draw in zip(at["at"], at.draw, strict=True)], dtype=int)
    at["rescue"] = patched - ends[corrupt]
    grouped = at.groupby(["at", "layer", "expert"], as_index=False)
    out = grouped.agg(router_weight=("router_weight", "first"), rescue=("rescue", "mean"), rescue_sd=("rescue", "std"))
    out["fact"] = [seen.facts[i].number for i in out["at"]]
    return out[list(PATCH_COLUMNS)]
