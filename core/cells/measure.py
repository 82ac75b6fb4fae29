"""Patches of one fact, run on every draw in one sweep: patches with labels in, one row per patch and draw out.

Knows runs and sweeps; nothing of kinds, stores or pages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..asking import prepare_for
from ..base import BaseLayer, Run
from ..budget import Budget
from ..errors import InputError
from ..fact_runs import runs_of, with_chosen_foil
from ..formats import logits
from ..moe import MoeModel
from ..patches import Masked, Own, Patch, Step, Updates, Value
from ..progress import SILENT, Progress
from ..prompts import PreparedFact
from ..requests import TraceRequest
from ..results import MIN_DROP
from ..sweep import sweep

CLEAN = 0
"""Number of the clean run; the corrupt run of draw j is j + 1."""


@dataclass(frozen=True)
class Case:
    """One fact whose objects are known, its unpatched runs, and how much of them goes through a layer at a time."""

    request: TraceRequest
    fact: PreparedFact
    runs: list[Run]
    budget: Budget

    @classmethod
    def of(cls, model: MoeModel, request: TraceRequest, fact: PreparedFact | None = None) -> Case:
        """The request's fact; `fact`: that fact where it is token ids already."""
        fact = prepare_for(model, request) if fact is None else fact
        runs, _ = runs_of(model, request, fact)
        budget = Budget.measure(model)
        return cls(request, with_chosen_foil(model, fact, runs[CLEAN], budget), runs, budget)

    @property
    def objects(self) -> list[tuple[int, int]]:
        """Token ids whose logits are wanted, for each run."""
        assert self.fact.foil_id is not None
        return [(self.fact.true_id, self.fact.foil_id)] * len(self.runs)

    @property
    def draws(self) -> int:
        return len(self.runs) - 1

    @property
    def caption(self) -> str:
        """The fact in a line."""
        fact = self.request.fact
        objects = f"true {self.fact.true_token.strip()} · foil {self.fact.foil_token.strip()}"
        return f"“{fact.text}” · subject {fact.subject} · {objects}"

    def check_cell(self, model: MoeModel, layer: int, pos: int) -> None:
        """Raise `InputError` for a cell that the model or the prompt does not have."""
        if layer not in model.moe_layers:
            known = ", ".join(map(str, model.moe_layers))
            raise InputError(f"Layer {layer} has no experts.", f"The MoE layers are {known}.", field="layer")
        if not 0 <= pos < len(self.fact.input_ids):
            last = len(self.fact.input_ids) - 1
            raise InputError(f"There is no position {pos}.", f"The prompt has positions 0 to {last}.", field="pos")


@dataclass(frozen=True)
class Cell:
    """One draw at one cell: `clean`, `corrupt` are {expert: router weight} of what the two runs route there. Without
    corrupt runs there is one cell, whose `corrupt` is empty."""

    layer: int
    pos: int
    draw: int
    clean: dict[int, float]
    corrupt: dict[int, float]

    def layer_patch(self) -> Patch:
        """y := y_clean in the corrupt run."""
        return self._corrupt("restore", Value(CLEAN))

    def updates(self, experts: Sequence[int | str], *, equal_norm_with: Sequence[int | str] = ()) -> Patch:
        """y := y_corrupt + Σ δ of the experts; scaled down to the norm of the other ones' where that is smaller."""
        return self._corrupt("add", Updates(tuple(experts), CLEAN, self.draw + 1, tuple(equal_norm_with)))

    def _corrupt(self, mode: str, source: Value | Updates) -> Patch:
        return Patch(self.draw + 1, (Step("moe", self.layer, (self.pos,), mode, source),))  # type: ignore[arg-type]

    def zero(self, experts: Sequence[int], positions: Sequence[int]) -> Patch:
        """The zero knockout in the clean run."""
        return Patch(CLEAN, (Step("moe", self.layer, tuple(positions), "add", Own(tuple(experts))),))

    def reroute(self, experts: Sequence[int], positions: Sequence[int]) -> Patch:
        """The reroute knockout in the clean run."""
        return Patch(CLEAN, (Step("router", self.layer, tuple(positions), "mask", Masked(tuple(experts))),))


Labelled = tuple[dict[str, Any], Patch]
"""Columns that say what a patch is, and the patch."""


@dataclass(frozen=True)
class Measured:
    """`rows`: one row per patch and draw: the labels, `draw`, `true_logit`, `foil_logit`, `contrast`, `rescue`,
    `restoration`. For patches in the clean run `draw` and `restoration` are missing and `rescue` is the change of the
    clean contrast. `clean` [2] and `corrupt` [draws, 2]: the unpatched runs' logits of true object and foil."""

    case: Case
    rows: pd.DataFrame
    clean: np.ndarray
    corrupt: np.ndarray

    @property
    def clean_contrast(self) -> float:
        return float(self.clean[0] - self.clean[1])

    @property
    def corrupt_contrast(self) -> float:
        """Mean over the draws."""
        return float((self.corrupt[:, 0] - self.corrupt[:, 1]).mean())

    def values(self) -> dict[str, Any]:
        """What stands beside the table, as JSON values."""
        drop = self.clean_contrast - self.corrupt_contrast
        return {
            "clean_contrast": self.clean_contrast, "corrupt_contrast": self.corrupt_contrast, "drop": drop,
            "caption": [
                self.case.caption,
                f"clean contrast {logits(self.clean_contrast)}, corrupt {logits(self.corrupt_contrast)}, "
                f"drop {logits(drop)} logits",
            ],
        }  # fmt: skip


def at_cell(
    model: MoeModel,
    case: Case,
    layer: int,
    pos: int,
    wanted: Callable[[Cell], Sequence[Labelled]],
    *,
    progress: Progress = SILENT,
) -> Measured:
    """Run the patches that `wanted` gives for each draw of a cell, whose routing it is told; equal ones run once.

    All patches have to begin at `layer`. Raises `InputError` for a cell that is not there.
    """
    case.check_cell(model, layer, pos)
    numbers: dict[Patch, int] = {}  # in the order in which the sweep numbers them
    rows: list[tuple[dict[str, Any], int | None, int]] = []

    def plan(base: BaseLayer) -> list[Patch]:
        if base.layer != layer:
            return []
        for draw in range(max(1, case.draws)):
            corrupt = base.routed(draw + 1, pos) if case.draws else {}
            cell = Cell(layer, pos, draw, base.routed(CLEAN, pos), corrupt)
            for labels, patch in wanted(cell):
                number = numbers.setdefault(patch, len(numbers))
                rows.append((labels, None if patch.run == CLEAN else draw, number))
        return list(numbers)

    outcome = sweep(
        model, model.structure, case.runs, plan, objects=case.objects, chunk_tokens=case.budget.chunk_tokens,
        keep=False, progress=progress,
    )  # fmt: skip
    table = pd.DataFrame([labels for labels, _, _ in rows])
    table["draw"] = pd.array([draw for _, draw, _ in rows], dtype="Int64")
    return scored(case, table, outcome.patched.double().numpy()[[n for *_, n in rows]], outcome.runs)


def scored(case: Case, table: pd.DataFrame, logits: np.ndarray, runs: Any) -> Measured:
    """The table with its logits [rows, 2] and what follows from them; `runs` [1 + draws, 2]: the unpatched runs'."""
    ends = runs.double().numpy()
    contrasts = ends[:, 0] - ends[:, 1]
    draw = table.draw.to_numpy(dtype=float, na_value=np.nan)
    in_clean = np.isnan(draw)
    corrupt = contrasts[np.where(in_clean, CLEAN, draw + 1).astype(int)]
    table = table.assign(true_logit=logits[:, 0], foil_logit=logits[:, 1], contrast=logits[:, 0] - logits[:, 1])
    table["rescue"] = table.contrast - corrupt
    drop = contrasts[CLEAN] - corrupt
    table["restoration"] = table.rescue / np.where(~in_clean & (drop >= MIN_DROP), drop, np.nan)
    return Measured(case, table, ends[CLEAN], ends[1:])
