"""Every clean-active expert of one cell knocked out in the clean run: what is lost without it (protocol.md,
"knockout"). Necessity, where a rescue is sufficiency."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd

from ..derived import DerivedRequest
from ..formats import logits
from ..moe import MoeModel
from ..progress import SILENT, Progress
from ..results import MIN_DROP, expert_name
from .asking import question
from .measure import Case, Cell, Labelled, at_cell

ZERO, REROUTE = MODES = ("zero", "reroute")
HERE, EVERYWHERE = "this position", "all positions"
ALL = "all clean-active"


def answer(
    model: MoeModel, request: DerivedRequest, *, store: Any = None, progress: Progress = SILENT
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The derived kind `cell_knockouts`: settings `layer`, `pos`; table `knockouts` (see `knockouts`)."""
    layer, pos = (request.get()[name] for name in ("layer", "pos"))
    case = Case.of(model, question(request))
    table, clean = knockouts(model, case, layer, pos, progress=progress)
    values = {
        "layer": layer, "pos": pos, "clean_contrast": clean, "reroutable": bool(model.structure.reroutable),
        "caption": [case.caption, f"clean contrast {logits(clean)} logits"],
    }  # fmt: skip
    return {"knockouts": table}, values


def knockouts(
    model: MoeModel, case: Case, layer: int, pos: int, *, progress: Progress = SILENT
) -> tuple[pd.DataFrame, float]:
    """(one row per knockout, the clean contrast): name, expert (missing where all clean-active ones go together),
    router_weight, mode, positions, true_logit, foil_logit, contrast, `cost` = clean contrast − contrast (logits),
    `share` = cost ÷ clean contrast (missing where that is below 0.05).

    Reroute only where the family's router can be driven so. Corrupt runs are not needed, so none are run.
    """
    case = dataclasses.replace(case, runs=case.runs[:1])
    length = len(case.fact.input_ids)
    modes = MODES if model.structure.reroutable else (ZERO,)

    def wanted(cell: Cell) -> list[Labelled]:
        sets = [((e,), expert_name(layer, e), e, w) for e, w in sorted(cell.clean.items())]
        if len(sets) > 1:
            sets.append((tuple(sorted(cell.clean)), ALL, None, sum(cell.clean.values())))
        return [
            (
                {"name": name, "expert": expert, "router_weight": weight, "mode": mode, "positions": where},
                (cell.zero if mode == ZERO else cell.reroute)(experts, positions),
            )
            for experts, name, expert, weight in sets
            for mode in modes
            if mode == ZERO or model.n_experts - len(experts) >= model.structure.top_k  # else the masked are chosen
            for where, positions in ((HERE, (pos,)), (EVERYWHERE, range(length)))
        ]

    found = at_cell(model, case, layer, pos, wanted, progress=progress)
    rows = found.rows.drop(columns=["draw", "rescue", "restoration"]).astype({"expert": "Int64"})
    rows["cost"] = found.clean_contrast - rows.contrast
    whole = found.clean_contrast
    rows["share"] = rows.cost / (whole if abs(whole) >= MIN_DROP else np.nan)
    return rows, whole
