"""Made-up answers about cells that hang together with `fake_results.fake_result`: the same trace, rearranged."""

from __future__ import annotations

import dataclasses

import pandas as pd
from fake_results import fake_result

from core import views
from core.cells.asking import question
from core.derived import DerivedRequest, DerivedResult
from core.results import TraceResult, expert_name
from core.study.controls import gate_matched, random_controls

LIFT = 1.0
"""By so many logits the patches at another site lift the true object more than the made-up layer patches."""


def fake_answer(request: DerivedRequest, **shape) -> DerivedResult:
    """The answer to a question of `core.cells`; `shape` as for `fake_result`."""
    draws = request.get().get("draws", 2)  # a question about the clean run has none, but the routing depends on it
    trace = fake_result(request=question(request).replace(experts="last", draws=draws), **shape)
    tables, values = ANSWERS[request.kind](trace, request.get())
    provenance = dataclasses.asdict(trace.provenance) | {"notes": []}
    return DerivedResult(request, tables, {"caption": ["made up"]} | values, provenance)


def _site_map(trace: TraceResult, settings: dict):
    cells = trace.frame[trace.frame.kind.isin(["clean", "corrupt", "layer"])]
    cells = cells[["kind", "draw", "layer", "pos", "true_logit", "foil_logit"]].copy()
    cells.loc[cells.kind == "layer", "true_logit"] += LIFT
    return {"cells": cells}, {"layers": trace.provenance.moe_layers, **settings}


def _rescues(trace: TraceResult, settings: dict) -> pd.DataFrame:
    """Each active expert's rescue in each draw: name, expert, draw, rescue."""
    here = trace.frame[(trace.frame.layer == settings["layer"]) & (trace.frame.pos == settings["pos"])]
    rows = here[here.kind == "expert"]
    return rows.assign(name=[expert_name(settings["layer"], int(e)) for e in rows.expert])


def _coalition(trace: TraceResult, settings: dict):
    """The joint rescue is the sum of the singles and `LIFT`; the others are the layer patch."""
    alone = _rescues(trace, settings)
    ticked = alone[alone.expert.isin(settings["experts"])]
    sums = ticked.groupby("draw", as_index=False).rescue.sum().assign(kind="coalition")
    sums["rescue"] += LIFT
    frame = trace.frame
    layer = frame[(frame.kind == "layer") & (frame.layer == settings["layer"]) & (frame.pos == settings["pos"])]
    rest = [layer.assign(kind=kind)[["kind", "draw", "rescue"]] for kind in ("clean_top_k", "routing_union", "layer")]
    rows = pd.concat([ticked[["kind", "name", "expert", "draw", "rescue"]], sums, *rest], ignore_index=True)
    return {"patches": rows}, {"drop": trace.drop, **settings}


def _minimal(trace: TraceResult, settings: dict):
    """All clean-active experts of the cell, best first; without a layer or position of the first cell there is."""
    layer = trace.provenance.moe_layers[0] if settings["layer"] is None else settings["layer"]
    pos = len(trace.provenance.tokens) - 1 if settings["pos"] is None else settings["pos"]
    active = views.active_experts(trace, layer, pos)
    active = active[active.status.isin([views.BOTH, views.CLEAN_ONLY])]
    curve = active[["name", "expert", "rescue"]].assign(
        size=range(1, len(active) + 1), layer=layer, pos=pos, restoration=active.rescue.cumsum() / trace.drop,
        random_restoration=0.1, random_min=0.0, random_max=0.2, random_sets=20,
    )  # fmt: skip
    values = {"scope": f"layer {layer}, position {pos} ('is')", "target": settings["target"], "drop": trace.drop}
    return {"curve": curve, "candidates": curve}, values | {"reached": False, "notes": ["A note."]}


def _knockouts(trace: TraceResult, settings: dict):
    """Costs of 1, 2, ... for the active experts in rising order; reroute half of it; twice at all positions."""
    active = views.active_experts(trace, settings["layer"], settings["pos"])
    active = active[active.status.isin([views.BOTH, views.CLEAN_ONLY])].sort_values("expert")
    sets = list(zip(active.name, active.expert, active.router_weight_clean, strict=True))
    rows = [
        {"name": name, "expert": expert, "router_weight": weight, "mode": mode, "positions": where,
         "cost": (i + 1) * (0.5 if mode == "reroute" else 1.0) * (2.0 if where == "all positions" else 1.0)}
        for i, (name, expert, weight) in enumerate([*sets, ("all clean-active", pd.NA, 1.0)])
        for mode in ("zero", "reroute")
        for where in ("this position", "all positions")
    ]  # fmt: skip
    values = {"clean_contrast": trace.clean_contrast, "reroutable": True, **settings}
    return {"knockouts": pd.DataFrame(rows).astype({"expert": "Int64"})}, values


def _controls(trace: TraceResult, settings: dict):
    """The trace's own rescues; the equal-norm pair has half of them."""
    alone = _rescues(trace, settings)
    clean = alone[alone.clean_active.astype(bool)].drop_duplicates("expert")
    weights = {int(e): float(w) for e, w in zip(clean.expert, clean.router_weight_clean, strict=True)}
    matched = gate_matched(weights, settings["expert"])
    pair = alone[alone.expert.isin([settings["expert"], matched])].assign(kind="equal_norm")
    rows = pd.concat([alone[alone.expert.isin([*weights, settings["expert"]])], pair.assign(rescue=pair.rescue / 2)])
    values = {
        "weights": {str(e): w for e, w in weights.items()}, "matched": matched, "drop": trace.drop,
        "random": random_controls(trace.request.fact.case_id, list(weights), settings["expert"], 1), **settings,
    }  # fmt: skip
    return {"patches": rows[["kind", "name", "expert", "draw", "rescue"]]}, values


ANSWERS = {
    "site_map": _site_map,
    "coalition": _coalition,
    "minimal_set": _minimal,
    "cell_knockouts": _knockouts,
    "cell_controls": _controls,
}
