"""Ticked experts of one cell: all their updates put back together, each alone, and what they are measured against.

Against the layer patch, the coalition of all clean-active experts and the routing union (protocol.md, "Interventions").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from ..derived import DerivedRequest
from ..errors import InputError
from ..moe import MoeModel
from ..patches import CLEAN_TOP_K, ROUTING_UNION, SHARED
from ..progress import SILENT, Progress
from ..results import expert_name
from .asking import question
from .measure import Case, Cell, Labelled, Measured, at_cell

TOGETHER, LAYER_PATCH = "coalition", "layer"
"""Kinds of rows beside `expert`, `shared`, `clean_top_k` and `routing_union`."""


def answer(
    model: MoeModel, request: DerivedRequest, *, store: Any = None, progress: Progress = SILENT
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The derived kind `coalition`: settings `layer`, `pos`, `experts`; table `patches`, one row per patch and draw."""
    settings = request.get()
    layer, pos, experts = settings["layer"], settings["pos"], settings["experts"]
    found = coalition(model, Case.of(model, question(request)), layer, pos, experts, progress=progress)
    return {"patches": found.rows}, found.values() | {"layer": layer, "pos": pos, "experts": experts}


def coalition(
    model: MoeModel,
    case: Case,
    layer: int,
    pos: int,
    experts: Sequence[int | str],
    *,
    progress: Progress = SILENT,
) -> Measured:
    """`experts`: indices, and `shared` for the shared expert. Labels: kind, expert (missing for sums), name.

    An expert that is routed in neither run has no update: its rescue is 0. Without experts only the three references.
    """
    for expert in experts:
        known = model.structure.has_shared if expert == SHARED else 0 <= int(expert) < model.n_experts
        if not known:
            raise InputError(f"There is no expert {expert} in layer {layer}.", "Choose others.", field="experts")
    chosen = tuple(experts)

    def wanted(cell: Cell) -> list[Labelled]:
        out: list[Labelled] = []
        for expert in chosen:
            index = None if expert == SHARED else int(expert)
            kind = "shared" if index is None else "expert"
            labels = {"kind": kind, "expert": index, "name": expert_name(layer, index)}
            out.append((labels, cell.updates((expert,))))
        if chosen:
            out.append((_sum(TOGETHER), cell.updates(chosen)))
        out += [(_sum(name), cell.updates((name,))) for name in (CLEAN_TOP_K, ROUTING_UNION)]
        return [*out, (_sum(LAYER_PATCH), cell.layer_patch())]

    found = at_cell(model, case, layer, pos, wanted, progress=progress)
    found.rows["expert"] = found.rows.expert.astype("Int64")
    return found


def _sum(kind: str) -> dict[str, Any]:
    return {"kind": kind, "expert": None, "name": kind}
