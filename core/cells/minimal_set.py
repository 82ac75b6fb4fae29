"""The minimal set (`core.minimal`) as a derived kind."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ..asking import prepare_for
from ..derived import DerivedRequest
from ..formats import logits, typed
from ..minimal import Search, minimal_set
from ..moe import MoeModel
from ..progress import SILENT, Progress
from .asking import question


def answer(
    model: MoeModel, request: DerivedRequest, *, store: Any = None, progress: Progress = SILENT
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The derived kind `minimal_set`: settings `layer` and `pos` (None: all), `target`; tables `curve`, `candidates`
    (see `core.minimal`); values `scope`, `target`, `drop`, `reached`, `notes`."""
    asked, settings = question(request), request.get()
    search = Search(settings["layer"], settings["pos"], settings["target"])
    fact = prepare_for(model, asked)
    found = minimal_set(model, asked, fact, search, progress=progress)
    prov, given = found.provenance, asked.fact
    values = {
        "scope": found.scope, "target": found.target, "drop": found.drop, "reached": found.reached,
        "notes": list(found.notes),
        "caption": [
            f"“{given.text}” · subject {given.subject} · true {prov.true_token.strip()} · foil "
            f"{prov.foil_token.strip()}",
            f"minimal set of {found.scope}, target {typed(found.target)}, drop {logits(found.drop)} logits",
        ],
    }  # fmt: skip
    return {"curve": found.curve, "candidates": found.candidates}, values
