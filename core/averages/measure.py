"""What every fact of a set says: its contrasts, the rescue of every cell, the rescue of every expert at a role.

Answers the kinds `averages` and `expert_averages`. Averages and intervals are made of these tables afterwards
(`core.averages.tables`). All is swept, also what a trace would have (the MoE output of one layer): traces keep vectors
that nobody asked for here, and of many facts on a large model these would push everything else out of the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..budget import Budget
from ..cells.site_map import site_layers
from ..derived import DerivedRequest
from ..errors import InputError
from ..fact_batches import in_batches, usable
from ..missing import Question
from ..moe import MoeModel
from ..progress import SILENT, Progress
from ..requests import Fact
from ..roles import roles_of
from ..sites import NAMES
from . import role_sweep
from .questions import trace_request
from .role_sweep import RoleExperts, role_experts
from .site_sweep import SiteCells, patched_tokens, site_cells

FACT_COLUMNS = {
    "fact": "int32", "case_id": "int64", "relation": "object", "subject": "object", "prompt": "object",
    "true": "object", "foil": "object", "clean_contrast": "float64", "corrupt_contrast": "float64", "drop": "float64",
}  # fmt: skip
"""Table `facts`, one row per fact that the model can take. `fact`: its number in the request; `prompt` as the model
gets it; `foil`: the token's piece where it was chosen automatically; contrasts in logits, mean over draws."""
CELL_COLUMNS = {
    "fact": "int32", "layer": "int16", "pos": "int32", "role": "object", "token": "object", "rescue": "float64",
}  # fmt: skip
"""Table `cells`, one row per fact, layer that has the site, and position: rescue in logits, mean over draws; `role` is
one of `core.roles.ROLES`. Of `expert_averages`: MoE layers, and positions of the role."""
EXPERT_COLUMNS = {
    "fact": "int32", "layer": "int16", "pos": "int32", "expert": "int16", "router_weight": "float64",
    "rescue": "float64",
}  # fmt: skip
"""Table `experts`, one row per fact, MoE layer, position of the role and expert that is clean-active there (the shared
expert is −1, its router weight missing): rescue of its expert patch in logits, mean over draws."""


def cells(
    model: MoeModel, request: DerivedRequest, *, store: Any = None, progress: Progress = SILENT
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The tables `facts` and `cells`, and `left_out`; settings: see `core.averages.questions.cells_request`."""
    settings = request.get()
    site, window = settings["site"], settings["window"]
    layers = site_layers(model, site)
    if not layers:
        raise InputError(f"No layer of this model has this site: {NAMES[site]}.", "Choose another site.", field="site")
    questions, left_out = usable(model, [trace_request(request, f, model=model.spec) for f in request.facts])
    facts, found = [], []

    def work(batch: list[tuple[int, Question]], budget: Budget, progress: Progress) -> None:
        answers = site_cells(
            model, [question for _, question in batch], site=site, window=window, budget=budget, progress=progress
        )
        for (number, _), answer in zip(batch, answers, strict=True):
            facts.append(_fact_row(number, answer))
            found.append(_cell_rows(number, answer, layers))

    in_batches(
        model, questions, work=work, progress=progress, label="patching", tokens=_run_tokens,
        rows=lambda question: patched_tokens(model, question, site),
    )  # fmt: skip
    return {"facts": _facts(facts), "cells": _joined(found, CELL_COLUMNS)}, {"left_out": left_out}


def experts(
    model: MoeModel, request: DerivedRequest, *, store: Any = None, progress: Progress = SILENT
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The tables `facts`, `cells` (at the role) and `experts`, and `left_out`; a fact without a position of the role is
    in `facts` alone."""
    role = request.get()["role"]
    questions, left_out = usable(model, [trace_request(request, f, model=model.spec) for f in request.facts])
    facts, at_role, found = [], [], []

    def work(batch: list[tuple[int, Question]], budget: Budget, progress: Progress) -> None:
        answers = role_experts(model, [question for _, question in batch], role=role, budget=budget, progress=progress)
        for (number, _), answer in zip(batch, answers, strict=True):
            tokens = np.array(answer.prepared.tokens, dtype=object)
            facts.append(_fact_row(number, answer))
            at_role.append(answer.cells.assign(fact=number, role=role, token=tokens[answer.cells.pos.astype(int)]))
            found.append(answer.experts.assign(fact=number))

    in_batches(
        model, questions, work=work, progress=progress, label="patching experts", tokens=_run_tokens,
        rows=lambda question: role_sweep.patched_tokens(model, question, role),
    )  # fmt: skip
    tables = {
        "facts": _facts(facts), "cells": _joined(at_role, CELL_COLUMNS), "experts": _joined(found, EXPERT_COLUMNS),
    }  # fmt: skip
    return tables, {"left_out": left_out}


# ---- tables ------------------------------------------------------------------------------------------------------


def _run_tokens(question: Question) -> int:
    return len(question.prepared.input_ids) * (1 + question.request.draws)


def _fact_row(number: int, cells: SiteCells | RoleExperts) -> tuple:
    fact: Fact = cells.prepared.fact
    clean, corrupt = cells.clean_contrast, cells.corrupt_contrast
    foil = cells.prepared.foil_token.strip() if fact.foil is None or fact.foil_auto else fact.foil
    return (
        number, fact.case_id, fact.relation, fact.subject, fact.text, fact.true, foil, clean, corrupt, clean - corrupt,
    )  # fmt: skip


def _cell_rows(number: int, cells: SiteCells, layers: Sequence[int]) -> pd.DataFrame:
    fact, length = cells.prepared, len(cells.prepared.input_ids)
    positions = np.tile(np.arange(length), len(layers))
    roles = np.array(roles_of(length, fact.subject_positions), dtype=object)
    return pd.DataFrame({
        "fact": number, "layer": np.repeat(np.asarray(layers), length), "pos": positions, "role": roles[positions],
        "token": np.array(fact.tokens, dtype=object)[positions], "rescue": cells.rescue.ravel(),
    })  # fmt: skip


def _facts(rows: Sequence[tuple]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=list(FACT_COLUMNS)).astype(FACT_COLUMNS)
    return table.sort_values("fact", ignore_index=True)


def _joined(parts: Sequence[pd.DataFrame], types: dict[str, str]) -> pd.DataFrame:
    whole = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(types))
    order = [name for name in ("fact", "layer", "pos", "expert") if name in types]
    return whole[list(types)].astype(types).sort_values(order, ignore_index=True)
