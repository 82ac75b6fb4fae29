"""Pictures of the answers about cells: effects side by side, the curve of a minimal set, draws. Altair only."""

from __future__ import annotations

import altair as alt
import pandas as pd

from ..formats import logit, logits, restoration
from ..marks import rows_of, tooltip
from ..named_rows import named_rows
from ..palette import LIGHT, Palette
from ..picture import Picture, Tables, finish, unchecked
from ..tooltips import spread
from . import tables

NEEDED = {
    "rescue": "rescue (suffices)",
    "direct": "its direct part",
    "zero": "zero knockout (needed)",
    "reroute": "reroute knockout (needed)",
}
"""Column of `tables.necessity` → what the legend says."""

ROOM = 0.16
"""For the numbers behind the bars, as a share of what the bars take."""


@unchecked
def effects(rows: pd.DataFrame, *, roles: dict[str, str], palette: Palette = LIGHT) -> Picture:
    """One bar per row: its rescue, with the range over draws as a line and the number behind it.

    `rows`: name, role and the columns of `tables.over_draws`; `roles`: role → name of a colour of the palette, in the
    legend's order.
    """
    drawn = Tables()
    rows = rows.assign(
        t_what=rows.name.where(rows.name == rows.role, rows.name + ": " + rows.role),
        t_rescue=[f"{logits(value)} logits" for value in rows.rescue],
        t_restoration=[restoration(value) for value in rows.restoration],
        t_over_draws=[spread(row) for row in named_rows(rows)],
        label=[logits(value) for value in rows.rescue],
        end=rows[["rescue", "rescue_max"]].max(axis=1).clip(lower=0.0),  # right of bar and line, also below 0
    )
    known = [role for role in roles if role in set(rows.role)]
    y = alt.Y("name:N", sort=list(rows.name), title=None, axis=alt.Axis(ticks=False, domain=False, labelLimit=190))
    low, high = min(0.0, rows.rescue_min.min()), max(0.0, rows.end.max())
    room = ROOM * ((high - low) or 1.0)
    x = alt.X(
        "rescue:Q", title="rescue (logits)", axis=alt.Axis(grid=True, tickCount=5),
        scale=alt.Scale(domain=[low, high + room], nice=False),
    )  # fmt: skip
    color = alt.Color(
        "role:N", scale=alt.Scale(domain=known, range=[getattr(palette, roles[role]) for role in known]),
        legend=alt.Legend(title=None, orient="top", columns=3, symbolType="square") if len(known) > 1 else None,
    )  # fmt: skip
    base = alt.Chart(drawn(rows))
    tip = tooltip(["t_what", "t_rescue", "t_restoration", "t_over_draws"])
    layers: list[alt.Chart] = [base.mark_bar(height={"band": 0.72}).encode(x=x, y=y, color=color, tooltip=tip)]
    if (rows.draws > 1).any():
        layers.append(
            base.mark_rule(color=palette.ink, strokeWidth=1.4, tooltip=None).encode(
                x=alt.X("rescue_min:Q"), x2="rescue_max:Q", y=y
            )
        )
    layers.append(
        base.mark_text(align="left", dx=5, color=palette.ink, fontSize=11, tooltip=None).encode(
            x=alt.X("end:Q"), y=y, text="label:N"
        )
    )
    return rows_of(alt.layer(*layers), drawn, 3 * len(rows), len(rows), palette, step=24)


@unchecked
def necessity(table: pd.DataFrame, *, direct: bool = True, palette: Palette = LIGHT) -> Picture:
    """Per expert: what it brings back alone, and what is lost without it. `table`: of `tables.necessity`; `direct`:
    with the direct part of the rescue (it is 0 but at the last position)."""
    drawn = Tables()
    known = [name for name in NEEDED if table[name].notna().any() and (direct or name != "direct")]
    long = table.melt(["name"], known, var_name="measure", value_name="value").dropna()
    long = long.assign(
        what=long.measure.map(NEEDED),
        t_name=long.name + ": " + long.measure.map(NEEDED),
        t_logits=[f"{logits(value)} logits" for value in long.value],
    )
    colours = {"rescue": palette.high, "direct": palette.kept, "zero": palette.low, "reroute": palette.joined}
    color = alt.Color(
        "what:N",
        scale=alt.Scale(domain=[NEEDED[name] for name in known], range=[colours[name] for name in known]),
        legend=alt.Legend(title=None, orient="top", columns=2, symbolType="square"),
    )
    y = alt.Y("name:N", sort=list(table.name), title=None, axis=alt.Axis(ticks=False, domain=False, labelLimit=150))
    offset = alt.YOffset("what:N", sort=[NEEDED[name] for name in known], scale=alt.Scale(paddingInner=0.1))
    x = alt.X("value:Q", title="logits", axis=alt.Axis(grid=True, tickCount=5))
    tip = tooltip(["t_name", "t_logits"])
    bars = alt.Chart(drawn(long)).mark_bar().encode(x=x, y=y, yOffset=offset, color=color, tooltip=tip)
    return rows_of(alt.layer(bars), drawn, len(long), len(table), palette, step=14 * len(known) + 8)


@unchecked
def minimal_curve(curve: pd.DataFrame, *, target: float, palette: Palette = LIGHT) -> Picture:
    """Restoration by size of the set, random sets of the same sizes beside it. `curve`: of `core.minimal`."""
    drawn = Tables()
    rows = curve.assign(
        label=[f"{size}: {name}" for size, name in zip(curve["size"], curve.name, strict=True)],
        t_size=[f"{size} expert{'s' if size > 1 else ''}" for size in curve["size"]],
        t_joined=[f"{name} at position {pos}" for name, pos in zip(curve.name, curve.pos, strict=True)],
        t_restoration=[restoration(value) for value in curve.restoration],
        t_rescue=[f"{logits(value)} logits" for value in curve.rescue],
        t_random_sets=[
            f"{restoration(r.random_restoration)} on average, {restoration(r.random_min)} to "
            f"{restoration(r.random_max)} ({r.random_sets} sets)"
            for r in named_rows(curve)
        ],
        target=target,
    )
    base = alt.Chart(drawn(rows))
    labels = list(rows.label)
    x = alt.X(
        "label:N", sort=labels, title="the set grows by", scale=alt.Scale(domain=labels),
        axis=alt.Axis(labelAngle=-35, ticks=False, domain=False, labelLimit=110, labelOverlap="greedy"),
    )  # fmt: skip
    y = alt.Y("restoration:Q", title="restoration", axis=alt.Axis(grid=True, tickCount=5), scale=alt.Scale(zero=True))
    layers: list[alt.Chart] = []
    if rows.random_min.notna().any():
        bars = base.mark_bar(size=12, color=palette.kept, opacity=0.35, cornerRadius=3, tooltip=None)
        layers.append(bars.encode(x=x, y=alt.Y("random_min:Q"), y2="random_max:Q"))
        layers.append(
            base.mark_line(color=palette.kept, strokeDash=[4, 3], point={"color": palette.kept, "size": 30}).encode(
                x=x, y=alt.Y("random_restoration:Q"), tooltip=tooltip(["t_size", "t_random_sets"])
            )
        )
    rule = base.mark_rule(color=palette.muted, strokeDash=[2, 3], tooltip=None)
    layers.append(rule.encode(y=alt.Y("mean(target):Q")))
    tip = tooltip(["t_size", "t_joined", "t_restoration", "t_rescue", "t_random_sets"])
    layers.append(
        base.mark_line(color=palette.high, strokeWidth=2.5, point={"color": palette.high, "size": 70}).encode(
            x=x, y=y, tooltip=tip
        )
    )
    return finish(alt.layer(*layers), drawn, 3 * len(rows), 260, palette)


@unchecked
def draws(rows: pd.DataFrame, *, palette: Palette = LIGHT) -> Picture:
    """Each draw's rescue as a dot, the mean as a tick, the range as a line. `rows`: of `tables.draws_of`."""
    drawn = Tables()
    means = rows.groupby("name", as_index=False).rescue.agg(["mean", "std", "min", "max"]).reset_index()
    means = means.sort_values("mean", ascending=False, kind="stable")
    order = [tables.LAYER, *(name for name in means.name if name != tables.LAYER)]
    rows = rows.assign(
        t_name=[f"{name}, draw {draw}" for name, draw in zip(rows.name, rows.draw, strict=True)],
        t_rescue=[f"{logits(value)} logits" for value in rows.rescue],
    )
    means = means.assign(
        t_name=means.name + ", mean",
        t_rescue=[f"{logits(value)} logits" for value in means["mean"]],
        t_sd=[logit(value) for value in means["std"]],
    )
    y = alt.Y("name:N", sort=order, title=None, axis=alt.Axis(ticks=False, domain=False, labelLimit=120))
    x = alt.X("rescue:Q", title="rescue (logits)", axis=alt.Axis(grid=True, tickCount=5))
    over = alt.Chart(drawn(means))
    layers = [
        over.mark_rule(color=palette.muted, strokeWidth=1.2, tooltip=None).encode(x=alt.X("min:Q"), x2="max:Q", y=y),
        alt.Chart(drawn(rows))
        .mark_circle(size=46, opacity=0.6, color=palette.high)
        .encode(x=x, y=y, tooltip=tooltip(["t_name", "t_rescue"])),
        over.mark_tick(color=palette.ink, thickness=2.5, size=16).encode(
            x=alt.X("mean:Q"), y=y, tooltip=tooltip(["t_name", "t_rescue", "t_sd"])
        ),
    ]
    return rows_of(alt.layer(*layers), drawn, len(rows) + 2 * len(means), len(means), palette, step=24)
