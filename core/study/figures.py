"""The figures of a study: its tables drawn with Altair, in the look of all charts. No Streamlit, no model, no files.

Every figure shows intervals where there are some, has a line at 0 where effects are compared, and names in its tooltip
what a mark is and of how many facts it speaks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import altair as alt
import numpy as np
import pandas as pd

from ..formats import logits, percent, restoration, typed
from ..marks import PERCENT
from ..palette import LIGHT, Palette
from ..picture import Picture, Tables, finish, limit, unchecked
from .analysis import Analysis
from .coalitions import RULE_NAMES
from .drawing import TIPS, TOLD, colours, intervals, names_axis, part, told, zero_line
from .published import INSIDE, OUTSIDE
from .words import EXPERT_ROWS

RELATION_ROWS = 30

TITLES = {
    "layer_curves": "Rescue of the layer patch, all layers, both halves",
    "experts": "Experts of the selected layer on validation",
    "controls": "The selected expert and its controls",
    "coalitions": "Coalitions",
    "coalition_search": "How many experts are needed (discovery)",
    "joint_search": "All experts of all layers: recurrence against rescue (discovery)",
    "stability": "Stability: which expert other splits and thresholds select",
    "relations": "Per relation, validation",
    "noise": "Noise sensitivity, layer and expert fixed",
    "fresh_draw": "The filter's draw against a fresh one",
    "published": "Published numbers beside ours",
}
"""Name → title of every figure, in the order of the report."""


def figures(analysis: Analysis, tables: Mapping[str, pd.DataFrame], *, palette: Palette = LIGHT) -> dict[str, Picture]:
    """The figures that there is something to draw for, by name, in the order of `TITLES`."""
    found = {name: figure(name, analysis, tables, palette=palette) for name in TITLES}
    return {name: picture for name, picture in found.items() if picture is not None}


def figure(
    name: str, analysis: Analysis, tables: Mapping[str, pd.DataFrame], *, palette: Palette = LIGHT
) -> Picture | None:
    """The figure of that name (see `TITLES`), or None where there is nothing to draw."""
    more = {
        "coalition_search": {"share": analysis.options.coalition_share},
        "joint_search": {"recurrence": analysis.options.recurrence},
    }
    table = tables[table_of(name)]
    # of an unfinished study, a table may be there without any number in it
    if table.empty or ("mean" in table and table["mean"].isna().all()):
        return None
    return _DRAWN[name][1](table, **more.get(name, {}), palette=palette)


def table_of(name: str) -> str:
    """The name of the table that a figure draws."""
    return _DRAWN[name][0]


@unchecked
def layer_curves(table: pd.DataFrame, *, palette: Palette = LIGHT) -> Picture:
    """Mean rescue by layer with bootstrap bands, discovery and validation; the selected layer is marked. Selection
    `layer` with the field layer."""
    data = Tables()
    long = told(table, "layer " + table.layer.astype(str), table.split)
    named = data(long[["layer", "split", "mean", "ci_low", "ci_high", *TOLD]])
    ends = [float(table.layer.min()) - 0.3, float(table.layer.max()) + 0.3]
    x = alt.X(
        "layer:Q", title="layer", scale=alt.Scale(domain=ends, nice=False), axis=alt.Axis(tickMinStep=1, format="d")
    )
    color = colours("split", {"discovery": palette.kept, "validation": palette.high})
    band = alt.Chart(named).mark_area(opacity=0.18, tooltip=None)
    line = alt.Chart(named).mark_line(strokeWidth=2, tooltip=None)
    dots = alt.Chart(named).mark_circle(size=52, opacity=1, cursor="pointer")
    chosen = alt.selection_point(name="layer", fields=["layer"], on="click", clear=False, toggle=False, empty=False)
    mark = alt.Chart(data(table[table.selected][["layer"]].drop_duplicates()))
    chart = alt.layer(
        zero_line(data, palette),
        mark.mark_rule(stroke=palette.expert, strokeDash=[4, 3], strokeWidth=1.5, tooltip=None).encode(x=x),
        band.encode(x=x, y=alt.Y("ci_low:Q", title="rescue (logits)"), y2="ci_high:Q", color=color),
        line.encode(x=x, y="mean:Q", color=color),
        dots.encode(x=x, y="mean:Q", color=color, tooltip=TIPS).add_params(chosen),
    )
    return finish(chart, data, len(table) * 3, 300, palette)


def experts(table: pd.DataFrame, *, palette: Palette = LIGHT) -> Picture:
    """All-case rescue and specificity of each expert on validation beside its discovery mean: candidates first, each
    group best of discovery first."""
    top = table.sort_values("candidate", ascending=False, kind="stable").head(EXPERT_ROWS)
    label = [
        f"{name} · {percent(r)}" + (" · selected" if s else "" if c else " (too rare)")
        for name, r, c, s in zip(top.name, top.recurrence, top.candidate, top.selected, strict=True)
    ]
    parts = [
        pd.DataFrame({"label": label, "series": "rescue, discovery", "mean": top.mean_all, "n": np.nan}),
        part(label, "rescue, validation", top, "v_mean_all", n=None),
        part(label, "specificity, validation", top, "v_specificity", n="v_specificity_n"),
    ]
    colors = {
        "rescue, discovery": palette.kept,
        "rescue, validation": palette.high,
        "specificity, validation": palette.joined,
    }
    return intervals(pd.concat(parts, ignore_index=True), label, colors, palette, title="logits", step=34)


def controls(table: pd.DataFrame, *, palette: Palette = LIGHT) -> Picture:
    """The selected expert's rescue, its controls', and the differences that specificity is made of."""
    kinds = {"selected expert": palette.expert, "control": palette.kept, "difference": palette.joined}
    series = [
        "difference" if "specificity" in q else "control" if "control" in q else "selected expert"
        for q in table.quantity
    ]
    long = table.assign(label=table.meaning, series=series)
    return intervals(long, list(table.meaning), kinds, palette, title="logits", offset=False)


@unchecked
def coalitions(table: pd.DataFrame, *, palette: Palette = LIGHT) -> Picture:
    """Bars of mean rescue with intervals: layer patch, routing union, clean top-k, minimal, random, single expert."""
    data = Tables()
    shown = table.dropna(subset=["mean"])
    more = [
        f"{percent(share)} of the layer patch, restoration {restoration(ratio)}"
        for share, ratio in zip(shown.share_of_layer_patch, shown.restoration, strict=True)
    ]
    long = told(shown, shown.meaning, pd.Series(more, index=shown.index))
    named = data(long[["meaning", "quantity", "mean", "ci_low", "ci_high", *TOLD]])
    y = alt.Y("meaning:N", sort=list(table.meaning), title=None, axis=names_axis(palette))
    x = alt.X("mean:Q", title="rescue (logits)")
    colors = {
        "layer_rescue": palette.kept,
        "minimal_coalition": palette.high,
        "expert_rescue": palette.expert,
    }
    domain = list(table.quantity)
    color = alt.Color(
        "quantity:N",
        scale=alt.Scale(domain=domain, range=[colors.get(name, palette.missing) for name in domain]),
        legend=None,
    )
    chart = alt.layer(
        alt.Chart(named).mark_bar(height=18).encode(x=x, y=y, color=color, tooltip=TIPS),
        alt.Chart(named)
        .mark_rule(stroke=palette.ink, strokeWidth=1.5, tooltip=None)
        .encode(x="ci_low:Q", x2="ci_high:Q", y=y),
        zero_line(data, palette, axis="x"),
    )
    return finish(chart, data, len(table), 30 * len(table), palette)


@unchecked
def coalition_search(table: pd.DataFrame, *, share: float, palette: Palette = LIGHT) -> Picture:
    """Share of the layer patch against the number of experts, for each rule; the line is the wanted share."""
    data = Tables()
    shown = table.dropna(subset=["share"])
    shown_rows = shown.assign(
        series=shown.rule.map(RULE_NAMES),
        t_what=[f"{size} by {RULE_NAMES[rule]}" for size, rule in zip(shown["size"], shown.rule, strict=True)],
        t_value=[f"{percent(s)} of the layer patch" for s in shown.share],
        t_facts=[f"{n:.0f} facts" for n in shown.n],
    )
    named = data(shown_rows[["size", "share", "series", *TOLD]])
    x = alt.X("size:O", title="experts in the coalition", axis=alt.Axis(labelAngle=0))
    y = alt.Y("share:Q", title="share of the layer patch", axis=alt.Axis(labelExpr=PERCENT))
    color = colours("series", dict(zip(RULE_NAMES.values(), (palette.high, palette.low), strict=True)), "experts by")
    wanted = alt.Chart(data(pd.DataFrame({"share": [share]})))
    chart = alt.layer(
        wanted.mark_rule(stroke=palette.expert, strokeDash=[4, 3], strokeWidth=1.5, tooltip=None).encode(y=y),
        alt.Chart(named).mark_line(strokeWidth=2, tooltip=None).encode(x=x, y=y, color=color),
        alt.Chart(named).mark_circle(size=60, opacity=1).encode(x=x, y=y, color=color, tooltip=TIPS),
    )
    return finish(chart, data, len(table), 240, palette)


@unchecked
def joint_search(table: pd.DataFrame, *, recurrence: float, palette: Palette = LIGHT) -> Picture:
    """Every pair of the joint search: recurrence against all-case rescue on discovery, coloured by layer. The dashed
    line is the recurrence that a candidate needs; a ring marks the winner, a square the two-stage selection. Selection
    `expert` with fields layer and expert."""
    data = Tables()
    shown_rows = table.assign(
        t_what=table.name,
        t_value=[
            f"discovery {logits(d)}, validation {logits(v)}"
            for d, v in zip(table.mean_all, table.mean_validation, strict=True)
        ],
        t_facts=[
            f"clean-active in {n} discovery facts ({percent(r)})"
            for n, r in zip(table.n_active, table.recurrence, strict=True)
        ],
    )
    named = data(shown_rows[["layer", "expert", "recurrence", "mean_all", *TOLD]])
    axis = alt.Axis(labelExpr=PERCENT, labelOverlap="greedy", labelSeparation=6)
    x = alt.X("recurrence:Q", title="recurrence on discovery", axis=axis)
    y = alt.Y("mean_all:Q", title="rescue, all facts (logits)")
    color = alt.Color(
        "layer:Q",
        scale=alt.Scale(range=[palette.low, palette.joined, palette.high], interpolate="rgb"),
        legend=alt.Legend(
            orient="top", direction="horizontal", gradientLength=170, gradientThickness=9, format="d", tickMinStep=1
        ),
    )
    chosen = alt.selection_point(
        name="expert", fields=["layer", "expert"], on="click", clear=False, toggle=False, empty=False
    )
    needed = alt.Chart(data(pd.DataFrame({"recurrence": [recurrence]})))
    marks = []
    for column, shape, size in (("winner", "circle", 260), ("two_stage", "square", 420)):
        if table[column].any():
            found = alt.Chart(data(table.loc[table[column], ["recurrence", "mean_all", "name"]]))
            ring = {"shape": shape, "size": size, "stroke": palette.expert, "strokeWidth": 2, "fill": None}
            inside = table.loc[table[column], "recurrence"].iloc[0] > 0.7 * table.recurrence.max()
            label = {"align": "right" if inside else "left", "dx": -14 if inside else 14, "dy": -10}
            label |= {"color": palette.expert, "fontSize": 12}
            marks += [
                found.mark_point(**ring, tooltip=None).encode(x=x, y=y),
                found.mark_text(**label, tooltip=None).encode(x=x, y=y, text="name:N"),
            ]
    chart = alt.layer(
        zero_line(data, palette),
        needed.mark_rule(stroke=palette.muted, strokeDash=[4, 3], tooltip=None).encode(x=x),
        alt.Chart(named)
        .mark_circle(size=46, opacity=0.85, cursor="pointer")
        .encode(x=x, y=y, color=color, tooltip=TIPS)
        .add_params(chosen),
        *marks,
    )
    return finish(chart, data, len(table), 340, palette)


@unchecked
def stability(table: pd.DataFrame, *, palette: Palette = LIGHT) -> Picture:
    """Heat map split seed × recurrence: the expert selected there, its validation rescue as colour, framed where it is
    the main selection's; grey: no expert recurs often enough."""
    data = Tables()
    shown_rows = table.assign(
        value=table.expert_rescue.fillna(0.0),
        defined=table.expert_rescue.notna(),
        threshold=[f"{100 * r:g} %" for r in table.recurrence],
        t_what=[
            f"split seed {s}, recurrence {100 * r:g} %" for s, r in zip(table.split_seed, table.recurrence, strict=True)
        ],
        t_value=[
            f"{name}: rescue {logits(rescue)}, specificity {logits(spec)}"
            for name, rescue, spec in zip(table.name, table.expert_rescue, table.specificity, strict=True)
        ],
        t_facts=[
            f"active in {a} of {n}, needed {m}" for a, n, m in zip(table.n_active, table.n, table.needed, strict=True)
        ],
    )
    columns = ["split_seed", "threshold", "value", "defined", "name", "same", *TOLD]
    base = alt.Chart(data(shown_rows[columns]))
    x = alt.X(
        "threshold:N",
        sort=None,
        title="recurrence threshold",
        scale=alt.Scale(paddingInner=0.03),
        axis=alt.Axis(labelAngle=0, ticks=False, domain=False),
    )
    y = alt.Y(
        "split_seed:O", title="split seed", scale=alt.Scale(paddingInner=0.06), axis=alt.Axis(ticks=False, domain=False)
    )
    end = limit(shown_rows.value)
    scale = alt.Color(
        "value:Q",
        scale=alt.Scale(
            domain=[-end, 0, end], range=[palette.low, palette.mid, palette.high], clamp=True, interpolate="rgb"
        ),
        legend=alt.Legend(
            title="rescue on the other half (logits)",
            orient="top",
            direction="horizontal",
            gradientLength=170,
            gradientThickness=9,
            values=[-end, 0, end],
            titleLimit=300,
        ),
    )
    cell = {"x": x, "y": y}
    rect = base.mark_rect().encode(
        **cell, tooltip=TIPS, color=alt.when("datum.defined").then(scale).otherwise(alt.value(palette.missing))
    )
    same = base.mark_rect(fillOpacity=0, stroke=palette.expert, strokeWidth=2.5, tooltip=None, strokeJoin="round")
    strong = f"datum.defined && abs(datum.value) > {0.6 * end}"
    text = base.mark_text(fontSize=11, tooltip=None).encode(
        **cell,
        text="name:N",
        color=alt.when(strong).then(alt.value(palette.background)).otherwise(alt.value(palette.ink)),
    )
    chart = alt.layer(rect, same.encode(**cell).transform_filter("datum.same && datum.defined"), text)
    return finish(chart, data, len(table), 30 * table.split_seed.nunique() + 10, palette)


def relations(table: pd.DataFrame, *, palette: Palette = LIGHT) -> Picture:
    """Layer and expert rescue of the relations with most facts, on validation."""
    top = table.head(RELATION_ROWS)
    label = [f"{r or '(no relation)'} · n {n}" for r, n in zip(top.relation, top.n, strict=True)]
    parts = [
        part(label, "layer patch", top, "layer_rescue", n="layer_rescue_n"),
        part(label, "selected expert", top, "expert_rescue", n="expert_rescue_n"),
    ]
    colors = {"layer patch": palette.high, "selected expert": palette.expert}
    return intervals(pd.concat(parts, ignore_index=True), label, colors, palette, title="rescue (logits)", step=24)


@unchecked
def noise(table: pd.DataFrame, *, palette: Palette = LIGHT) -> Picture:
    """Rescue of layer patch and selected expert against the noise level, with bands; the drop in the tooltip."""
    data = Tables()
    names = {"layer_rescue": "layer patch", "expert_rescue": "selected expert"}
    drop = table[table.quantity == "drop"].set_index("noise")["mean"]
    shown = table[table.quantity.isin(list(names)) & table["mean"].notna()]
    shown_rows = told(
        shown,
        "noise level " + shown.noise.map(typed) + ", drop " + shown.noise.map(lambda v: logits(drop[v])),
        shown.quantity.map(names),
    ).assign(series=shown.quantity.map(names))
    named = data(shown_rows[["noise", "series", "mean", "ci_low", "ci_high", *TOLD]])
    levels = sorted(float(v) for v in shown.noise.unique())
    x = alt.X(
        "noise:Q",
        title="noise level (× embedding std)",
        scale=alt.Scale(nice=False, zero=False, padding=12),
        axis=alt.Axis(values=levels),
    )
    color = colours("series", {"layer patch": palette.high, "selected expert": palette.expert})
    base = alt.Chart(named)
    chart = alt.layer(
        zero_line(data, palette),
        base.mark_area(opacity=0.18, tooltip=None).encode(
            x=x, y=alt.Y("ci_low:Q", title="rescue (logits)"), y2="ci_high:Q", color=color
        ),
        base.mark_line(strokeWidth=2, tooltip=None).encode(x=x, y="mean:Q", color=color),
        base.mark_circle(size=60, opacity=1).encode(x=x, y="mean:Q", color=color, tooltip=TIPS),
    )
    return finish(chart, data, len(shown) * 3, 240, palette)


def fresh_draw(table: pd.DataFrame, *, palette: Palette = LIGHT) -> Picture:
    """Each estimate on the noise draw that the filter looked at and on a fresh one."""
    shown = table[table.quantity != "drop"]
    label = list(dict.fromkeys(shown.quantity.str.replace("_", " ")))
    series = shown.draw.map({"same": "the filter's draw", "fresh": "fresh draw"})
    long = shown.assign(label=shown.quantity.str.replace("_", " "), series=series)
    colors = {"the filter's draw": palette.kept, "fresh draw": palette.high}
    return intervals(long, label, colors, palette, title="logits", step=28)


def published(table: pd.DataFrame, *, palette: Palette = LIGHT) -> Picture | None:
    """Ours and the published means with their intervals, for numbers in logits; None where there are none."""
    rows = table[~table.quantity.isin(["layer", "expert"])]
    rows = rows[~rows.quantity.str.contains(",") & ~rows.quantity.str.startswith("drop")]
    if rows.empty:
        return None
    sign = {INSIDE: " · inside", OUTSIDE: " · outside"}
    label = [q.replace("_", " ") + sign.get(m, "") for q, m in zip(rows.quantity, rows.marker, strict=True)]
    parts = [
        pd.DataFrame(
            {
                "label": label,
                "series": who,
                "mean": rows[who].to_numpy(dtype=float),
                "n": np.nan,
                "ci_low": rows[f"{who}_low"].to_numpy(dtype=float),
                "ci_high": rows[f"{who}_high"].to_numpy(dtype=float),
            }
        )
        for who in ("ours", "published")
    ]
    colors = {"ours": palette.high, "published": palette.kept}
    return intervals(pd.concat(parts, ignore_index=True), label, colors, palette, title="logits", step=28)


_DRAWN: dict[str, tuple[str, Callable[..., Picture | None]]] = {
    "layer_curves": ("layers", layer_curves),
    "experts": ("experts", experts),
    "controls": ("controls", controls),
    "coalitions": ("coalitions", coalitions),
    "coalition_search": ("coalition_search", coalition_search),
    "joint_search": ("joint_search", joint_search),
    "stability": ("stability", stability),
    "relations": ("relations", relations),
    "noise": ("noise", noise),
    "fresh_draw": ("fresh_draw", fresh_draw),
    "published": ("published", published),
}
"""Figure → its table and who draws it, in the order of `TITLES`."""
