"""What the study's figures are made of: tooltips, intervals side by side, colours by name, the line at 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from ..formats import NONE, logits
from ..palette import Palette
from ..picture import Picture, Tables, finish

TOLD = ["t_what", "t_value", "t_facts"]
TIPS = [
    alt.Tooltip("t_what:N", title="title"),
    alt.Tooltip("t_value:N", title="value"),
    alt.Tooltip("t_facts:N", title="from"),
]


def told(table: pd.DataFrame, what: pd.Series, more: pd.Series) -> pd.DataFrame:
    """With tooltips: what it is, its mean and interval, of how many facts."""
    low_high = zip(table["mean"], table.ci_low, table.ci_high, strict=True)
    value = [f"{logits(m)} [{logits(low)}, {logits(high)}]" for m, low, high in low_high]
    counts = ["" if pd.isna(n) else f"{n:.0f} facts" for n in table.n]
    missing = table.get("n_missing", pd.Series(0, index=table.index)).fillna(0)
    counts = [f"{c}, {m:.0f} missing" if m else c for c, m in zip(counts, missing, strict=True)]
    return table.assign(t_what=what + " · " + more, t_value=value, t_facts=[c or NONE for c in counts])


def part(label: list[str], series: str, table: pd.DataFrame, name: str, *, n: str | None) -> pd.DataFrame:
    """A wide table's mean and interval columns as rows of one series."""
    counts = table[n].to_numpy(dtype=float) if n else np.nan
    return pd.DataFrame(
        {
            "label": label,
            "series": series,
            "mean": table[name].to_numpy(dtype=float),
            "ci_low": table[f"{name}_low"].to_numpy(dtype=float),
            "ci_high": table[f"{name}_high"].to_numpy(dtype=float),
            "n": counts,
        }
    )


def intervals(
    long: pd.DataFrame,
    order: list[str],
    colors: Mapping[str, str],
    palette: Palette,
    *,
    title: str,
    step: int = 26,
    offset: bool = True,
) -> Picture:
    """Points with intervals, one row per label, one colour per series (beside each other if `offset`). Beside 0
    it is said where a mean is missing."""
    data = Tables()
    long = long.reindex(columns=["label", "series", "mean", "ci_low", "ci_high", "n", "n_missing"])
    long = told(long, long.label, long.series)
    there, missing = long[long["mean"].notna()], long[long["mean"].isna()]
    keep = ["label", "series", "mean", "ci_low", "ci_high", *TOLD]
    y: dict[str, Any] = {
        "y": alt.Y("label:N", sort=order, scale=alt.Scale(domain=order), title=None, axis=names_axis(palette))
    }
    if offset:
        y["yOffset"] = alt.YOffset("series:N", scale=alt.Scale(domain=list(colors), paddingOuter=0.3))
    color = colours("series", dict(colors))
    axis = alt.Axis(tickCount=7, labelOverlap="greedy", labelSeparation=6)
    x = alt.X("mean:Q", title=title, axis=axis)
    layers = [zero_line(data, palette, axis="x")]
    if len(there):
        named = alt.Chart(data(there[keep]))
        low = alt.X("ci_low:Q", title=title, axis=axis)
        layers += [
            named.mark_rule(strokeWidth=2, tooltip=None).encode(x=low, x2="ci_high:Q", color=color, **y),
            named.mark_circle(size=64, opacity=1).encode(x=x, color=color, tooltip=TIPS, **y),
        ]
    if len(missing):
        nothing = alt.Chart(data(missing.assign(mean=0.0)[keep])).mark_text(
            text=f"{NONE} missing", fontSize=11, align="left", dx=7
        )
        layers.append(nothing.encode(x=x, color=color, tooltip=TIPS, **y))
    chart = alt.layer(*layers)
    return finish(chart, data, 2 * len(long), max(step * len(order), 60), palette)


def colours(field: str, colors: dict[str, str], title: str | None = None) -> alt.Color:
    """One colour per name, with a legend above the chart."""
    return alt.Color(
        f"{field}:N",
        scale=alt.Scale(domain=list(colors), range=list(colors.values())),
        legend=alt.Legend(title=title, orient="top", symbolType="circle", symbolOpacity=1),
    )


def names_axis(palette: Palette) -> alt.Axis:
    """The axis of rows that are named."""
    return alt.Axis(ticks=False, domain=False, labelLimit=320, labelPadding=8, labelColor=palette.ink)


def zero_line(data: Tables, palette: Palette, *, axis: str = "y") -> alt.Chart:
    """The line at 0."""
    line = alt.Chart(data(pd.DataFrame({"zero": [0.0]}))).mark_rule(stroke=palette.muted, strokeWidth=1, tooltip=None)
    return line.encode(**{axis: "zero:Q"})
