"""What came out of the questions about cells, as plain tables for pictures, pages and files. Pandas only.

Means run over draws; restoration is mean rescue ÷ mean drop (protocol.md), missing where the drop is too small.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .. import views
from ..answers import long_frame
from ..derived import DerivedResult
from ..results import MIN_DROP, TraceResult, expert_name

_EMPTY = ("expert", "clean_active", "router_weight_clean", "router_weight_corrupt", "direct")

SINGLE, SUM, TOGETHER, TOP_K, UNION, LAYER = (
    "one expert alone", "sum of the singles", "together", "all clean-active", "routing union", "layer patch",
)  # fmt: skip
"""What a row of `coalition_rows` is."""
SELECTED, MATCHED, RANDOM, OTHER = "selected", "gate-matched", "active-random", "other clean-active"
"""What an expert is among `control_rows`."""


def at_site(trace: TraceResult, answer: DerivedResult) -> TraceResult:
    """The trace with the cells of another site or window in place of its own, for everything that reads layer rows.

    Its rows of experts are gone; `provenance.moe_layers` are the layers that have the site.
    """
    prov, cells = trace.provenance, answer.tables["cells"].copy()
    for name in _EMPTY:
        cells[name] = np.nan
    clean = cells[cells.kind == "clean"]
    draws = [[clean.drop(columns="draw"), mine.drop(columns="draw")] for _, mine in cells.groupby("draw")]
    frame = long_frame(trace.request.fact.case_id, prov.tokens, prov.token_ids, draws)
    return dataclasses.replace(
        trace, frame=frame, provenance=dataclasses.replace(prov, moe_layers=answer.values["layers"])
    )


def over_draws(rows: pd.DataFrame, by: Sequence[str], *, drop: float) -> pd.DataFrame:
    """One row per group of `by`, in the order of appearance: rescue, rescue_sd (missing for one draw), rescue_min,
    rescue_max, restoration, draws. `drop`: mean over draws."""
    grouped = rows.groupby(list(by), sort=False, dropna=False).rescue
    out = grouped.agg(rescue="mean", rescue_sd="std", rescue_min="min", rescue_max="max", draws="size").reset_index()
    out["restoration"] = out.rescue / (drop if drop >= MIN_DROP else np.nan)
    return out


# ---- coalition -------------------------------------------------------------------------------------------------------


def coalition_rows(answer: DerivedResult) -> pd.DataFrame:
    """name, role, then `over_draws`: the members, the sum of their single rescues, the coalition, and the references.

    The routing union stands there only where it differs from the layer patch: where there is a shared expert.
    """
    rows = answer.tables["patches"]
    singles = rows[rows.kind.isin(["expert", "shared"])]
    role = {"coalition": TOGETHER, "clean_top_k": TOP_K, "routing_union": UNION, "layer": LAYER}
    parts = [singles.assign(role=SINGLE)]
    if len(singles):
        sums = singles.groupby("draw", as_index=False).rescue.sum()
        parts.append(sums.assign(name=SUM, role=SUM))
    for kind, what in role.items():
        mine = rows[rows.kind == kind]
        parts.append(mine.assign(name=what, role=what))
    union, layer = parts[-2], parts[-1]
    if np.allclose(union.rescue.to_numpy(float), layer.rescue.to_numpy(float), atol=1e-3):
        del parts[-2]
    every = pd.concat([part[["name", "role", "rescue"]] for part in parts if len(part)], ignore_index=True)
    return over_draws(every, ["name", "role"], drop=answer.values["drop"])


def rescue_of(rows: pd.DataFrame, role: str) -> float:
    """The mean rescue of the row with that role, NaN without one."""
    found = rows.loc[rows.role == role, "rescue"]
    return float(found.iloc[0]) if len(found) else np.nan


# ---- necessity beside sufficiency ------------------------------------------------------------------------------------


def necessity(at: TraceResult, answer: DerivedResult) -> pd.DataFrame:
    """One row per clean-active expert of the cell, most sufficient first, and one for all of them together: name,
    expert, router_weight, rescue, restoration, direct (of the expert patch; missing for all together), and the costs
    of the knockouts at this position (`zero`, `reroute`) and at all positions (`zero_all`, `reroute_all`)."""
    rows, cell = answer.tables["knockouts"], answer.values
    out = rows.drop_duplicates("name")[["name", "expert", "router_weight"]]
    for mode in ("zero", "reroute"):
        for where, ending in (("this position", ""), ("all positions", "_all")):
            mine = rows[(rows["mode"] == mode) & (rows.positions == where)].set_index("name")
            out[mode + ending] = out.name.map(mine.cost).astype(float)
    active = views.active_experts(at, cell["layer"], cell["pos"]).set_index("name")
    for name in ("rescue", "restoration", "direct"):
        out[name] = out.name.map(active[name]).astype(float)
    whole = out.expert.isna()
    alone = out[~whole].sort_values("rescue", ascending=False, kind="stable")
    return pd.concat([alone, out[whole]], ignore_index=True)


# ---- controls --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Specificity:
    """One fact's controls of one expert, means over draws (logits). `selected`: 0 where it is not clean-active;
    `controls`: mean of the active-random ones; `specificity`: selected − controls, `specificity_sd` over draws;
    `matched`: of the gate-matched control; `equal_selected`, `equal_matched`: the equal-norm pair; `rank` among the
    `of` clean-active experts (1 = highest rescue; 0: not clean-active). NaN where there is none."""

    active: bool
    selected: float
    controls: float
    specificity: float
    specificity_sd: float
    matched: float
    equal_selected: float
    equal_matched: float
    rank: int
    of: int


def control_rows(answer: DerivedResult) -> pd.DataFrame:
    """name, expert, role, kind (`expert` alone, or `equal_norm`), router_weight, then `over_draws`; the selected expert
    first, then the gate-matched, the active-random, the others."""
    values, rows = answer.values, answer.tables["patches"]
    order = [SELECTED, MATCHED, RANDOM, OTHER]

    def role(expert: int) -> str:
        if expert == values["expert"]:
            return SELECTED
        if expert == values["matched"]:
            return MATCHED
        return RANDOM if expert in values["random"] else OTHER

    out = over_draws(rows, ["kind", "name", "expert"], drop=values["drop"])
    out["role"] = [role(int(e)) for e in out.expert]
    out["router_weight"] = [values["weights"].get(str(int(e)), 0.0) for e in out.expert]
    out["active_random"] = [int(e) in values["random"] for e in out.expert]
    key = out.kind.map({"expert": 0, "equal_norm": 1}) * 10 + out.role.map(order.index)
    return out.iloc[np.argsort(key, kind="stable")].reset_index(drop=True)


def specificity(answer: DerivedResult) -> Specificity:
    """The numbers of protocol.md, step 5, for this one fact."""
    values, rows = answer.values, answer.tables["patches"]
    table = rows.pivot_table(index="draw", columns=["kind", "expert"], values="rescue")
    alone = table["expert"]
    active = [int(e) for e in values["weights"]]
    expert, matched, drawn = values["expert"], values["matched"], values["random"]
    selected = alone[expert] if expert in active else alone[expert] * 0.0
    control = alone[drawn].mean(axis=1) if drawn else selected * np.nan
    means = alone[active].mean()
    pair = table["equal_norm"].mean() if matched is not None else {}
    return Specificity(
        active=expert in active,
        selected=float(selected.mean()),
        controls=float(control.mean()),
        specificity=float((selected - control).mean()),
        specificity_sd=float((selected - control).std()),
        matched=float(means[matched]) if matched is not None else np.nan,
        equal_selected=float(pair[expert]) if matched is not None else np.nan,
        equal_matched=float(pair[matched]) if matched is not None else np.nan,
        rank=1 + int((means > means[expert]).sum()) if expert in active else 0,
        of=len(active),
    )


# ---- draws -----------------------------------------------------------------------------------------------------------


def draws_of(at: TraceResult, layer: int, pos: int) -> pd.DataFrame:
    """Each draw's rescue of the cell's experts and of its layer patch: name, draw, rescue. A draw in which an expert is
    routed in neither run counts with rescue 0, as everywhere (`views.patches`)."""
    frame = at.frame[(at.frame.layer == layer) & (at.frame.pos == pos)]
    wide = frame.assign(name=[
        LAYER if kind == "layer" else expert_name(layer, None if kind == "shared" else int(expert))
        for kind, expert in zip(frame.kind, frame.expert, strict=True)
    ]).pivot_table(index="name", columns="draw", values="rescue")  # fmt: skip
    wide = wide.reindex(columns=range(at.request.draws)).fillna(0.0).astype(float)
    out = wide.reset_index().melt(id_vars="name", var_name="draw", value_name="rescue")
    return out.astype({"draw": int})
