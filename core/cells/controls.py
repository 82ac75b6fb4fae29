"""Controls of one expert for one fact: the other clean-active experts of its cell, and the equal-norm pair with the
gate-matched one (protocol.md, "The study", step 5, which draws them for many facts)."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ..derived import DerivedRequest
from ..errors import InputError
from ..moe import MoeModel
from ..progress import SILENT, Progress
from ..results import expert_name
from ..study.controls import gate_matched, n_controls, random_controls
from .asking import question
from .measure import Case, Cell, Labelled, Measured, at_cell

ALONE, EQUAL_NORM = "expert", "equal_norm"
"""Kinds of rows."""


def answer(
    model: MoeModel, request: DerivedRequest, *, store: Any = None, progress: Progress = SILENT
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The derived kind `cell_controls`: settings `layer`, `pos`, `expert`; table `patches`, one row per patch and draw;
    values: `weights` (clean router weights by expert), `random` and `matched` (the controls)."""
    settings = request.get()
    layer, pos, expert = (settings[name] for name in ("layer", "pos", "expert"))
    found, weights = controls(model, Case.of(model, question(request)), layer, pos, expert, progress=progress)
    values = {
        "layer": layer, "pos": pos, "expert": expert,
        "weights": {str(e): weight for e, weight in sorted(weights.items())},
        "random": random_controls(request.facts[0].case_id, list(weights), expert, n_controls(model.top_k)),
        "matched": gate_matched(weights, expert),
    }  # fmt: skip
    return {"patches": found.rows}, found.values() | values


def controls(
    model: MoeModel, case: Case, layer: int, pos: int, expert: int, *, progress: Progress = SILENT
) -> tuple[Measured, dict[int, float]]:
    """(the patches of the expert and of every clean-active one, each alone, and of the equal-norm pair; clean router
    weights by expert). Labels: kind, expert, name, clean_active."""
    if not 0 <= expert < model.n_experts:
        last = model.n_experts - 1
        raise InputError(f"There is no expert {expert}.", f"Experts go from 0 to {last}.", field="expert")
    weights: dict[int, float] = {}

    def wanted(cell: Cell) -> list[Labelled]:
        weights.update(cell.clean)

        def labels(kind: str, e: int) -> dict[str, Any]:
            return {"kind": kind, "expert": e, "name": expert_name(layer, e), "clean_active": e in cell.clean}

        out = [(labels(ALONE, e), cell.updates((e,))) for e in sorted({*cell.clean, expert})]
        matched = gate_matched(cell.clean, expert)
        if matched is not None:
            pair = ((expert, matched), (matched, expert))
            out += [(labels(EQUAL_NORM, e), cell.updates((e,), equal_norm_with=(other,))) for e, other in pair]
        return out

    return at_cell(model, case, layer, pos, wanted, progress=progress), weights
