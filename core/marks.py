"""What the maps have in common: axes of layers and tokens, the diverging colour scale, outlines, selections.

Altair only; knows no results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import altair as alt
import pandas as pd

from .links import SHARED
from .palette import Palette
from .picture import Picture, Tables, finish, limit

T = TypeVar("T")

TITLES = {"restoration": "restoration", "rescue": "rescue (logits)", "rescue_sd": "sd over draws (logits)"}
"""What the colours show → the legend's title."""


def row_height(n_rows: int) -> int:
    """Height of one row of a map in pixels: generous for small models, still readable for 48 layers and more."""
    return next((size for limit, size in ((10, 30), (16, 24), (28, 18), (48, 13)) if n_rows <= limit), 10)


def selection(name: str, fields: dict[str, int | None], marked: bool) -> alt.Parameter:
    """A click selects one mark; `marked`: the one with `fields` is selected from the start."""
    preset = {"value": [fields]} if marked else {}
    return alt.selection_point(
        name=name, fields=list(fields), on="click", clear=False, toggle=False, empty=False, **preset
    )


def shade(values: pd.Series) -> tuple[pd.Series, pd.Series]:
    """(values with 0 where missing, where they are defined): Vega-Lite would drop or recolour marks with nulls."""
    return values.fillna(0.0), values.notna()


def diverging(
    values: pd.Series, title: str, palette: Palette, otherwise: str, *, end: float | None = None
) -> alt.ColorValue:
    """The colour of a column `value`, centred on 0; `otherwise` where the column `defined` is false.

    `end`: of the scale, so that several maps have the same; that of `values` where it is not given.
    """
    end = limit(values) if end is None else end
    scale = alt.Scale(
        domain=[-end, 0, end], range=[palette.low, palette.mid, palette.high], clamp=True, interpolate="rgb"
    )
    legend = alt.Legend(
        title=title, orient="top", direction="horizontal", gradientLength=170, gradientThickness=9,
        values=[-end, 0, end], labelExpr="datum.value == 0 ? '0' : format(datum.value, '+.3~r')",
    )  # fmt: skip
    defined = {"test": "datum.defined", "field": "value", "type": "quantitative", "scale": scale, "legend": legend}
    return alt.ColorValue(otherwise, condition=defined)


def chosen_by(channel: Callable[..., T], test: str, then: str, otherwise: str) -> T:
    """The value `then` of a channel (`alt.StrokeValue`, say) where the test holds, else `otherwise`.

    What `alt.when` means; but from that Altair finds the channel's class by validating against each part of its schema.
    """
    return channel(otherwise, condition={"test": test, "value": then})


def token_axis(channel: type, labels: list[str], subject: Iterable[str], palette: Palette):
    """An axis of tokens; the labels in `subject` stand out."""
    test = "indexof([" + ", ".join(js(label) for label in subject) + "], datum.value) >= 0"
    many = len(labels) > 24
    vertical = channel is alt.Y
    axis = alt.Axis(
        title="token (position)", labelAngle=0 if vertical else (-90 if many else -40), ticks=False, domain=False,
        labelOverlap="greedy" if many else False, labelLimit=130, labelPadding=6, labelFontSize=9 if many else 12,
        labelColor=alt.condition(test, alt.value(palette.subject), alt.value(palette.ink)),
        labelFontWeight=alt.condition(test, alt.value("bold"), alt.value("normal")),
    )  # fmt: skip
    return channel("label:N", sort=None, scale=alt.Scale(domain=labels, paddingInner=gap(len(labels))), axis=axis)


def layer_axis(n_layers: int) -> alt.Y:
    """All layers, the first at the bottom."""
    every = next(step for step in (1, 2, 4, 5, 10, 20, 50) if n_layers / step <= 26)
    domain = list(range(n_layers))[::-1]
    shown = list(range(0, n_layers, every))
    axis = alt.Axis(values=shown, labelOverlap=False, ticks=False, domain=False, labelPadding=6)
    scale = alt.Scale(domain=domain, paddingInner=gap(n_layers))
    return alt.Y("layer:O", sort=None, title="layer", scale=scale, axis=axis)


def expert_columns(n_experts: int, *, shared: bool, every: int = 1) -> list[str]:
    """What the column `column` of a map of experts says: their indices (each `every`th), then the shared one's name."""
    return [str(e) for e in range(0, n_experts, every)] + ([SHARED] if shared else [])


def expert_axis(n_experts: int, *, shared: bool) -> alt.X:
    """All experts of a layer, the shared one behind the others."""
    columns = expert_columns(n_experts, shared=shared)
    every = next(step for step in (1, 2, 4, 8, 16, 32, 64, 128) if n_experts / step <= 24)
    shown = expert_columns(n_experts, shared=shared, every=every)
    return alt.X(
        "column:N", sort=None, title="expert", scale=alt.Scale(domain=columns, paddingInner=gap(len(columns))),
        axis=alt.Axis(values=shown, labelAngle=0, labelOverlap="greedy", ticks=False, domain=False, labelPadding=6),
    )  # fmt: skip


def dense_rows(dense: list[int], labels: list[str], palette: Palette, tables: Tables, field: str) -> list[alt.Chart]:
    """Rows of layers without experts: blank cells with a dashed line through, so that they pass for no value."""
    rows = pd.MultiIndex.from_product([dense, labels], names=["layer", field]).to_frame(index=False)
    rows["t_note"] = [f"layer {layer}" for layer in rows.layer]
    rows["t_kind"] = "dense, or without this site: nothing to patch"
    cells = alt.Chart(tables(rows)).mark_rect(color=palette.blank).encode(tooltip=tooltip(["t_note", "t_kind"]))
    lines = alt.Chart(tables(pd.DataFrame({"layer": dense}))).mark_rule(
        stroke=palette.missing, strokeWidth=2, strokeDash=[3, 4], tooltip=None
    )
    return [cells, lines]


def outline(base: alt.Chart, color: str, width: float = 2.5) -> alt.Chart:
    """A frame around marks."""
    return base.mark_rect(fillOpacity=0, stroke=color, strokeWidth=width, tooltip=None, strokeJoin="round")


PERCENT = "format(100 * datum.value, '.3~f') + ' %'"
"""A share on an axis or in a legend, as `core.formats.percent` writes it but for the decimals: Vega's own % has no
space."""


def tooltip(columns: Iterable[str]) -> list[alt.Tooltip]:
    """Columns t_… as a tooltip's lines; the first is its title."""
    return [
        alt.Tooltip(f"{name}:N", title="title" if i == 0 else name[2:].replace("_", " "))
        for i, name in enumerate(columns)
    ]


def gap(n: int) -> float:
    """The space between so many rows or columns, as a share of their width."""
    return 0.06 if n <= 24 else (0.03 if n <= 64 else 0.0)


def js(text: str) -> str:
    """A string literal of the Vega expression language."""
    out = "".join(c if c.isalnum() or c in " ·␣_-" else f"\\u{ord(c):04x}" if ord(c) < 0x10000 else c for c in text)
    return f"'{out}'"


def rows_of(
    chart: alt.LayerChart, tables: Tables, n_marks: int, n_rows: int, palette: Palette, step: int | None = None
) -> Picture:
    """A chart of rows of one height each, whose layers have colour scales of their own."""
    height = max(n_rows * (step or row_height(n_rows)), 60)
    return finish(chart, tables, n_marks, height, palette, own_scales=("color", "fill"))
