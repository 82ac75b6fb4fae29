"""The words in the charts' tooltips: what each mark is and what its number means. Strings only, made from tables of
`core.views`; the charts show them as they are."""

from __future__ import annotations

import numpy as np
import pandas as pd

from . import views
from .formats import NONE, count, logit, logits, percent, restoration, rough, weight
from .named_rows import named_rows
from .results import TraceResult


def cell_tooltips(result: TraceResult, cells: pd.DataFrame) -> pd.DataFrame:
    """Tooltips of `views.layer_cells`, one row per cell."""
    corrupt, clean = _references(result)
    rows = []
    for c in named_rows(cells):
        rows.append(
            (
                f"layer {c.layer} at {c.label}",
                restoration(c.restoration),
                f"{logits(c.rescue)} logits",
                spread(c),
                _logit(c.true_logit, c.true_shift, corrupt[0], clean[0]),
                _logit(c.foil_logit, c.foil_shift, corrupt[1], clean[1]),
                reading(c.true_shift, c.foil_shift),
                c.experts_clean if isinstance(c.experts_clean, str) else NONE,
                margin(c),
            )
        )
    return pd.DataFrame(rows, columns=cell_tooltips.columns)


cell_tooltips.columns = [
    "t_cell", "t_restoration", "t_rescue", "t_over_draws", "t_true_logit", "t_foil_logit", "t_reading",
    "t_experts_(clean)", "t_routing_margin",
]  # fmt: skip


def expert_tooltips(result: TraceResult, grid: pd.DataFrame) -> pd.DataFrame:
    """Tooltips of `views.expert_grid`, one row per expert of each layer."""
    corrupt, clean = _references(result)
    n = result.request.draws
    rows = []
    for c in named_rows(grid):
        if c.status == views.NOT_ROUTED:
            rows.append((c.name, "not here, in neither run", *[NONE] * 9))
            continue
        where = c.status
        if n > 1 and c.corrupt_draws:
            where += f" ({c.corrupt_draws} of {n} draws)"
        weights = NONE
        if np.isfinite(c.router_weight_clean):
            weights = f"clean {weight(c.router_weight_clean)}, corrupt {weight(c.router_weight_corrupt)}"
        rows.append(
            (
                c.name, where, weights, restoration(c.restoration), f"{logits(c.rescue)} logits", direct(c),
                spread(c),
                _logit(c.true_logit, c.true_shift, corrupt[0], clean[0]),
                _logit(c.foil_logit, c.foil_shift, corrupt[1], clean[1]),
                percent(c.share),
                margin(c),
            )
        )  # fmt: skip
    return pd.DataFrame(rows, columns=expert_tooltips.columns)


expert_tooltips.columns = [
    "t_expert", "t_routed", "t_router_weight", "t_restoration", "t_rescue", "t_direct_part", "t_over_draws",
    "t_true_logit", "t_foil_logit", "t_share_of_layer_patch", "t_routing_margin",
]  # fmt: skip


def strip_tooltips(result: TraceResult, strip: pd.DataFrame) -> pd.DataFrame:
    """Tooltips of `views.routing_strip`, one row per (position, expert)."""
    n = result.request.draws
    rows = []
    for c in named_rows(strip):
        where = c.change + (f" ({c.corrupt_draws} of {n} draws)" if n > 1 and c.corrupt_draws else "")
        weights = f"clean {weight(c.router_weight_clean)}, corrupt {weight(c.router_weight_corrupt)}"
        rows.append((f"{c.name} at {c.label}", where, weights, margin(c)))
    return pd.DataFrame(rows, columns=strip_tooltips.columns)


strip_tooltips.columns = ["t_expert", "t_routed", "t_router_weight", "t_routing_margin"]


def spread(row) -> str:
    """How far the draws lie apart."""
    if row.draws <= 1:
        return "one draw, no spread"
    ends = f"min {logits(row.rescue_min)}, max {logits(row.rescue_max)}"
    return f"rescue sd {logit(row.rescue_sd)}, {ends}, n = {count(row.draws)}"


def direct(row) -> str:
    """How much of an expert's rescue reaches the logits without a later layer, and what is left."""
    if not np.isfinite(row.direct):
        return NONE
    return f"{logits(row.direct)} logits, through later layers {logits(row.rescue - row.direct)}"


def reading(true_shift: float, foil_shift: float) -> str:
    """Is the answer restored, or the foil put down? rescue = true shift − foil shift."""
    true = f"true object {'lifted' if true_shift >= 0 else 'lowered'} {logit(abs(true_shift))}"
    foil = f"foil {'put down' if foil_shift <= 0 else 'lifted'} {logit(abs(foil_shift))}"
    return f"{true}, {foil}"


def margin(row) -> str:
    """Routing margins of both runs, near ties named."""
    parts = []
    for run in ("clean", "corrupt"):
        value, near = getattr(row, f"margin_{run}"), getattr(row, f"near_tie_{run}")
        if value is not None and np.isfinite(value):
            parts.append(f"{run} {rough(value)}{' (near tie)' if near is True or near == 1 else ''}")
    return ", ".join(parts) or NONE


def _references(result: TraceResult) -> tuple[tuple[float, float], tuple[float, float]]:
    """(true, foil) logits of the corrupt runs (mean over draws) and of the clean run."""
    means = (
        result.frame[result.frame.kind.isin(["clean", "corrupt"])].groupby("kind")[["true_logit", "foil_logit"]].mean()
    )
    return tuple(means.loc["corrupt"]), tuple(means.loc["clean"])


def _logit(value: float, shift: float, corrupt: float, clean: float) -> str:
    text = f"{logit(value)} ({logits(shift)} on corrupt {logit(corrupt)}; clean {logit(clean)})"
    return NONE if not np.isfinite(value) else text
