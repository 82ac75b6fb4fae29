"""The pictures: tables of `core.views` drawn with Altair. No Streamlit, no model, no files.

Every chart is zero-centred where it shows an effect, shows what is missing as missing, and explains each mark in its
tooltip. Selections are by integer layer, position and expert, never by label.
"""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from . import views
from .links import SHARED, View
from .palette import LIGHT, Palette
from .picture import CANVAS_MARKS, Picture, Tables, finish, limit, unchecked
from .results import TraceResult
from .tooltips import cell_tooltips, expert_tooltips, strip_tooltips

TITLES = {"restoration": "restoration", "rescue": "rescue (logits)"}


def row_height(n_rows: int) -> int:
    """Height of one row of a map in pixels: generous for small models, still readable for 48 layers and more."""
    return next((size for limit, size in ((10, 30), (16, 24), (28, 18), (48, 13)) if n_rows <= limit), 10)


@unchecked
def layer_token(result: TraceResult, *, view: View = View(), palette: Palette = LIGHT) -> Picture:
    """Layer × token heat map of layer patches. Selection `cell` with fields layer and pos; the view's cell is preset.

    Dense layers are rows of their own colour; where the view names an expert, a dot marks every token of that layer
    that is routed to it (hollow: in the corrupt run only).
    """
    tables = Tables()
    cells = views.layer_cells(result)
    cells["value"], cells["defined"] = _shade(cells[view.measure])
    cells = pd.concat([cells.reset_index(drop=True), cell_tooltips(result, cells)], axis=1)
    prov, labels = result.provenance, views.token_labels(result)
    x = _token_axis(alt.X, result, labels, palette)
    y = _layer_axis(result, palette)
    columns = ["layer", "pos", "label", "value", "defined", *cell_tooltips.columns]
    marked = view.layer is not None and view.pos is not None
    chosen = _selection("cell", {"layer": view.layer, "pos": view.pos}, marked)
    base = alt.Chart(tables(cells[columns]))
    heat = base.mark_rect(cursor="pointer").encode(
        x=x,
        y=y,
        color=_diverging(cells.value, view.measure, palette, palette.missing),
        tooltip=_tooltip(cell_tooltips.columns),
    )
    layers: list[alt.Chart] = [heat.add_params(chosen)]
    if dense := [layer for layer in range(prov.n_layers) if layer not in prov.moe_layers]:
        blank, lines = _dense(dense, labels, palette, tables, "label")
        layers += [blank.encode(x=x, y=y), lines.encode(y=y)]
    layers.append(_outline(base, palette.mark).encode(x=x, y=y).transform_filter(chosen))
    if isinstance(view.expert, int) and view.layer is not None:
        strip = views.routing_strip(result, view.layer)
        dots = strip[strip.expert == view.expert].assign(layer=view.layer)
        dots["routed"] = np.where(dots.change == views.CORRUPT_ONLY, "corrupt", "clean")
        dots = alt.Chart(tables(dots[["layer", "label", "routed"]])).mark_point(
            size=34, strokeWidth=1.8, stroke=palette.expert, tooltip=None
        )
        fill = alt.condition("datum.routed == 'clean'", alt.value(palette.expert), alt.value("transparent"))
        layers.append(dots.encode(x=x, y=y, fill=fill))
    return _grid(alt.layer(*layers), tables, len(cells), result.provenance.n_layers, palette)


@unchecked
def layer_expert(
    result: TraceResult,
    pos: int,
    *,
    view: View = View(),
    palette: Palette = LIGHT,
) -> Picture:
    """Layer × expert heat map of expert patches at one position: all experts of all layers.

    Selection `expert` with fields layer and expert (the shared one is `views.SHARED_INDEX`). Unrouted experts are
    blank, those routed only in a corrupt run carry a ring, the view's layer a frame, its expert an outline.
    """
    tables = Tables()
    grid = views.expert_grid(result, pos)
    grid["value"], grid["defined"] = _shade(grid[view.measure])
    grid["routed"] = grid.status != views.NOT_ROUTED
    grid["ring"] = grid.status == views.CORRUPT_ONLY
    grid = pd.concat([grid.reset_index(drop=True), expert_tooltips(result, grid)], axis=1)
    prov = result.provenance
    columns = [str(e) for e in range(prov.n_experts)] + ([SHARED] if prov.has_shared else [])
    every = next(step for step in (1, 2, 4, 8, 16, 32, 64, 128) if prov.n_experts / step <= 24)
    shown = [str(e) for e in range(0, prov.n_experts, every)] + ([SHARED] if prov.has_shared else [])
    x = alt.X(
        "column:N", sort=None, title="expert", scale=alt.Scale(domain=columns, paddingInner=_gap(len(columns))),
        axis=alt.Axis(values=shown, labelAngle=0, labelOverlap="greedy", ticks=False, domain=False, labelPadding=6),
    )  # fmt: skip
    y = _layer_axis(result, palette)
    marked = view.expert is not None and view.layer is not None
    preset = {"layer": view.layer, "expert": views.SHARED_INDEX if view.expert == SHARED else view.expert}
    chosen = _selection("expert", preset, marked)
    keep = ["layer", "expert", "column", "value", "defined", "routed", "ring", *expert_tooltips.columns]
    base = alt.Chart(tables(grid[keep]))
    scale = _diverging(grid.value, view.measure, palette, palette.blank)
    layers: list[alt.Chart] = [
        base.mark_rect(cursor="pointer", strokeWidth=0.8 if prov.n_experts <= 40 else 0.4)
        .encode(
            x=x,
            y=y,
            color=scale,
            stroke=alt.when("datum.routed").then(alt.value(palette.muted)).otherwise(alt.value(palette.blank)),
            tooltip=_tooltip(expert_tooltips.columns),
        )
        .add_params(chosen),
        alt.Chart(tables(grid.loc[grid.ring, ["layer", "column"]]))
        .mark_point(
            size=16 if prov.n_experts > 32 else 30, stroke=palette.muted, strokeWidth=1.2, fill=None, tooltip=None
        )
        .encode(x=x, y=y),
    ]
    undefined = grid.routed & ~grid.defined
    if undefined.any():
        missing = alt.Chart(tables(grid.loc[undefined, keep])).mark_rect(color=palette.missing)
        layers.insert(1, missing.encode(x=x, y=y, tooltip=_tooltip(expert_tooltips.columns)))
    if dense := [layer for layer in range(prov.n_layers) if layer not in prov.moe_layers]:
        blank, lines = _dense(dense, columns, palette, tables, "column")
        layers += [blank.encode(x=x, y=y), lines.encode(y=y)]
    if view.layer is not None:
        frame = alt.Chart(tables(pd.DataFrame({"layer": [view.layer]})))
        layers.append(_outline(frame, palette.mark, width=1.6).encode(y=y))
    layers.append(_outline(base, palette.expert).encode(x=x, y=y).transform_filter(chosen))
    return _grid(alt.layer(*layers), tables, len(grid), prov.n_layers, palette)


@unchecked
def routing_strip(
    result: TraceResult,
    layer: int,
    *,
    view: View = View(),
    palette: Palette = LIGHT,
) -> Picture:
    """Tokens × experts at one layer, clean against corrupt. Selection `routed` with fields pos and expert.

    Colour says where the expert is routed, opacity its router weight; ≈ after a token marks a near tie there.
    """
    tables = Tables()
    strip = views.routing_strip(result, layer)
    near = strip.near_tie_clean.astype(bool) | strip.near_tie_corrupt.astype(bool)
    ties = set(strip.pos[near])
    labels = [f"≈ {label}" if pos in ties else label for pos, label in enumerate(views.token_labels(result))]
    strip["label"] = [labels[p] for p in strip.pos]
    strip["column"] = strip.expert.astype(str)
    strip["weight"] = strip[["router_weight_clean", "router_weight_corrupt"]].max(axis=1)
    strip = pd.concat([strip.reset_index(drop=True), strip_tooltips(result, strip)], axis=1)
    prov = result.provenance
    columns = [str(e) for e in range(prov.n_experts)]
    every = next(step for step in (1, 2, 4, 8, 16, 32, 64, 128) if prov.n_experts / step <= 32)
    x = alt.X(
        "column:N", sort=None, title="expert", scale=alt.Scale(domain=columns, paddingInner=_gap(len(columns))),
        axis=alt.Axis(
            values=columns[::every], labelAngle=0, labelOverlap="greedy", ticks=False, domain=False, labelPadding=6
        ),
    )  # fmt: skip
    y = _token_axis(alt.Y, result, labels, palette)
    marked = isinstance(view.expert, int) and view.layer == layer
    chosen = _selection("routed", {"pos": view.pos, "expert": view.expert}, marked and view.pos is not None)
    keep = ["pos", "expert", "label", "column", "change", "weight", *strip_tooltips.columns]
    base = alt.Chart(tables(strip[keep]))
    names = [views.BOTH, views.CLEAN_ONLY, views.CORRUPT_ONLY]
    color = alt.Color(
        "change:N",
        scale=alt.Scale(domain=names, range=[palette.kept, palette.left, palette.joined]),
        legend=alt.Legend(title="routed here in the run", orient="top", symbolType="square", titleLimit=300),
    )
    opacity = alt.Opacity(
        "weight:Q", legend=None, scale=alt.Scale(domain=[0, max(float(strip.weight.max()), 1e-6)], range=[0.3, 1])
    )
    layers: list[alt.Chart] = []
    if len(columns) * len(labels) <= CANVAS_MARKS:
        blanks = pd.MultiIndex.from_product([labels, columns], names=["label", "column"]).to_frame(index=False)
        layers.append(alt.Chart(tables(blanks)).mark_rect(color=palette.blank, tooltip=None).encode(x=x, y=y))
    layers.append(
        base.mark_rect(cursor="pointer")
        .encode(x=x, y=y, color=color, opacity=opacity, tooltip=_tooltip(strip_tooltips.columns))
        .add_params(chosen)
    )
    if marked:
        column = alt.Chart(tables(pd.DataFrame({"column": [str(view.expert)]})))
        layers.append(_outline(column, palette.expert, width=1.6).encode(x=x))
    if view.pos is not None and view.pos < len(labels):
        row = alt.Chart(tables(pd.DataFrame({"label": [labels[view.pos]]})))
        layers.append(_outline(row, palette.mark, width=1.2).encode(y=y))
    layers.append(_outline(base, palette.expert).encode(x=x, y=y).transform_filter(chosen))
    n_marks = len(strip) + len(labels) * len(columns)
    return _grid(alt.layer(*layers), tables, n_marks, len(labels), palette)


@unchecked
def expert_bars(
    result: TraceResult,
    layer: int,
    pos: int,
    *,
    view: View = View(),
    palette: Palette = LIGHT,
) -> Picture:
    """One cell's active experts: how much of each rescue lifts the true object and how much puts the foil down.

    The two bars of an expert add up to its rescue (the tick), as true_shift − foil_shift does.
    """
    tables = Tables()
    table = views.active_experts(result, layer, pos)
    long = pd.concat(
        [
            pd.DataFrame({"name": table.name, "part": "true object lifted", "value": table.true_shift}),
            pd.DataFrame({"name": table.name, "part": "foil put down", "value": -table.foil_shift}),
        ],
        ignore_index=True,
    )
    y = alt.Y("name:N", sort=list(table.name), title=None, axis=alt.Axis(ticks=False, domain=False, labelLimit=120))
    x = alt.X("value:Q", title="logits", axis=alt.Axis(grid=True, tickCount=5))
    color = alt.Color(
        "part:N",
        scale=alt.Scale(domain=["true object lifted", "foil put down"], range=[palette.high, palette.joined]),
        legend=alt.Legend(title=None, orient="top"),
    )
    tip = [
        alt.Tooltip("name:N", title="expert"),
        alt.Tooltip("part:N"),
        alt.Tooltip("value:Q", format="+.3f", title="logits"),
    ]
    bars = alt.Chart(tables(long)).mark_bar().encode(x=x, y=y, color=color, tooltip=tip)
    ticks = (
        alt.Chart(tables(table[["name", "rescue"]]))
        .mark_tick(color=palette.ink, thickness=2.5, size=16)
        .encode(x=alt.X("rescue:Q"), y=y, tooltip=[alt.Tooltip("rescue:Q", format="+.3f", title="rescue (logits)")])
    )
    layers: list[alt.Chart] = [bars, ticks]
    names = dict(zip(table.expert, table.name, strict=True))
    if (name := names.get(views.SHARED_INDEX if view.expert == SHARED else view.expert)) and view.layer == layer:
        row = alt.Chart(tables(pd.DataFrame({"name": [name]})))
        layers.append(_outline(row, palette.expert, width=1.6).encode(y=y))
    return _grid(alt.layer(*layers), tables, len(long), len(table), palette, step=26)


def _selection(name: str, fields: dict[str, int | None], marked: bool) -> alt.Parameter:
    """A click selects one mark; `marked`: the one with `fields` is selected from the start."""
    preset = {"value": [fields]} if marked else {}
    return alt.selection_point(
        name=name, fields=list(fields), on="click", clear=False, toggle=False, empty=False, **preset
    )


def _shade(values: pd.Series) -> tuple[pd.Series, pd.Series]:
    """(values with 0 where missing, where they are defined): Vega-Lite would drop or recolour marks with nulls."""
    return values.fillna(0.0), values.notna()


def _diverging(values: pd.Series, measure: str, palette: Palette, otherwise: str):
    end = limit(values)
    color = alt.Color(
        "value:Q",
        scale=alt.Scale(
            domain=[-end, 0, end], range=[palette.low, palette.mid, palette.high], clamp=True, interpolate="rgb"
        ),
        legend=alt.Legend(
            title=TITLES[measure], orient="top", direction="horizontal", gradientLength=170, gradientThickness=9,
            values=[-end, 0, end], labelExpr="datum.value == 0 ? '0' : format(datum.value, '+.3~r')",
        ),
    )  # fmt: skip
    return alt.when("datum.defined").then(color).otherwise(alt.value(otherwise))


def _token_axis(channel: type, result: TraceResult, labels: list[str], palette: Palette):
    subject = [labels[p] for p in result.provenance.subject_positions]
    test = "indexof([" + ", ".join(_js(label) for label in subject) + "], datum.value) >= 0"
    many = len(labels) > 24
    vertical = channel is alt.Y
    axis = alt.Axis(
        title=None, labelAngle=0 if vertical else (-90 if many else -40), ticks=False, domain=False,
        labelOverlap="greedy" if many else False, labelLimit=130, labelPadding=6, labelFontSize=9 if many else 12,
        labelColor=alt.condition(test, alt.value(palette.subject), alt.value(palette.ink)),
        labelFontWeight=alt.condition(test, alt.value("bold"), alt.value("normal")),
    )  # fmt: skip
    return channel("label:N", sort=None, scale=alt.Scale(domain=labels, paddingInner=_gap(len(labels))), axis=axis)


def _layer_axis(result: TraceResult, palette: Palette) -> alt.Y:
    n = result.provenance.n_layers
    every = next(step for step in (1, 2, 4, 5, 10, 20, 50) if n / step <= 26)
    domain = list(range(n))[::-1]
    axis = alt.Axis(values=list(range(0, n, every)), labelOverlap=False, ticks=False, domain=False, labelPadding=6)
    return alt.Y("layer:O", sort=None, title="layer", scale=alt.Scale(domain=domain, paddingInner=_gap(n)), axis=axis)


def _dense(dense: list[int], labels: list[str], palette: Palette, tables: Tables, field: str) -> list[alt.Chart]:
    """Rows of layers without experts: blank cells with a dashed line through, so that they pass for no value."""
    rows = pd.MultiIndex.from_product([dense, labels], names=["layer", field]).to_frame(index=False)
    rows["t_note"] = [f"layer {layer}" for layer in rows.layer]
    rows["t_kind"] = "dense: no experts, nothing to patch"
    cells = alt.Chart(tables(rows)).mark_rect(color=palette.blank).encode(tooltip=_tooltip(["t_note", "t_kind"]))
    lines = alt.Chart(tables(pd.DataFrame({"layer": dense}))).mark_rule(
        stroke=palette.missing, strokeWidth=2, strokeDash=[3, 4], tooltip=None
    )
    return [cells, lines]


def _outline(base: alt.Chart, color: str, width: float = 2.5) -> alt.Chart:
    return base.mark_rect(fillOpacity=0, stroke=color, strokeWidth=width, tooltip=None, strokeJoin="round")


def _tooltip(columns: list[str]) -> list[alt.Tooltip]:
    return [
        alt.Tooltip(f"{name}:N", title="title" if i == 0 else name[2:].replace("_", " "))
        for i, name in enumerate(columns)
    ]


def _gap(n: int) -> float:
    return 0.06 if n <= 24 else (0.03 if n <= 64 else 0.0)


def _js(text: str) -> str:
    """A string literal of the Vega expression language."""
    out = "".join(c if c.isalnum() or c in " ·␣_-" else f"\\u{ord(c):04x}" if ord(c) < 0x10000 else c for c in text)
    return f"'{out}'"


def _grid(
    chart: alt.LayerChart, tables: Tables, n_marks: int, n_rows: int, palette: Palette, step: int | None = None
) -> Picture:
    """A chart of rows of one height each, whose layers have colour scales of their own."""
    height = max(n_rows * (step or row_height(n_rows)), 60)
    return finish(chart.resolve_scale(color="independent", fill="independent"), tables, n_marks, height, palette)
