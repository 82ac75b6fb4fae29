"""Made-up answers about cells that hang together with `fake_results.fake_result`: the same trace, rearranged."""

from __future__ import annotations

import dataclasses

from fake_results import fake_result

from core.cells.asking import question
from core.derived import DerivedRequest, DerivedResult
from core.results import TraceResult

LIFT = 1.0
"""By so many logits the patches at another site lift the true object more than the made-up layer patches."""


def fake_answer(request: DerivedRequest, **shape) -> DerivedResult:
    """The answer to a question of `core.cells`; `shape` as for `fake_result`."""
    trace = fake_result(request=question(request).replace(experts="last"), **shape)
    tables, values = {"site_map": _site_map}[request.kind](trace, request.get())
    provenance = dataclasses.asdict(trace.provenance) | {"notes": []}
    return DerivedResult(request, tables, {"caption": ["made up"]} | values, provenance)


def _site_map(trace: TraceResult, settings: dict):
    cells = trace.frame[trace.frame.kind.isin(["clean", "corrupt", "layer"])]
    cells = cells[["kind", "draw", "layer", "pos", "true_logit", "foil_logit"]].copy()
    cells.loc[cells.kind == "layer", "true_logit"] += LIFT
    return {"cells": cells}, {"layers": trace.provenance.moe_layers, **settings}
