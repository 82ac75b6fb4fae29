"""The pictures of the Routing page: tables of `core.routing_sets` and `core.routing_kinds` drawn with Altair.

No Streamlit, no model. Maps are layer × expert with the first layer at the bottom, as the Trace page's; every mark says
in its tooltip what it is and of how many tokens it speaks. Selections are by integer layer and expert.
"""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from .formats import NONE, bits, bits_change, count, entropy, lift, mean_count, p_value, percent, points
from .marks import (
    BARE,
    PERCENT,
    dense_rows,
    diverging,
    ends,
    gap,
    layer_axis,
    numbers_axis,
    outline,
    row_height,
    rows_of,
    selection,
    shade,
    tooltip,
)
from .palette import LIGHT, Palette
from .picture import Open, Picture, Tables, design, finish, named, unchecked
from .results import expert_name

MOST_PARTS = 24
"""Experts in the bars of a divergence; the table has all."""
MOST_RELATIONS = 40


def expert_map(
    table: pd.DataFrame,
    *,
    n_layers: int,
    n_experts: int,
    title: str,
    tips: list[str],
    signed: bool = False,
    as_percent: bool = True,
    layer: int | None = None,
    expert: int | None = None,
    palette: Palette = LIGHT,
) -> Picture:
    """Layer × expert heat map of the column `value`; selection `expert` with fields layer and expert, the given one
    preset and its layer framed. `signed`: coloured around 0, else from 0 upwards. `tips`: columns t_… of the tooltip.
    """
    table = table.assign(column=table.expert.astype(str))
    table["value"], table["defined"] = shade(table.value)
    tables = {"experts": table[["layer", "expert", "column", "value", "defined", *tips]]}
    if dense := sorted(set(range(n_layers)) - set(table.layer)):
        tables["dense_layers"] = pd.DataFrame({"layer": dense})
    if layer is not None:
        tables["frame"] = pd.DataFrame({"layer": [layer]})
    chart = _experts(n_layers, n_experts, title, tuple(tips), signed, as_percent, palette)
    scale = ends(table.value) if signed else _from_zero(table.value)
    picture = rows_of(chart, tables, len(table), n_layers, palette, ends=scale)
    return picture.marked({"layer": layer, "expert": expert} if expert is not None and layer is not None else None)


@design
def _experts(
    n_layers: int, n_experts: int, title: str, tips: tuple[str, ...], signed: bool, as_percent: bool, palette: Palette
) -> alt.LayerChart:
    """Open: `ends`."""
    x, y = _expert_axis(n_experts), layer_axis(n_layers)
    color = diverging(title, palette, palette.missing) if signed else _upwards(title, palette, as_percent)
    chosen = selection("expert", {"layer": None, "expert": None}, False)
    base = named("experts")
    heat = base.mark_rect(cursor="pointer").encode(x=x, y=y, color=color, tooltip=tooltip(tips))
    _, lines = dense_rows(palette)
    return alt.layer(
        heat.add_params(chosen),
        lines.encode(y=y),
        outline(named("frame"), palette.mark, 1.6).encode(y=y),
        outline(base, palette.expert).encode(x=x, y=y).transform_filter(chosen),
    )


def frequency_tips(table: pd.DataFrame) -> pd.DataFrame:
    """Tooltips of frequencies: columns count, tokens, frequency of the shown run, `clean` and `corrupt` frequencies."""
    return pd.DataFrame({
        "t_expert": table["name"],
        "t_frequency_(clean)": _shares(table.clean, table.clean_tokens),
        "t_frequency_(corrupt)": _shares(table.corrupt, table.corrupt_tokens),
        "t_change": [points(v) for v in table.change],
    }, index=table.index)  # fmt: skip


def _shares(values: pd.Series, tokens: pd.Series) -> list[str]:
    return [
        f"{percent(value)} of {count(n)} tokens" if np.isfinite(value) else NONE
        for value, n in zip(values, tokens, strict=True)
    ]


def frequency_bars(
    table: pd.DataFrame, *, layer: int, n_experts: int, expert: int | None = None, palette: Palette = LIGHT
) -> Picture:
    """One layer's experts: frequency in the clean and (where there are some) in the corrupt runs, side by side.

    `table`: one row per expert, as `frequency_tips` takes it. Selection `expert` with fields layer and expert. The
    dashed line is where all experts would be, were the load even.
    """
    table = pd.concat([table, frequency_tips(table)], axis=1)
    tips = tuple(name for name in table if name.startswith("t_"))
    runs = tuple(run for run in ("clean", "corrupt") if table[run].notna().any())
    parts = [table.assign(run=run, value=table[run]) for run in runs]
    long = pd.concat(parts, ignore_index=True).assign(column=lambda rows: rows.expert.astype(str), layer=layer)
    tables = {
        "bars": long[["layer", "expert", "column", "run", "value", *tips]],
        "even": pd.DataFrame({"even": [float(table[runs[0]].sum()) / n_experts]}),
    }
    chart = _frequencies(n_experts, runs, tips, palette)
    picture = finish(chart, tables, len(long), 220, palette, others=0.45 if expert is not None else 1.0)
    return picture.marked({"layer": layer, "expert": expert} if expert is not None else None)


@design
def _frequencies(n_experts: int, runs: tuple[str, ...], tips: tuple[str, ...], palette: Palette) -> alt.LayerChart:
    """Open: `others`, the opacity of the experts that are not chosen."""
    colors = {"clean": palette.high, "corrupt": palette.low}
    x = _expert_axis(n_experts)
    y = alt.Y("value:Q", title="frequency", axis=alt.Axis(labelExpr=PERCENT, tickCount=5))
    color = alt.Color(
        "run:N", scale=alt.Scale(domain=runs, range=[colors[run] for run in runs]),
        legend=alt.Legend(title="run", orient="top", symbolType="square"),
    )  # fmt: skip
    chosen = selection("expert", {"layer": None, "expert": None}, False)
    bars = named("bars").mark_bar(cursor="pointer").encode(
        x=x, y=y, color=color, tooltip=tooltip(tips), xOffset=alt.XOffset("run:N", scale=alt.Scale(domain=runs)),
        opacity=alt.condition(chosen, alt.value(1.0), alt.value(Open("others"))),
    ).add_params(chosen)  # fmt: skip
    rule = named("even").mark_rule(stroke=palette.muted, strokeDash=[4, 3], tooltip=None).encode(y="even:Q")
    return alt.layer(bars, rule)


@unchecked
def load_lines(table: pd.DataFrame, *, layer: int | None = None, palette: Palette = LIGHT) -> Picture:
    """Load entropy of every layer, one line per run. Selection `layer`. `table`: rows of `load_table` of one position
    class."""
    tables = Tables()
    shown = table.assign(
        t_layer=[f"layer {n}" for n in table.layer],
        t_run=table.run,
        t_load_entropy=[entropy(v) for v in table.load_entropy],
        t_unused_experts=[f"{n}: {names}" if n else "none" for n, names in zip(table.unused, table.unused_names,
                                                                             strict=True)],
        t_busiest=[f"{n}, {percent(f)} of the tokens" for n, f in zip(table.busiest, table.busiest_frequency,
                                                                     strict=True)],
        t_tokens=[count(n) for n in table.tokens],
    )  # fmt: skip
    tips = [name for name in shown if name.startswith("t_")]
    runs = {"clean": palette.high, "corrupt": palette.low}
    there = [run for run in runs if (table.run == run).any()]
    named = tables(shown[["layer", "run", "load_entropy", *tips]])
    x = alt.X("layer:O", title="layer", axis=numbers_axis())
    low, high = table.load_entropy.min(), table.load_entropy.max()
    room = max(0.02, 0.1 * (high - low))  # also where all layers have the same
    y = alt.Y(
        "load_entropy:Q", title="load entropy",
        scale=alt.Scale(domain=[max(0.0, low - room), min(1.0, high + room)], nice=True),
    )  # fmt: skip
    color = alt.Color(
        "run:N", scale=alt.Scale(domain=there, range=[runs[run] for run in there]),
        legend=alt.Legend(title="run", orient="top", symbolType="circle"),
    )  # fmt: skip
    chosen = selection("layer", {"layer": layer}, layer is not None)
    marks = [
        alt.Chart(named).mark_line(strokeWidth=2, tooltip=None).encode(x=x, y=y, color=color),
        alt.Chart(named).mark_circle(size=70, opacity=1, cursor="pointer")
        .encode(x=x, y=y, color=color, tooltip=tooltip(tips)).add_params(chosen),
    ]  # fmt: skip
    if layer is not None and layer in set(table.layer):
        here = alt.Chart(tables(pd.DataFrame({"layer": [layer]})))
        marks.insert(0, here.mark_rule(stroke=palette.mark, strokeDash=[2, 3], tooltip=None).encode(x=x))
    return finish(alt.layer(*marks), tables, 2 * len(table), 220, palette)


@unchecked
def relation_map(
    table: pd.DataFrame, *, layer: int, n_experts: int, expert: int | None = None, palette: Palette = LIGHT
) -> Picture:
    """Relation × expert of one layer, coloured by frequency; selection `expert` with fields layer and expert. The
    relations with most facts, at most `MOST_RELATIONS`."""
    tables = Tables()
    sizes = table.groupby("relation").facts.first().sort_values(ascending=False, kind="stable")
    order = sorted(sizes.index[:MOST_RELATIONS])
    labels = {name: f"{str(name).replace('_', ' ')} · n {sizes[name]}" for name in order}
    shown = table[table.relation.isin(order)]
    shown = shown.assign(
        column=shown.expert.astype(str),
        label=shown.relation.map(labels),
        value=shown.frequency,
        t_expert=shown["name"],
        t_relation=shown.relation.astype(str).str.replace("_", " "),
        t_frequency=_shares(shown.frequency, shown.tokens),
        t_facts=shown.facts.astype(str),
    )
    tips = [name for name in shown if name.startswith("t_")]
    base = alt.Chart(tables(shown[["layer", "expert", "column", "label", "value", *tips]]))
    x = _expert_axis(n_experts)
    y = alt.Y(
        "label:N", sort=None, title=None,
        scale=alt.Scale(domain=[labels[name] for name in order], paddingInner=gap(len(order))),
        axis=alt.Axis(ticks=False, domain=False, labelLimit=240, labelPadding=6),
    )  # fmt: skip
    chosen = selection("expert", {"layer": layer, "expert": expert}, expert is not None)
    heat = base.mark_rect(cursor="pointer").encode(
        x=x, y=y, color=_upwards("frequency", palette, True), tooltip=tooltip(tips)
    )
    layers: list[alt.Chart] = [heat.add_params(chosen)]
    if expert is not None:
        column = alt.Chart(tables(pd.DataFrame({"column": [str(expert)]})))
        layers.append(outline(column, palette.expert, 1.6).encode(x=x))
    step = max(18, row_height(len(order)))
    scale = _from_zero(shown.value)
    return rows_of(alt.layer(*layers), tables, len(shown), len(order), palette, step=step, ends=scale)


@unchecked
def pair_map(
    table: pd.DataFrame, *, layer: int, n_experts: int, expert: int | None = None, palette: Palette = LIGHT
) -> Picture:
    """Expert × expert of one layer: how often two serve the same token, as log₂ of observed ÷ reference. Selection
    `pair` with fields expert and other. `table`: `co_activation_table` with `lift` ÷ `reference`. Pairs that were never
    seen together, though expected at least once, are at the lower end of the scale; expected less than once: blank."""
    tables = Tables()
    with np.errstate(divide="ignore"):
        value = np.log2(table.lift / table.reference)
    value = value.clip(-LIFT_END, LIFT_END).where(table.expected * table.reference >= 1)
    rows = table.assign(value=value)
    mirrored = rows.rename(columns={"expert": "other", "other": "expert"})
    both = pd.concat([rows, mirrored], ignore_index=True)
    both["column"], both["row"] = both.expert.astype(str), both.other.astype(str)
    both["value"], both["defined"] = shade(both.value)
    both = both.assign(
        t_pair=both["name"] + " and " + both.other_name,
        t_together=[f"{count(n)} of {count(t)} tokens" for n, t in zip(both.together, both.tokens, strict=True)],
        t_expected=[mean_count(v) for v in both.expected],
        t_lift=[lift(v) for v in both.lift],
        t_lift_of_random_choices=[lift(v) for v in both.reference],
    )
    tips = [name for name in both if name.startswith("t_")]
    base = alt.Chart(tables(both[["expert", "other", "column", "row", "value", "defined", *tips]]))
    x = _expert_axis(n_experts)
    names = [str(e) for e in range(n_experts)]
    every = next(step for step in (1, 2, 4, 8, 16, 32, 64, 128) if n_experts / step <= 24)
    y = alt.Y(
        "row:N", sort=None, title="expert", scale=alt.Scale(domain=names[::-1], paddingInner=gap(n_experts)),
        axis=alt.Axis(values=names[::every], ticks=False, domain=False, labelPadding=6),
    )  # fmt: skip
    chosen = selection("pair", {"expert": None, "other": None}, False)
    color = diverging("log₂(lift ÷ lift of random choices)", palette, palette.blank)
    heat = base.mark_rect(cursor="pointer").encode(x=x, y=y, color=color, tooltip=tooltip(tips)).add_params(chosen)
    layers = [heat]
    if expert is not None:
        column = alt.Chart(tables(pd.DataFrame({"column": [str(expert)]})))
        layers.append(outline(column, palette.expert, 1.6).encode(x=x))
    size = max(5, min(22, 560 // n_experts))
    scale = ends(both.value, LIFT_END)
    return rows_of(alt.layer(*layers), tables, len(both), n_experts, palette, step=size, ends=scale)


LIFT_END = 3.0
"""Ends of the co-activation map's scale: 8 times as often as random choices, or an eighth."""


def divergence_layers(table: pd.DataFrame, *, layer: int | None = None, palette: Palette = LIGHT) -> Picture:
    """Jensen–Shannon divergence per layer as bars; the tick is the mean of the permutations, the thin line ends at
    their 95th percentile. Selection `layer`. `table`: rows of one run and position class."""
    shown = table.assign(
        t_layer=[f"layer {n}" for n in table.layer],
        t_divergence=[f"{bits(v)} bits" for v in table.divergence],
        t_by_chance=[
            f"{bits(m)} on average, 95 % below {bits(h)}"
            for m, h in zip(table.baseline, table.high, strict=True)
        ],
        t_above_chance=[f"{bits_change(v)} bits" for v in table.above_baseline],
        t_p=[p_value(v) for v in table.p],
        t_tokens=[f"{count(a)} and {count(b)}" for a, b in zip(table.tokens_a, table.tokens_b, strict=True)],
        low=0.0,
        beyond=np.where(table.divergence > table.high, *BEYOND),
    )  # fmt: skip
    tips = tuple(name for name in shown if name.startswith("t_"))
    tables = {"layers": shown[["layer", "divergence", "baseline", "high", "low", "beyond", *tips]]}
    flat = not table[["divergence", "high"]].to_numpy().any()
    picture = finish(_divergences(tips, flat, palette), tables, 3 * len(table), 260, palette)
    return picture.marked({"layer": layer} if layer is not None else None)


BEYOND = ["above the 95th percentile of chance", "within chance"]
FLAT = alt.Scale(domain=[0, 0.01])
"""Of two sets that are one: without ends of its own the axis would be drawn around a 0 with six digits."""


@design
def _divergences(tips: tuple[str, ...], flat: bool, palette: Palette) -> alt.LayerChart:
    x = alt.X("layer:O", title="layer", axis=numbers_axis())
    scale, title = FLAT if flat else alt.Undefined, "Jensen–Shannon divergence (bits)"
    y, low = (alt.Y(name, title=title, scale=scale) for name in ("divergence:Q", "baseline:Q"))
    chosen = selection("layer", {"layer": None}, False)
    color = alt.Color(
        "beyond:N",
        scale=alt.Scale(domain=BEYOND, range=[palette.high, palette.missing]),
        legend=alt.Legend(title=None, orient="top", symbolType="square", labelLimit=320),
    )
    base = named("layers")
    bars = base.mark_bar(cursor="pointer", fillOpacity=0.7).encode(
        x=x, y=y, color=color, tooltip=tooltip(tips),
        stroke=alt.condition(chosen, alt.value(palette.mark), alt.value("transparent")), strokeWidth=alt.value(2),
    ).add_params(chosen)  # fmt: skip
    up = base.mark_rule(stroke=palette.ink, strokeWidth=2, tooltip=None)
    ticks = base.mark_tick(color=palette.ink, thickness=3, size=14, tooltip=None)
    return alt.layer(bars, up.encode(x=x, y=low, y2="high:Q"), ticks.encode(x=x, y=low))


@unchecked
def divergence_parts(
    table: pd.DataFrame, *, names: tuple[str, str], expert: int | None = None, palette: Palette = LIGHT
) -> Picture:
    """Which experts of one layer account for the divergence: their parts as bars, largest first, coloured by the set
    that uses the expert more; the tick is what chance gives it. Selection `expert` with fields layer and expert."""
    tables = Tables()
    top = table.sort_values("part", ascending=False, kind="stable").head(MOST_PARTS)
    colors = {f"more in {names[0]}": palette.high, f"more in {names[1]}": palette.low}
    more = list(colors)
    top = top.assign(
        more=np.where(top.share_a >= top.share_b, *more),
        t_expert=top["name"],
        t_part=[f"{bits(v)} bits" for v in top.part],
        t_by_chance=[f"{bits(v)} bits" for v in top.part_baseline],
        t_share_of_load=[
            f"{names[0]} {percent(a)}, {names[1]} {percent(b)}"
            for a, b in zip(top.share_a, top.share_b, strict=True)
        ],
    )  # fmt: skip
    tips = [name for name in top if name.startswith("t_")]
    named = tables(top[["layer", "expert", "name", "part", "part_baseline", "more", *tips]])
    y = alt.Y("name:N", sort=list(top["name"]), title=None, axis=alt.Axis(ticks=False, domain=False, labelPadding=6))
    scale = FLAT if not top[["part", "part_baseline"]].to_numpy().any() else alt.Undefined
    x = alt.X("part:Q", title="part of the divergence (bits)", axis=alt.Axis(tickCount=6), scale=scale)
    color = alt.Color(
        "more:N", scale=alt.Scale(domain=more, range=list(colors.values())),
        legend=alt.Legend(title=None, orient="top", symbolType="square", labelLimit=420, columns=1),
    )  # fmt: skip
    layer = int(table.layer.iloc[0])
    chosen = selection("expert", {"layer": layer, "expert": expert}, expert is not None)
    bars = alt.Chart(named).mark_bar(cursor="pointer", fillOpacity=0.7)
    bars = bars.encode(x=x, y=y, color=color, tooltip=tooltip(tips))
    ticks = alt.Chart(named).mark_tick(color=palette.ink, thickness=2.5, size=14, tooltip=None)
    layers: list[alt.Chart] = [bars.add_params(chosen), ticks.encode(x=alt.X("part_baseline:Q"), y=y)]
    if expert is not None and expert in set(top.expert):
        row = alt.Chart(tables(pd.DataFrame({"name": [expert_name(layer, expert)]})))
        layers.append(outline(row, palette.expert, 1.6).encode(y=y))
    return rows_of(alt.layer(*layers), tables, 2 * len(top), len(top), palette, step=22)


def _expert_axis(n_experts: int) -> alt.X:
    names = [str(e) for e in range(n_experts)]
    every = next(step for step in (1, 2, 4, 8, 16, 32, 64, 128, 256) if n_experts / step <= 24)
    scale = alt.Scale(domain=names, paddingInner=gap(n_experts))
    axis = numbers_axis(names[::every], grid=False, **BARE)
    return alt.X("column:N", sort=None, title="expert", scale=scale, axis=axis)


def _upwards(title: str, palette: Palette, as_percent: bool) -> alt.Color:
    """The colour of a column `value` that begins at 0. Open: `ends`."""
    legend = alt.Legend(
        title=title, orient="top", direction="horizontal", gradientLength=170, gradientThickness=9, tickCount=3,
        titleLimit=320, **({"labelExpr": PERCENT} if as_percent else {"format": ".2f"}),
    )  # fmt: skip
    scale = alt.Scale(domain=Open("ends"), range=[palette.mid, palette.high], clamp=True, interpolate="rgb")
    return alt.Color("value:Q", scale=scale, legend=legend)


def _from_zero(values: pd.Series) -> list[float]:
    """The ends of a scale that begins at 0."""
    top = float(np.nanmax(values.to_numpy(dtype=float))) if values.notna().any() else 0.0
    return [0, top if top > 0 else 1.0]
