"""What the study's figures are made of: tooltips, intervals side by side, colours by name, the line at 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from ..formats import NONE, logits
from ..palette import Palette
from ..picture import Open, Picture, Tables, design, finish, named

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
    long = long.reindex(columns=["label", "series", "mean", "ci_low", "ci_high", "n", "n_missing"])
    long = told(long, long.label, long.series)
    there, missing = long[long["mean"].notna()], long[long["mean"].isna()]
    keep = ["label", "series", "mean", "ci_low", "ci_high", *TOLD]
    rows = {"there": there[keep], "missing": missing.assign(mean=0.0)[keep]}
    tables = {"zero": ZERO, **{name: table for name, table in rows.items() if len(table)}}
    chart = _intervals(tuple(colors.items()), title, offset, palette)
    return finish(chart, tables, 2 * len(long), max(step * len(order), 60), palette, labels=order)


@design
def _intervals(colors: tuple[tuple[str, str], ...], title: str, offset: bool, palette: Palette) -> alt.LayerChart:
    """Open: `labels`, in their order."""
    labels = Open("labels")
    y: dict[str, Any] = {
        "y": alt.Y("label:N", sort=labels, scale=alt.Scale(domain=labels), title=None, axis=names_axis(palette))
    }
    if offset:
        series = [name for name, _ in colors]
        y["yOffset"] = alt.YOffset("series:N", scale=alt.Scale(domain=series, paddingOuter=0.3))
    color = colours("series", dict(colors))
    axis = alt.Axis(tickCount=7, labelOverlap="greedy", labelSeparation=6)
    x, low = (alt.X(name, title=title, axis=axis) for name in ("mean:Q", "ci_low:Q"))
    there, missing = named("there"), named("missing")
    nothing = missing.mark_text(text=f"{NONE} missing", fontSize=11, align="left", dx=7)
    return alt.layer(
        zero_rule("zero", palette, axis="x"),
        there.mark_rule(strokeWidth=2, tooltip=None).encode(x=low, x2="ci_high:Q", color=color, **y),
        there.mark_circle(size=64, opacity=1).encode(x=x, color=color, tooltip=TIPS, **y),
        nothing.encode(x=x, color=color, tooltip=TIPS, **y),
    )


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


ZERO = pd.DataFrame({"zero": [0.0]})


def zero_line(data: Tables, palette: Palette, *, axis: str = "y") -> alt.Chart:
    """The line at 0."""
    return zero_rule(data(ZERO).name, palette, axis=axis)


def zero_rule(data: str, palette: Palette, *, axis: str = "y") -> alt.Chart:
    """The same, of the table `ZERO` by this name."""
    return named(data).mark_rule(stroke=palette.muted, strokeWidth=1, tooltip=None).encode(**{axis: "zero:Q"})
