"""How the columns of a study's tables are shown: names, number formats, what each means. Missing values as –."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from . import address, listing
from .listing import Column

_END = "End of the percentile-bootstrap interval."
MEANS = {
    "mean": "Mean over the facts, logits.",
    "ci_low": "Lower end of the percentile-bootstrap interval.",
    "ci_high": "Upper end of the percentile-bootstrap interval.",
    "positive_fraction": "Share of the facts in which it is above 0.",
    "p_sign_flip": "Two-sided sign-flip test.",
    "n": "Facts with a value.",
    "n_missing": "Facts without a value.",
    "facts": "How many.",
    "recurrence": "Share of the discovery facts in which it is clean-active.",
    "v_recurrence": "The same of the validation facts.",
    "mean_all": "Mean rescue over all discovery facts, 0 where it is not active.",
    "mean_active": "Mean rescue over the discovery facts where it is active.",
    "v_mean_all": "Mean rescue over all validation facts, 0 where it is not active.",
    "v_mean_active": "Mean rescue over the validation facts where it is active.",
    "v_specificity": "Rescue minus the mean of its active-random controls, validation.",
    "mean_validation": "Mean rescue over all validation facts.",
    "n_active": "Discovery facts in which it is clean-active.",
    "active": "Of the n facts that it was selected on, those in which it is clean-active.",
    "needed": "A candidate is clean-active in so many of them.",
    "candidates": "Experts that are.",
    "n_validation": "Facts that it is evaluated on, which had no part in the selection.",
    "v_n_active": "Validation facts in which it is clean-active.",
    "candidate": "Clean-active in enough discovery facts.",
    "rescue": "Contrast of the patched run − corrupt contrast, logits.",
    "rescue_active": "Mean over the facts in which it is clean-active.",
    "tokens": "The fact's tokens of this role.",
    "restoration": "Mean rescue ÷ mean drop.",
    "share": "Share of the layer patch's rescue.",
    "mean_rescue": "Mean rescue on discovery, logits.",
    "noise": "Noise level, × embedding std.",
    "clean_contrast": "logit(true) − logit(foil) in the clean run.",
    "drop": "Clean minus corrupt contrast.",
    "layer_rescue": "Rescue of the layer patch, logits.",
    "expert_rescue": "Rescue of the expert patch, logits; 0 where the expert is not clean-active.",
    "specificity": "Rescue of the expert minus the mean of its active-random controls.",
    "clean_active": "Whether the expert is routed at the last position in the clean run.",
    "router_weight": "Weight that multiplies the expert's output in the clean run.",
    "ours": "This study.",
    "published": "The paper.",
    "marker": "Whether our mean lies inside the published interval; for layer and expert, whether they agree.",
}
"""Column → meaning. Columns that end in _low and _high are the ends of an interval."""
NAMES = {
    "name": "expert", "n_active": "active (disc.)", "mean_all": "all (disc.)", "mean_active": "where active (disc.)",
    "v_n_active": "active (val.)", "v_recurrence": "recurrence (val.)", "v_mean_all": "all (val.)",
    "v_mean_all_low": "low", "v_mean_all_high": "high", "v_mean_active": "where active (val.)",
    "v_specificity": "specificity (val.)", "v_specificity_low": "low", "v_specificity_high": "high",
    "v_specificity_n": "n", "mean_validation": "all (val.)", "ci_low": "low", "ci_high": "high",
    "positive_fraction": "positive", "p_sign_flip": "p", "n_missing": "missing", "split": "half",
    "router_weight": "w clean", "layer_rescue": "layer rescue", "expert_rescue": "expert rescue", "meaning": "what",
}  # fmt: skip
"""Column → heading, where it is not its own name with spaces."""
FIRST = {
    "selected", "candidate", "winner", "two_stage", "recurrence", "mean_all", "mean_active", "mean_validation",
    "v_mean_all", "v_mean_all_low", "v_mean_all_high", "v_mean_active", "v_specificity", "v_specificity_low",
    "v_specificity_high", "v_specificity_n",
}  # fmt: skip
"""Columns of tables of experts that come before the others."""
MARKERS = {"inside": "✓ inside", "outside": "✗ outside", "same": "✓ same", "other": "✗ other"}
WIDTHS = {"quantity": 165, "meaning": 265, "name": 80, "split": 85}
NARROW = 66
SHORT = 36
"""Letters of a meaning that is shown whole."""


def show(
    table: pd.DataFrame,
    *,
    key: str,
    alt: str,
    on_pick: Callable[[int], None] | None = None,
    columns: dict[str, Any] | None = None,
    height: int = 400,
) -> None:
    """A table; a ticked row calls `on_pick` with its number. `columns`: further column configurations."""
    order = [name for name in table if name != "expert" or "name" not in table]
    # texts that fill the width come after the numbers; of a quantity's name and its meaning the shorter stands first
    late = ["relations"]
    if "meaning" in order:
        late.append("quantity" if table.meaning.str.len().max() <= SHORT else "meaning")
    order.sort(key=lambda name: name in late)
    if "name" in order:
        order.sort(key=lambda name: 0 if name in ("layer", "name") else 1 if name in FIRST else 2)
    shown = {name: _column(name, table[name]) for name in order} | (columns or {})
    options: dict[str, Any] = {}
    if on_pick is not None:

        def pick() -> None:
            rows = address.ticked(key)
            if rows:
                on_pick(rows[0])

        options = {"on_select": address.callback(key, pick), "selection_mode": "single-row"}
    if "marker" in table:
        table = table.assign(marker=table.marker.map(MARKERS))
        shown["quantity"] = Column("quantity", width=235)
    listing.show(table, {name: shown[name] for name in order}, key=key, alt=alt, most=height, **options)


def _column(name: str, values: pd.Series) -> Column:
    label = NAMES.get(name, name.replace("_", " "))
    stem = name.removesuffix("_low").removesuffix("_high")
    meaning = MEANS.get(name) or (_END if name != stem else "")
    narrow = len(label) < 10 and pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    width = NARROW if narrow else WIDTHS.get(name)
    return Column(label, meaning, width=width)
