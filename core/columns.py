"""Which quantity a table's column holds, by its name, and so how its numbers are written: on pages and in reports.

Knows names of columns and `core.formats`; no results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from . import formats

Form = Callable[[Any], str]
"""A number as text."""

_OF: dict[Form, str] = {
    formats.logits: """
        mean ci mean_all mean_active v_mean_all v_mean_active v_specificity mean_validation mean_rescue rescue
        rescue_active rescue_difference clean_contrast corrupt_contrast contrast scaled_contrast drop mean_drop
        layer_rescue expert_rescue expert_rescue_active_only specificity gate_matched_specificity
        equal_norm_specificity ours published direct direct_update zero zero_all reroute reroute_all change effect
        true_shift foil_shift rescue_min rescue_max true_rescue foil_rescue min_drop""",
    formats.logit: "true_logit foil_logit rescue_sd specificity_sd sd std",
    formats.restoration: "restoration restoration_difference random_restoration random_min random_max",
    formats.weight: "router_weight router_weight_clean router_weight_corrupt mean_weight weight",
    formats.percent: """
        recurrence v_recurrence positive_fraction share frequency busiest_frequency other_frequency share_a share_b
        gate_pos_in_pos gate_pos_in_neg gate_neg_in_pos gate_neg_in_neg expected_share same""",
    formats.probability: "probability p_true p_true_clean p_true_corrupt",
    formats.p_value: "p p_sign_flip",
    formats.bits: "information baseline divergence part part_baseline",
    formats.bits_change: "above_baseline",
    formats.entropy: "load_entropy",
    formats.overlap: "jaccard correlation",
    formats.lift: "lift reference",
    formats.mean_count: "expected mean_rank",
    formats.norm: """
        norm mean_norm output_norm contribution_norm magnitude_ratio median quartile upper_quartile""",
    formats.cosine: "cosine in_out_cosine gate_out_cosine gate_in_cosine",
    formats.angle: "angle",
    formats.small: "write activation mean_activation",
    formats.size_of_small: "mean_size",
    formats.rough: "margin margin_clean margin_corrupt sigma noise_sigma",
    formats.typed: "noise target factor threshold",
    formats.identifier: "case_id token_id true_id foil_id seed fact scan_index layer pos expert neuron split_seed",
}
_FORMS = {name: form for form, names in _OF.items() for name in names.split()}
_ENDS = ("_low", "_high", "_a", "_b")
_BESIDE: dict[str, tuple[tuple[str, Form], ...]] = {
    "change": (("clean_tokens", formats.points),),
    "clean": (("clean_tokens", formats.percent),),
    "corrupt": (("clean_tokens", formats.percent),),
    "high": (("baseline", formats.bits), ("median", formats.norm)),
    "low": (("median", formats.norm),),
}
"""Column → (another column of the same table, how it is written beside that one)."""


def form_of(table: pd.DataFrame, name: str) -> Form:
    """How the numbers of a column are written. What is not known here: whole numbers as counts, others with three
    decimals."""
    for beside, form in _BESIDE.get(name, ()):
        if beside in table:
            return form
    stems = [name, *(name.removesuffix(end) for end in _ENDS)]
    known = next((_FORMS[stem] for stem in stems if stem in _FORMS), None)
    if known is not None:
        return known
    return formats.count if pd.api.types.is_integer_dtype(table[name]) else formats.unknown
