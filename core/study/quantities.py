"""The quantities that a study estimates, one value per validation fact and quantity, and their estimates.

Every number of the summary is an estimate of one column of this table. Knows rows, options and `core.stats`.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from .. import stats
from ..results import MIN_DROP
from ..stats import Estimate
from . import rows as table
from . import values
from .options import Options

QUANTITIES = {
    "layer_rescue": "rescue of the layer patch at the selected layer",
    "expert_rescue": "rescue of the selected expert, 0 where it is not clean-active",
    "expert_rescue_active_only": "rescue of the selected expert where it is clean-active",
    "specificity": "rescue of the selected expert (0 where not active) minus the mean of its active-random controls",
    "gate_matched_specificity": "rescue of the selected expert minus its gate-matched control, where it is active",
    "equal_norm_specificity": "the same with both patch vectors scaled to the smaller norm",
    "clean_topk": "rescue of all clean-active experts together",
    "routing_union": "rescue of all experts active in the clean or the corrupt run",
    "minimal_coalition": "rescue of the minimal coalition, rule and size chosen on discovery",
    "random_coalition": "mean rescue of random coalitions of the same size",
}
"""The estimates of summary.json and what they mean (logits, validation facts)."""

BESIDE = {
    "specificity_active_only": "specificity over the facts where the selected expert is clean-active",
    "minimal_minus_target": "minimal coalition minus the wanted share of the layer patch",
    "minimal_minus_random": "minimal minus random coalitions, where a fact has other experts to draw from",
    "control_random": "mean rescue of the active-random controls",
    "control_gate_matched": "rescue of the gate-matched control",
    "equal_norm_selected": "rescue of the selected expert, scaled to the smaller norm of the pair",
    "equal_norm_control": "rescue of its gate-matched control, scaled to the smaller norm of the pair",
    "drop": "clean minus corrupt contrast",
}
"""Further columns, shown beside those."""

ESTIMATED_TWICE = (
    "layer_rescue", "expert_rescue", "expert_rescue_active_only", "specificity", "specificity_active_only",
    "gate_matched_specificity",
)  # fmt: skip
"""What the fresh draw repeats."""

_CONTROLS = (
    table.CONTROL_RANDOM, table.CONTROL_GATE_MATCHED, table.EQUAL_NORM_SELECTED, table.EQUAL_NORM_CONTROL,
)  # fmt: skip

UNITS = ["mean", "ci_low", "ci_high", "positive_fraction", "p_sign_flip", "n", "n_missing"]
"""Columns of an estimate in a table."""


def of_validation(
    rows: pd.DataFrame, options: Options, *, layer: int | None, expert: int | None, stage: str = table.MAIN
) -> pd.DataFrame:
    """`QUANTITIES` and `BESIDE`, one row per validation fact (scan_index, rising), NaN where not measured or undefined.

    Draws are averaged within the fact, so are its controls and its random coalitions.
    """
    facts = values.of_split(rows, table.VALIDATION)
    out = pd.DataFrame(np.nan, index=facts, columns=[*QUANTITIES, *BESIDE], dtype=float)
    if layer is None:
        return out

    def measured(kind: str, expert: int | None = None) -> pd.Series:
        return values.per_fact(rows, kind, layer=layer, stage=stage, expert=expert).reindex(facts)

    out["layer_rescue"] = measured(table.LAYER)
    out["drop"] = values.drops(rows, stage=stage).reindex(facts)
    if expert is not None:
        active = _active(rows, layer=layer, expert=expert).reindex(facts)
        # the clean run, so the activity, is that of the main stage in all; a fact without a layer patch in this stage
        # was not measured in it
        inactive = (active == 0) & out.layer_rescue.notna()
        active = active == 1
        rescue = measured(table.EXPERT, expert).where(active).mask(inactive, 0.0)
        for name in _CONTROLS:
            out[name] = measured(name)
        specificity = rescue - out.control_random
        out["expert_rescue"] = rescue
        out["expert_rescue_active_only"] = rescue.where(active)
        out["specificity"], out["specificity_active_only"] = specificity, specificity.where(active)
        out["gate_matched_specificity"] = rescue.where(active) - out.control_gate_matched
        out["equal_norm_specificity"] = out.equal_norm_selected - out.equal_norm_control
    for name, kind in (
        ("clean_topk", table.CLEAN_TOPK),
        ("routing_union", table.ROUTING_UNION),
        ("minimal_coalition", table.MINIMAL),
        ("random_coalition", table.RANDOM),
    ):
        out[name] = measured(kind)
    out["minimal_minus_target"] = out.minimal_coalition - options.coalition_share * out.layer_rescue
    alternatives = _has_alternatives(rows, layer=layer, stage=stage).reindex(facts, fill_value=False)
    out["minimal_minus_random"] = (out.minimal_coalition - out.random_coalition).where(alternatives)
    return out


def estimate(of_fact: pd.Series, known: pd.DataFrame, options: Options) -> Estimate:
    """The estimate of one column; `known`: the facts' table, for their subjects."""
    units = [values.subject_key(s) for s in known.subject.reindex(of_fact.index)] if options.by_subject else None
    return stats.estimate(
        of_fact.to_numpy(dtype=float),
        units=units,
        resamples=options.resamples,
        flips=options.flips,
        confidence=options.confidence,
        seed=options.stats_seed,
    )


def restoration(rescue: float, drop: float) -> float:
    """Mean rescue ÷ mean drop; NaN where the drop is below 0.05."""
    return rescue / drop if drop >= MIN_DROP else math.nan


def _active(rows: pd.DataFrame, *, layer: int, expert: int) -> pd.Series:
    """By fact: 1 where `expert` is clean-active, 0 where it is not, NaN where no expert was patched."""
    experts = values.expert_table(rows, layer=layer)
    measured = pd.Series(0.0, index=experts.measured)
    return experts.active.loc[experts.measured, expert].astype(float) if expert in experts.active else measured


def _has_alternatives(rows: pd.DataFrame, *, layer: int, stage: str) -> pd.Series:
    """By fact: its minimal coalition leaves an active expert out, so that a random one can be another."""
    found = rows[(rows.kind == table.MINIMAL) & (rows.layer == layer) & (rows.stage == stage)]
    sizes = found.drop_duplicates("scan_index").set_index("scan_index").experts
    sizes = sizes.map(lambda text: len(text.split(",")) if text else 0)
    active = values.expert_table(rows, layer=layer).active.sum(axis=1)
    return sizes < active.reindex(sizes.index)
