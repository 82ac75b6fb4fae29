"""The pictures of one expert: when it is routed, its rescue by relation, what knocking it out costs. Altair only.

Draws tables of `core.expert_routing` and `core.expert_tables`; every mark says in its tooltip what it is and of how
many facts or tokens it speaks.
"""

from __future__ import annotations

import altair as alt
import pandas as pd

from .expert_tables import OTHERS, OWN, SHORT
from .formats import NONE, count, logits, percent, weight
from .marks import (
    PERCENT,
    border,
    dense_rows,
    dense_tables,
    diverging,
    ends,
    expert_axis,
    expert_columns,
    layer_axis,
    rows_of,
    selection,
)
from .named_rows import named_rows
from .palette import LIGHT, Palette
from .picture import Open, Picture, Tables, design, finish, named, unchecked
from .study.drawing import colours, intervals, names_axis, zero_line

ROWS = 30
"""So many relations are drawn; the table has all."""
ACTIVE, INACTIVE = "clean-active", "not clean-active (0)"
CHANGE = "change of the clean contrast (logits)"
_STEP = 24


def routing_bars(shares: pd.DataFrame, by: str, *, expected: float, palette: Palette = LIGHT) -> Picture:
    """Share of each group's tokens that are routed to the expert (`core.expert_routing.shares`); the dashed line is
    `expected`, its share if all experts were chosen alike."""
    top = shares.head(ROWS).assign(
        t_group=lambda t: t[by],
        t_share=lambda t: [f"{percent(s)} ({r} of {n} tokens)" for s, r, n in _three(t)],
        t_router_weight=lambda t: [f"{weight(w)} where routed" for w in t.mean_weight],
    )
    alike = {"share": [expected], "t_group": ["all experts alike"], "t_share": [percent(expected)]}
    tables = {
        "groups": top[[by, "share", "t_group", "t_share", "t_router_weight"]],
        "alike": pd.DataFrame(alike),
    }
    height = max(_STEP * len(top), 60)
    return finish(_shares(by, palette), tables, len(top), height, palette, groups=list(top[by]))


@design
def _shares(by: str, palette: Palette) -> alt.LayerChart:
    """Open: `groups`, in their order."""
    y = alt.Y(f"{by}:N", sort=Open("groups"), title=None, axis=names_axis(palette))
    axis = alt.Axis(labelExpr=PERCENT, tickCount=5)
    x = alt.X("share:Q", title="share of the tokens that are routed to it", axis=axis)
    group = alt.Tooltip("t_group:N", title="title")
    bars = named("groups").mark_bar(height=15, color=palette.high)
    line = named("alike").mark_rule(stroke=palette.expert, strokeDash=[4, 3], strokeWidth=1.5)
    return alt.layer(
        bars.encode(x=x, y=y, tooltip=[group, *_tips("share", "router_weight")]),
        line.encode(x=x, tooltip=[group, *_tips("share")]),
    )


@unchecked
def rescue_strip(facts: pd.DataFrame, relations: pd.DataFrame, *, palette: Palette = LIGHT) -> Picture:
    """One dot per fact: its rescue, by relation, relations with the highest all-case mean first; the tick is that mean.
    Hollow dots at 0: the expert is not clean-active. Selection `fact` with the field `fact`."""
    data = Tables()
    order = list(relations.relation.head(ROWS))
    label = {r.relation: f"{r.relation} · active {r.n_active} of {r.n}" for r in named_rows(relations.head(ROWS))}
    mine = facts[facts.relation.isin(order)]
    dots = pd.DataFrame({
        "fact": mine.fact.astype(int), "label": mine.relation.map(label), "rescue": mine.rescue,
        "state": mine.clean_active.map({True: ACTIVE, False: INACTIVE}),
        "t_fact": mine.prompt + " → " + mine.true,
        "t_rescue": [f"{logits(r)} logits" if a else "0: not clean-active" for r, a in _active(mine)],
        "t_router_weight": [weight(w) for w in mine.router_weight],
        "t_rank": [
            f"{count(r)} of {n} active experts" if a else NONE
            for r, n, a in zip(mine["rank"], mine.n_active, mine.clean_active, strict=True)
        ],
    })  # fmt: skip
    means = relations.head(ROWS).assign(
        label=relations.relation.map(label),
        t_what=[f"mean of {n} facts" for n in relations.head(ROWS).n],
        t_mean=[f"{logits(m)} logits" for m in relations.head(ROWS).expert_rescue],
    )
    order_y = [label[name] for name in order]
    y = alt.Y("label:N", sort=order_y, scale=alt.Scale(domain=order_y), title=None, axis=names_axis(palette))
    ends = alt.Scale(domain=[-1, 1]) if not mine.rescue.any() else alt.Undefined
    x = alt.X("rescue:Q", title="rescue (logits)", axis=alt.Axis(tickCount=7), scale=ends)
    chosen = alt.selection_point(name="fact", fields=["fact"], on="click", clear=False, toggle=False, empty=False)
    color = colours("state", {ACTIVE: palette.high, INACTIVE: palette.missing})
    tips = [alt.Tooltip("t_fact:N", title="title"), *_tips("rescue", "router_weight", "rank")]
    chart = alt.layer(
        zero_line(data, palette, axis="x"),
        alt.Chart(data(dots))
        .mark_circle(size=58, opacity=0.75, cursor="pointer")
        .encode(x=x, y=y, color=color, tooltip=tips)
        .add_params(chosen),
        alt.Chart(data(means[["label", "expert_rescue", "t_what", "t_mean"]]))
        .mark_tick(color=palette.expert, thickness=2.5, size=18)
        .encode(x=alt.X("expert_rescue:Q"), y=y, tooltip=[alt.Tooltip("t_what:N", title="title"), *_tips("mean")]),
    )
    return finish(chart, data, len(dots), max(_STEP * len(order), 60), palette)


def expert_map(
    table: pd.DataFrame, *, n_layers: int, moe_layers: list[int], n_experts: int, palette: Palette = LIGHT
) -> Picture:
    """Layer × expert: the all-case mean rescue of every expert (`core.expert_tables.every_expert`); blank: clean-active
    in none of the facts; a dashed line: a dense layer. Selection `expert` with the fields layer and expert."""
    shown = pd.DataFrame({
        "layer": table.layer, "expert": table.expert, "column": table.expert.astype(str), "value": table.mean_all,
            "defined": True,
        "t_expert": table.name,
        "t_rescue": [f"{logits(m)} logits, all facts" for m in table.mean_all],
        "t_where_active": [f"{logits(m)} logits" for m in table.mean_active],
        "t_clean_active": [f"{a} of {n} facts" for a, n in zip(table.n_active, table.n, strict=True)],
    })  # fmt: skip
    columns = expert_columns(n_experts, shared=False)
    blanks = pd.MultiIndex.from_product([moe_layers, columns], names=["layer", "column"]).to_frame(index=False)
    dense = dense_tables(n_layers, moe_layers, columns, "column")
    return rows_of(
        _experts(n_layers, n_experts, palette), {"blank": blanks, "experts": shown, **dense},
        len(shown) + len(blanks), n_layers, palette, ends=ends(table.mean_all),
    )  # fmt: skip


@design
def _experts(n_layers: int, n_experts: int, palette: Palette) -> alt.LayerChart:
    """Open: `ends`."""
    x, y = expert_axis(n_experts, shared=False), layer_axis(n_layers)
    chosen = selection("expert", {"layer": None, "expert": None}, False)
    heat = named("experts").mark_rect(cursor="pointer", stroke=palette.muted, **border(n_experts))
    tips = [alt.Tooltip("t_expert:N", title="title"), *_tips("rescue", "where_active", "clean_active")]
    color = diverging("mean rescue (logits)", palette, palette.missing)
    rows, lines = dense_rows(palette)
    return alt.layer(
        named("blank").mark_rect(color=palette.blank, tooltip=None).encode(x=x, y=y),
        heat.encode(x=x, y=y, color=color, tooltip=tips).add_params(chosen),
        rows.encode(x=x, y=y),
        lines.encode(y=y),
    )


@unchecked
def rescue_histogram(facts: pd.DataFrame, *, palette: Palette = LIGHT) -> Picture:
    """How many of the facts where the expert is clean-active have which rescue."""
    data = Tables()
    bins = alt.Bin(maxbins=30)
    x = alt.X("rescue:Q", bin=bins, title="rescue (logits)", axis=alt.Axis(labelOverlap="greedy", labelSeparation=8))
    chart = alt.layer(
        alt.Chart(data(facts.loc[facts.clean_active, ["rescue"]]))
        .mark_bar(color=palette.high)
        .encode(
            x=x,
            y=alt.Y("count():Q", title="facts", axis=alt.Axis(tickMinStep=1, format="d")),
            tooltip=[alt.Tooltip("rescue:Q", bin=bins, title="rescue"), alt.Tooltip("count():Q", title="facts")],
        ),
        zero_line(data, palette, axis="x"),
    )
    return finish(chart, data, 30, 170, palette)


def estimates(table: pd.DataFrame, *, palette: Palette = LIGHT) -> Picture:
    """The estimates of `core.expert_tables.rescue` with their intervals."""
    kinds = {"this expert": palette.expert, "control": palette.kept, "difference": palette.joined}
    series = [
        "difference" if "specificity" in q else "control" if "control" in q else "this expert" for q in table.quantity
    ]
    label = list(table.quantity.map(SHORT))
    long = table.assign(label=label, series=series)
    return intervals(long, label, kinds, palette, title="logits", offset=False)


def knockout_bars(estimates: pd.DataFrame, place: str, *, palette: Palette = LIGHT) -> Picture:
    """Mean change of the clean contrast with intervals: own facts against other facts, for each mode."""
    rows = estimates[estimates.place == place]
    label = [f"{group} · n {n}" for group, n in zip(rows.group, rows.n, strict=True)]
    long = rows.assign(label=label, series=rows["mode"])
    order = [f"{g} · n {n}" for g, n in named_rows(rows.drop_duplicates("group")[["group", "n"]])]
    order.sort(key=lambda name: (not name.startswith(OWN), name.startswith(OTHERS)))
    colors = {"zero": palette.high, "reroute": palette.joined}
    colors = {mode: colors[mode] for mode in colors if (rows["mode"] == mode).any()}
    return intervals(long, order, colors, palette, title=CHANGE, step=40)


def knockout_relations(relations: pd.DataFrame, place: str, *, palette: Palette = LIGHT) -> Picture:
    """The same by relation, the relation that loses most first."""
    rows = relations[relations.place == place]
    first = rows[rows["mode"] == "zero"].sort_values("mean").head(ROWS)
    label = {r.relation: f"{r.relation} · own {r.n_own} of {r.n}" for r in named_rows(first)}
    long = rows[rows.relation.isin(first.relation)]
    long = long.assign(label=long.relation.map(label), series=long["mode"])
    colors = {"zero": palette.high, "reroute": palette.joined}
    colors = {mode: colors[mode] for mode in colors if (rows["mode"] == mode).any()}
    return intervals(long, list(label.values()), colors, palette, title=CHANGE, step=28)


def _three(table: pd.DataFrame) -> zip:
    return zip(table.share, table.routed, table.tokens, strict=True)


def _active(table: pd.DataFrame) -> zip:
    return zip(table.rescue, table.clean_active, strict=True)


def _tips(*names: str) -> list[alt.Tooltip]:
    return [alt.Tooltip(f"t_{name}:N", title=name.replace("_", " ")) for name in names]
