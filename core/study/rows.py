"""The row table of a study: one row per fact, draw and patch. Column names, kinds and stages, nothing else.

The engine side writes such rows, the results side (selection, summary, figures, report) reads nothing but them, the
settings and the funnel. Knows no model, no store and no statistics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

LAYER, EXPERT = "layer", "expert"
CONTROL_RANDOM, CONTROL_GATE_MATCHED = "control_random", "control_gate_matched"
EQUAL_NORM_SELECTED, EQUAL_NORM_CONTROL = "equal_norm_selected", "equal_norm_control"
CLEAN_TOPK, ROUTING_UNION = "coalition_clean_topk", "coalition_routing_union"
MINIMAL, RANDOM = "coalition_minimal", "coalition_random"

KINDS = (
    LAYER, EXPERT, CONTROL_RANDOM, CONTROL_GATE_MATCHED, EQUAL_NORM_SELECTED, EQUAL_NORM_CONTROL, CLEAN_TOPK,
    ROUTING_UNION, MINIMAL, RANDOM,
)  # fmt: skip
"""What was patched. `expert`: clean-active experts only (an expert without a row at a layer where its fact has expert
rows is not active and counts as 0). `control_*` rows repeat the rescue of the drawn expert: several `control_random`
rows per fact and draw, also where the selected expert is not active; `control_gate_matched` and `equal_norm_*` only
where it is. `coalition_random`: several rows per fact and draw."""

DISCOVERY, VALIDATION = "discovery", "validation"
SPLITS = (DISCOVERY, VALIDATION)

MAIN, FRESH_DRAW, COALITION_SEARCH = "main", "fresh_draw", "coalition_search"
"""Stages. `main`: the study's own noise level and draws: layer patches of every layer and expert patches (of every
layer, or of the selected one where the joint search is off) on both halves, and all controls and coalitions on
validation. `fresh_draw`: the same noise level, another draw, validation. `coalition_search`: on discovery, the
prefixes of each rule (kind `coalition_minimal`), from which rule and size of the minimal coalition are chosen.
Further stages are `noise_stage(level)`: validation facts at another noise level."""


def noise_stage(level: float) -> str:
    """The stage of a noise level other than the study's own: `noise_1`, `noise_2.5`."""
    return f"noise_{level:g}"


COLUMNS: dict[str, str] = {
    "scan_index": "int64",
    "case_id": "int64",
    "relation": "object",
    "subject": "object",
    "split": "object",
    "draw": "int64",
    "noise": "float64",
    "stage": "object",
    "kind": "object",
    "layer": "int64",
    "pos": "int64",
    "expert": "Int64",
    "experts": "object",
    "clean_active": "boolean",
    "router_weight_clean": "float64",
    "clean_contrast": "float64",
    "corrupt_contrast": "float64",
    "rescue": "float64",
}
"""Column → dtype.

`scan_index`: the fact's place among the kept facts, in the order in which they were scanned, from 0; it identifies
the fact and is the order that splits shuffle. `draw`: number of the noise draw within its stage, from 0. `noise`: noise
level. `layer`, `pos`: where the patch is (the last prompt position throughout the study). `expert`: index, missing for
layer patches and coalitions. `experts`: members of a coalition in rising order, comma-joined ("3,17"; empty for an
empty coalition), missing otherwise. `clean_active`, `router_weight_clean`: of `expert` at (layer, pos), missing for
layer patches and coalitions. `clean_contrast`, `corrupt_contrast`: the fact's, this draw's (logits), so that the drop
is their difference. `rescue` in logits; a missing one (NaN) was not measured and is counted as missing."""


def table(rows: Iterable[Mapping[str, Any]] | pd.DataFrame) -> pd.DataFrame:
    """Rows as a frame with exactly `COLUMNS`, in that order and with those dtypes; absent columns are missing.

    Raises ValueError for a kind, split or column that does not exist.
    """
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    if not set(frame) <= set(COLUMNS):
        raise ValueError(f"columns {sorted(set(frame) - set(COLUMNS))} do not exist: {', '.join(COLUMNS)}")
    frame = frame.reindex(columns=list(COLUMNS))
    for name, allowed in (("kind", KINDS), ("split", SPLITS)):
        unknown = set(frame[name].dropna()) - set(allowed)
        if unknown:
            raise ValueError(f"{name} {sorted(unknown)} does not exist: {', '.join(allowed)}")
    frame = frame.astype(COLUMNS)
    for name, dtype in COLUMNS.items():
        if dtype == "object":
            frame[name] = frame[name].where(frame[name].notna(), None)
    return frame.reset_index(drop=True)


def members(experts: Sequence[int]) -> str:
    """The `experts` column of a coalition."""
    return ",".join(str(int(e)) for e in sorted(experts))

