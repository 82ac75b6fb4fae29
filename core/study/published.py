"""The published numbers beside ours, for the two models of the paper, with a marker for inside or outside.

Source: arXiv 2606.03780, validation facts (128; relaxed: 256). Values only; knows no rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from .summary import expert_id

SOURCE = "Lu, Modarressi, Liu, Schütze, Expert-Aware Causal Tracing of Factual Recall in Sparse MoE Language Models, arXiv 2606.03780 (2026)"  # noqa: E501

INSIDE, OUTSIDE, SAME, OTHER = "inside", "outside", "same", "other"
COLUMNS = [
    "quantity", "ours", "ours_low", "ours_high", "published", "published_low", "published_high", "marker", "ours_name",
    "published_name",
]  # fmt: skip


@dataclass(frozen=True)
class Number:
    """A published mean with its 95 % interval, where one was published (logits, unless the name says otherwise)."""

    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Paper:
    """What was published on a model: the selected layer and expert, and numbers by quantity."""

    layer: int
    expert: int
    numbers: dict[str, Number]


PAPERS = {
    "Qwen3-30B-A3B-Base": Paper(
        44,
        69,
        {
            "layer_rescue": Number(0.901, 0.752, 1.053),
            "expert_rescue": Number(0.463, 0.344, 0.590),
            "specificity": Number(0.400, 0.276, 0.533),
            "equal_norm_selected": Number(0.239, 0.177, 0.302),
            "equal_norm_control": Number(0.051, 0.016, 0.086),
            "layer_rescue L42": Number(0.592),
            "clean-active, share of discovery facts": Number(112 / 128),
            "clean-active, share of validation facts": Number(116 / 128),
            "rank among active, share first": Number(53 / 115),
            "rank among active, mean": Number(2.9),
            "stability grid, share the same": Number(1.0),
            "held-out relations, share the same": Number(1.0),
            **{
                f"drop at noise {level}": Number(v)
                for level, v in zip((1, 2, 3, 4), (1.259, 4.909, 5.697, 6.004), strict=True)
            },
            **{
                f"expert_rescue at noise {level}": Number(v)
                for level, v in zip((1, 2, 3, 4), (0.098, 0.406, 0.459, 0.478), strict=True)
            },
        },
    ),
    "Mixtral-8x7B-v0.1": Paper(
        19,
        6,
        {
            "layer_rescue": Number(0.457, 0.331, 0.579),
            "expert_rescue": Number(0.099, 0.018, 0.175),
            "specificity": Number(-0.175, -0.284, -0.072),
            "clean_topk": Number(0.461, 0.343, 0.572),
            "routing_union": Number(0.490, 0.367, 0.613),
            "clean_topk, positive fraction": Number(0.75),
            "routing_union, positive fraction": Number(0.75),
            "layer_rescue L21": Number(0.496),
            "clean-active, share of discovery facts": Number(91 / 128),
            "clean-active, share of validation facts": Number(83 / 128),
        },
    ),
}
RELAXED = {
    "Qwen3-30B-A3B-Base": Paper(
        44, 69, {"layer_rescue": Number(0.846), "expert_rescue": Number(0.454), "specificity": Number(0.413)}
    ),
    "Mixtral-8x7B-v0.1": Paper(
        19, 6, {"layer_rescue": Number(0.421), "expert_rescue": Number(0.114), "specificity": Number(-0.155)}
    ),
}
"""With the relaxed filter and 512 facts; published without intervals."""


def paper_of(settings: Mapping[str, Any]) -> Paper | None:
    """The published results that a study's settings call for, by the last part of the model's name; None for other
    models. The relaxed ones where the filter is the relaxed one."""
    model = settings.get("model")
    name = str(model.get("name", "") if isinstance(model, Mapping) else model or "")
    last = name.replace("\\", "/").rstrip("/").split("/")[-1].casefold()
    relaxed = settings.get("min_clean_contrast", 1.0) == 0.5 and settings.get("min_drop", 0.5) == 0.25
    found = {key.casefold(): paper for key, paper in (RELAXED if relaxed else PAPERS).items()}
    return found.get(last)


def beside(summary: Mapping[str, Any], curve: pd.DataFrame, noise: pd.DataFrame) -> pd.DataFrame:
    """Ours and the published numbers, one row per quantity: `COLUMNS`. Empty for a model that was not published.

    `marker`: for the layer and the expert (`ours_name`, `published_name`) whether they are the same; for a number with
    a published interval whether our mean lies inside of it; else None. `curve`: columns layer, split, mean, ci_low,
    ci_high; `noise`: that of `robustness.noise_sensitivity`.
    """
    paper = paper_of(summary["settings"])
    if paper is None:
        return pd.DataFrame(columns=COLUMNS)
    layer, expert = f"L{paper.layer:02d}", expert_id(paper.layer, paper.expert)
    own_layer = None if summary["layer"] is None else f"L{summary['layer']:02d}"
    rows = [
        [what, *[None] * 6, SAME if ours == theirs else OTHER, ours, theirs]
        for what, ours, theirs in (("layer", own_layer, layer), ("expert", summary["expert"], expert))
    ]
    for quantity, number in paper.numbers.items():
        mean, low, high = _ours(quantity, summary, curve, noise)
        marker = None
        if number.low is not None and number.high is not None and mean is not None:
            marker = INSIDE if number.low <= mean <= number.high else OUTSIDE
        rows.append([quantity, mean, low, high, number.mean, number.low, number.high, marker, None, None])
    return pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(COLUMNS[1:7], float))


def _ours(
    quantity: str, summary: Mapping[str, Any], curve: pd.DataFrame, noise: pd.DataFrame
) -> tuple[float | None, float | None, float | None]:
    """Our (mean, ci_low, ci_high) of a published quantity."""
    for part in (summary, summary["beside"]):
        if quantity in part:
            return part[quantity]["mean"], part[quantity]["ci_low"], part[quantity]["ci_high"]
    name, _, rest = quantity.partition(", ")
    if rest == "positive fraction":
        return summary[name]["positive_fraction"], None, None
    if name.startswith("layer_rescue L"):
        return _of_table(
            curve, (curve.layer == int(name.removeprefix("layer_rescue L"))) & (curve.split == "validation")
        )
    if " at noise " in name and not noise.empty:
        what, _, level = name.partition(" at noise ")
        return _of_table(noise, (noise.quantity == what) & (noise.noise == float(level)))
    shares = {
        "clean-active, share of discovery facts": ((summary["activity"] or {}).get("discovery"), "active"),
        "clean-active, share of validation facts": ((summary["activity"] or {}).get("validation"), "active"),
        "rank among active, share first": (summary["rank"], "first"),
        "stability grid, share the same": (summary["stability"], "same"),
        "held-out relations, share the same": (summary["held_out"], "same"),
    }
    if quantity == "rank among active, mean":
        return summary["rank"]["mean"], None, None
    counts, part = shares.get(quantity, (None, ""))
    return (counts[part] / counts["of"] if counts and counts["of"] else None), None, None


def _of_table(table: pd.DataFrame, which: pd.Series) -> tuple[float | None, float | None, float | None]:
    found = table[which]
    if found.empty or found["mean"].isna().all():
        return None, None, None
    line = found.iloc[0]
    return tuple(float(line[name]) if pd.notna(line[name]) else None for name in ("mean", "ci_low", "ci_high"))
