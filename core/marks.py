"""What the maps have in common: axes of layers and tokens, the diverging colour scale, outlines, selections.

Altair only; knows no results.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeVar

import altair as alt
import pandas as pd

from .links import SHARED
from .palette import Palette
from .picture import Open, Picture, finish, limit, named

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


def diverging(title: str, palette: Palette, otherwise: str) -> alt.ColorValue:
    """The colour of a column `value`, centred on 0; `otherwise` where the column `defined` is false. Open: `ends`."""
    scale = alt.Scale(
        domain=Open("ends"), range=[palette.low, palette.mid, palette.high], clamp=True, interpolate="rgb"
    )
    legend = alt.Legend(
        title=title, orient="top", direction="horizontal", gradientLength=170, gradientThickness=9,
        values=Open("ends"), labelExpr="datum.value == 0 ? '0' : format(datum.value, '+.3~r')",
    )  # fmt: skip
    defined = {"test": "datum.defined", "field": "value", "type": "quantitative", "scale": scale, "legend": legend}
    return alt.ColorValue(otherwise, condition=defined)


def ends(values: pd.Series, end: float | None = None) -> list[float]:
    """Those of a diverging scale, and its middle: `end`, so that several maps have the same, or that of `values`."""
    end = limit(values) if end is None else end
    return [-end, 0, end]


def chosen_by(channel: Callable[..., T], test: str, then: str, otherwise: str) -> T:
    """The value `then` of a channel (`alt.StrokeValue`, say) where the test holds, else `otherwise`.

    What `alt.when` means; but from that Altair finds the channel's class by validating against each part of its schema.
    """
    return channel(otherwise, condition={"test": test, "value": then})


def token_axis(channel: type, n_tokens: int, palette: Palette):
    """An axis of tokens; those of the subject stand out. Open: what `tokens` gives."""
    many = n_tokens > 24
    vertical = channel is alt.Y
    axis = alt.Axis(
        title="token (position)", labelAngle=0 if vertical else (-90 if many else -40), ticks=False, domain=False,
        labelOverlap="greedy" if many else False, labelLimit=130, labelPadding=6, labelFontSize=9 if many else 12,
        labelColor=alt.condition(Open("of_subject"), alt.value(palette.subject), alt.value(palette.ink)),
        labelFontWeight=alt.condition(Open("of_subject"), alt.value("bold"), alt.value("normal")),
    )  # fmt: skip
    scale = alt.Scale(domain=Open("labels"), paddingInner=gap(n_tokens))
    return channel("label:N", sort=None, scale=scale, axis=axis)


def tokens(labels: list[str], subject: Iterable[str]) -> dict[str, Any]:
    """What an axis of tokens leaves open: all their labels, and whether one is among the `subject`'s."""
    test = "indexof([" + ", ".join(js(label) for label in subject) + "], datum.value) >= 0"
    return {"labels": labels, "of_subject": test}


def layer_axis(n_layers: int) -> alt.Y:
    """All layers, the first at the bottom."""
    every = next(step for step in (1, 2, 4, 5, 10, 20, 50) if n_layers / step <= 26)
    domain = list(range(n_layers))[::-1]
    shown = list(range(0, n_layers, every))
    axis = alt.Axis(values=shown, labelOverlap=False, ticks=False, domain=False, labelPadding=6)
    scale = alt.Scale(domain=domain, paddingInner=gap(n_layers))
    return alt.Y("layer:O", sort=None, title="layer", scale=scale, axis=axis)


def numbers_axis(shown: list | None = None, **more: object) -> alt.Axis:
    """A horizontal axis of layers or experts by their numbers (`shown`: those that have a label, None: all). Where the
    labels would run into each other, every second one is left out, and so on; "1 2 1 3" must not read as 1213."""
    values = alt.Undefined if shown is None else shown
    return alt.Axis(values=values, labelAngle=0, labelOverlap="parity", labelSeparation=6, **more)


BARE = {"ticks": False, "domain": False, "labelPadding": 6}
"""What the axis of a map lacks: its cells show where it ends."""


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
        axis=numbers_axis(shown, **BARE),
    )  # fmt: skip


def blank_cells(data: str, palette: Palette) -> alt.Chart:
    """Cells that have no value, and say why."""
    return named(data).mark_rect(color=palette.blank).encode(tooltip=tooltip(["t_note", "t_kind"]))


def dense_rows(palette: Palette) -> tuple[alt.Chart, alt.Chart]:
    """Rows of layers without experts: blank cells with a dashed line through, so that they pass for no value. Of the
    tables that `dense_tables` gives."""
    lines = named("dense_layers").mark_rule(stroke=palette.missing, strokeWidth=2, strokeDash=[3, 4], tooltip=None)
    return blank_cells("dense", palette), lines


def dense_tables(n_layers: int, moe_layers: Collection[int], labels: list[str], field: str) -> dict[str, pd.DataFrame]:
    """The tables of `dense_rows`, whose cells have these labels in the column `field`; none where all have experts."""
    dense = [layer for layer in range(n_layers) if layer not in moe_layers]
    if not dense:
        return {}
    rows = pd.MultiIndex.from_product([dense, labels], names=["layer", field]).to_frame(index=False)
    rows["t_note"] = [f"layer {layer}" for layer in rows.layer]
    rows["t_kind"] = "dense, or without this site: nothing to patch"
    return {"dense": rows, "dense_layers": pd.DataFrame({"layer": dense})}


def border(n_experts: int) -> dict[str, float]:
    """The border of a cell among so many columns: where these are narrow, faint, so that the cell's colour is seen."""
    return {"strokeWidth": 0.8} if n_experts <= 40 else {"strokeWidth": 0.4, "strokeOpacity": 0.5}


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
    chart: alt.LayerChart | dict[str, Any], tables: dict[str, pd.DataFrame], n_marks: int, n_rows: int,
    palette: Palette, step: int | None = None, **given: Any,
) -> Picture:  # fmt: skip
    """A chart of rows of one height each, whose layers have colour scales of their own; see `finish`."""
    height = max(n_rows * (step or row_height(n_rows)), 60)
    return finish(chart, tables, n_marks, height, palette, own_scales=("color", "fill"), **given)
