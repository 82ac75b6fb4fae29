"""The pictures of averages: role × layer, each role over the layers, layer × expert at one role. Altair only.

They draw tables of `core.averages.tables`. Missing is shown as missing; every mark says in its tooltip what it is, with
its interval and of how many facts it speaks.
"""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd

from .. import maps
from ..formats import NONE, logits, percent, restoration, weight
from ..marks import (
    BARE,
    TITLES,
    dense_tables,
    diverging,
    ends,
    expert_columns,
    gap,
    numbers_axis,
    outline,
    rows_of,
    selection,
    shade,
    tooltip,
)
from ..named_rows import named_rows
from ..palette import LIGHT, Palette
from ..picture import Open, Picture, design, finish, named
from ..results import expert_name
from ..roles import BEFORE, FIRST_SUBJECT, FURTHER, LAST, LAST_SUBJECT, MIDDLE_SUBJECT, ROLES
from ..views import SHARED_INDEX

CELL_TIPS = ["t_cell", "t_restoration", "t_rescue", "t_mean_drop", "t_above_0_in", "t_facts"]
EXPERT_TIPS = [
    "t_expert", "t_restoration", "t_rescue", "t_where_active", "t_clean-active_in", "t_router_weight", "t_facts",
]  # fmt: skip
_DASHES = {MIDDLE_SUBJECT: [6, 3], FURTHER: [2, 3]}
"""Lines that are told apart without their colour."""
ROW = 34
"""Height of one role's row in pixels."""


def role_label(role: str) -> str:
    """A role as it stands beside a row."""
    return role if role in (LAST, BEFORE) else f"{role} token"


def role_colours(palette: Palette) -> dict[str, str]:
    """One colour per role."""
    return {
        BEFORE: palette.grid, FIRST_SUBJECT: palette.low, MIDDLE_SUBJECT: palette.kept, LAST_SUBJECT: palette.high,
        FURTHER: palette.joined, LAST: palette.expert,
    }  # fmt: skip


def role_map(
    table: pd.DataFrame,
    *,
    n_layers: int,
    measure: str = "restoration",
    layer: int | None = None,
    role: str | None = None,
    palette: Palette = LIGHT,
) -> Picture:
    """`role_table` as a heat map, layers from left to right. Selection `cell` with fields layer and role (its place in
    `core.roles.ROLES`); `layer` and `role` are preset. A layer without the site is left blank."""
    rows = _told(table)
    rows["value"], rows["defined"] = shade(rows[measure])
    labels = [role_label(name) for name in dict.fromkeys(table.role)]
    tables = {"cells": rows[["layer", "role", "label", "value", "defined", *CELL_TIPS]]}
    chart = _roles(n_layers, len(labels), TITLES[measure], palette)
    picture = rows_of(chart, tables, len(rows), len(labels), palette, step=ROW, labels=labels, ends=ends(rows.value))
    marked = layer is not None and role is not None
    return picture.marked({"layer": layer, "role": ROLES.index(role)} if marked else None)


@design
def _roles(n_layers: int, n_roles: int, title: str, palette: Palette) -> alt.LayerChart:
    """Open: `labels` of the roles, `ends`."""
    every = next(step for step in (1, 2, 4, 5, 10, 20, 50) if n_layers / step <= 26)
    x = alt.X(
        "layer:O", title="layer", scale=alt.Scale(domain=list(range(n_layers)), paddingInner=gap(n_layers)),
        axis=numbers_axis(list(range(0, n_layers, every)), **BARE),
    )  # fmt: skip
    y = alt.Y(
        "label:N", sort=None, title=None, scale=alt.Scale(domain=Open("labels"), paddingInner=gap(n_roles)),
        axis=alt.Axis(ticks=False, domain=False, labelPadding=8, labelLimit=160, labelColor=palette.ink),
    )  # fmt: skip
    chosen = selection("cell", {"layer": None, "role": None}, False)
    base = named("cells")
    heat = base.mark_rect(cursor="pointer").encode(
        x=x, y=y, color=diverging(title, palette, palette.missing), tooltip=tooltip(CELL_TIPS)
    )
    frame = outline(base, palette.mark).encode(x=x, y=y).transform_filter(chosen)
    return alt.layer(heat.add_params(chosen), frame)


def role_curves(
    table: pd.DataFrame,
    *,
    n_layers: int,
    measure: str = "restoration",
    role: str | None = None,
    palette: Palette = LIGHT,
) -> Picture:
    """`role_table` as one line per role over the layers with the interval as a band; that of `role` stands out.
    Selection `point` with fields layer and role (as in `role_map`)."""
    rows = _told(table)
    rows = rows[rows[measure].notna()].rename(columns={f"{measure}_low": "ci_low", f"{measure}_high": "ci_high"})
    rows = rows.rename(columns={measure: "value"})
    present = tuple(name for name in ROLES if name in set(table.role))
    tables = {
        "points": rows[["layer", "role", "name", "value", "ci_low", "ci_high", *CELL_TIPS]],
        "zero": pd.DataFrame({"zero": [0.0]}),
    }
    strong = "true" if role is None else f"datum.name === '{role}'"
    return finish(
        _curves(n_layers, present, TITLES[measure], palette), tables, 3 * len(rows), 300, palette, strong=strong
    )


@design
def _curves(n_layers: int, roles: tuple[str, ...], title: str, palette: Palette) -> alt.LayerChart:
    """Open: `strong`, the test of the role that stands out."""
    colors = role_colours(palette)
    legend = alt.Legend(
        title=None, orient="top", columns=3, symbolType="stroke", symbolStrokeWidth=3, symbolOpacity=1, symbolSize=300
    )
    scale = alt.Scale(domain=roles, range=[colors[name] for name in roles])
    color = alt.Color("name:N", scale=scale, legend=legend)
    scale = alt.Scale(domain=roles, range=[_DASHES.get(name, [1, 0]) for name in roles])
    dash = alt.StrokeDash("name:N", scale=scale, legend=legend)
    x = alt.X(
        "layer:Q", title="layer", scale=alt.Scale(domain=[-0.3, n_layers - 0.7], nice=False),
        axis=alt.Axis(tickMinStep=1, format="d"),
    )  # fmt: skip
    y = alt.Y("value:Q", title=title)
    base, strong = named("points"), Open("strong")
    chosen = selection("point", {"layer": None, "role": None}, False)
    return alt.layer(
        named("zero").mark_rule(stroke=palette.muted, strokeWidth=1, tooltip=None).encode(y="zero:Q"),
        base.mark_area(tooltip=None).encode(
            x=x, y=alt.Y("ci_low:Q", title=title), y2="ci_high:Q", color=color,
            opacity=alt.condition(strong, alt.value(0.2), alt.value(0.1)),
        ),
        base.mark_line(tooltip=None).encode(
            x=x, y=y, color=color, strokeDash=dash, strokeWidth=alt.condition(strong, alt.value(2.6), alt.value(1.6))
        ),
        base.mark_circle(size=46, opacity=1, cursor="pointer")
        .encode(x=x, y=y, color=color, tooltip=tooltip(CELL_TIPS))
        .add_params(chosen),
    )  # fmt: skip


def expert_map(
    table: pd.DataFrame,
    *,
    n_layers: int,
    n_experts: int,
    moe_layers: Sequence[int],
    has_shared: bool = False,
    n_facts: int = 0,
    measure: str = "restoration",
    layer: int | None = None,
    expert: int | None = None,
    palette: Palette = LIGHT,
) -> Picture:
    """`expert_table` as layer × expert heat map: mean over all facts, 0 where not clean-active. Blank: clean-active in
    none of the `n_facts`. Selection `expert` with fields layer and expert (the shared one is `views.SHARED_INDEX`);
    the row of `layer` is framed, its `expert` preset."""
    experts = [*range(n_experts), *([SHARED_INDEX] if has_shared else [])]
    columns = expert_columns(n_experts, shared=has_shared)
    grid = pd.MultiIndex.from_product([list(moe_layers), experts], names=["layer", "expert"]).to_frame(index=False)
    grid = grid.merge(table, on=["layer", "expert"], how="left")
    grid["active"] = grid.name.notna()
    grid["column"] = grid.expert.map(dict(zip(experts, columns, strict=True)))
    grid["value"], grid["defined"] = shade(grid[measure])
    grid = pd.concat([grid, pd.DataFrame(_expert_told(grid, n_facts), columns=EXPERT_TIPS)], axis=1)
    undefined = grid.loc[grid.active & ~grid.defined, ["layer", "column", *EXPERT_TIPS]]
    tables = {
        "experts": grid[["layer", "expert", "column", "value", "defined", "active", *EXPERT_TIPS]],
        **({"undefined": undefined} if len(undefined) else {}),
        **dense_tables(n_layers, moe_layers, columns, "column"),
        **({"frame": pd.DataFrame({"layer": [layer]})} if layer is not None else {}),
    }
    chart = maps.expert_map(n_layers, n_experts, has_shared, TITLES[measure], tuple(EXPERT_TIPS), "active", palette)
    picture = rows_of(chart, tables, len(grid), n_layers, palette, ends=ends(grid.value))
    marked = layer is not None and expert is not None
    return picture.marked({"layer": layer, "expert": expert} if marked else None)


def interval(mean: float, low: float, high: float, sign: bool = False, unit: str = "") -> str:
    """A mean with the interval behind it, and its unit; – where it is missing."""
    if not np.isfinite(mean):
        return NONE
    unit = f" {unit}" if unit else ""
    form = logits if sign else restoration
    if not np.isfinite(low):
        return f"{form(mean)}{unit} (no interval)"
    return f"{form(mean)} [{form(low)}, {form(high)}]{unit}"


def _told(table: pd.DataFrame) -> pd.DataFrame:
    """With labels, the role's place in `ROLES` in its stead, and tooltips."""
    rows = []
    for c in named_rows(table):
        facts = f"{c.n}" + (f", {c.n_missing} without such a token" if c.n_missing else "")
        rows.append((
            f"layer {c.layer}, {role_label(c.role)}",
            interval(c.restoration, c.restoration_low, c.restoration_high),
            interval(c.rescue, c.rescue_low, c.rescue_high, True, "logits"),
            f"{logits(c.mean_drop)} logits",
            f"{percent(c.positive_fraction)} of the facts" if c.n else NONE,
            facts,
        ))  # fmt: skip
    tips = pd.DataFrame(rows, columns=CELL_TIPS)
    rows = table.reset_index(drop=True)
    labels, places = rows.role.map(role_label), rows.role.map(ROLES.index)
    return pd.concat([rows.assign(name=rows.role, label=labels, role=places), tips], axis=1)


def _expert_told(grid: pd.DataFrame, n_facts: int) -> list[tuple[str, ...]]:
    rows = []
    for c in named_rows(grid):
        name = expert_name(c.layer, None if c.expert == SHARED_INDEX else c.expert)
        if not c.active:
            rows.append((name, NONE, "0 in every fact", NONE, f"none of {n_facts} facts", NONE, str(n_facts)))
            continue
        missing = f", {c.n_missing:.0f} without such a token" if c.n_missing else ""
        rows.append((
            name,
            interval(c.restoration, c.restoration_low, c.restoration_high),
            f"{interval(c.rescue, c.rescue_low, c.rescue_high, True)} logits",
            f"{logits(c.rescue_active)} logits",
            f"{c.n_active:.0f} of {c.n:.0f} facts",
            weight(c.router_weight),
            f"{c.n:.0f}{missing}",
        ))  # fmt: skip
    return rows
