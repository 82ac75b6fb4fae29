"""The pictures: tables of `core.views` drawn with Altair. No Streamlit, no model, no files.

Every chart is zero-centred where it shows an effect, shows what is missing as missing, and explains each mark in its
tooltip. Selections are by integer layer, position and expert, never by label.
"""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from . import views
from .formats import logits
from .links import SHARED, View
from .marks import (
    TITLES,
    chosen_by,
    dense_rows,
    diverging,
    expert_axis,
    expert_columns,
    gap,
    layer_axis,
    outline,
    rows_of,
    selection,
    shade,
    token_axis,
    tooltip,
)
from .palette import LIGHT, Palette
from .picture import CANVAS_MARKS, Picture, Tables, unchecked
from .remembered import remembered
from .results import Provenance, TraceResult
from .tooltips import cell_tooltips, expert_tooltips, strip_tooltips


def layer_token(
    result: TraceResult, *, view: View = View(), palette: Palette = LIGHT, end: float | None = None
) -> Picture:
    """Layer × token heat map of layer patches. Selection `cell` with fields layer and pos; the view's cell is preset.

    Dense layers are rows of their own colour; where the view names an expert, a dot marks every token of that layer
    that is routed to it (hollow: in the corrupt run only). `end`: of the colour scale where several maps share it.
    """
    marked = view.layer is not None and view.pos is not None
    dots = None
    if isinstance(view.expert, int) and view.layer is not None:
        strip = views.routing_strip(result, view.layer)
        dots = strip[strip.expert == view.expert].assign(layer=view.layer)
        dots["routed"] = np.where(dots.change == views.CORRUPT_ONLY, "corrupt", "clean")
        dots = dots[_DOTS]
    selected = {"layer": view.layer, "pos": view.pos} if marked else None
    return _layer_token(result, view.measure, palette, end).marked(selected, dots=dots)


_DOTS = ["layer", "label", "routed"]


@remembered
@unchecked
def _layer_token(result: TraceResult, measure: str, palette: Palette, end: float | None) -> Picture:
    """The map without anything marked; `dots`: the table of the tokens that are routed to an expert."""
    tables = Tables()
    cells = views.layer_cells(result)
    cells["value"], cells["defined"] = shade(cells[measure])
    cells = pd.concat([cells.reset_index(drop=True), cell_tooltips(result, cells)], axis=1)
    prov, labels = result.provenance, views.token_labels(result)
    x = token_axis(alt.X, labels, _subject(prov, labels), palette)
    y = layer_axis(prov.n_layers)
    columns = ["layer", "pos", "label", "value", "defined", *cell_tooltips.columns]
    chosen = selection("cell", {"layer": None, "pos": None}, False)
    base = alt.Chart(tables(cells[columns]))
    heat = base.mark_rect(cursor="pointer").encode(
        x=x,
        y=y,
        color=diverging(cells.value, TITLES[measure], palette, palette.missing, end=end),
        tooltip=tooltip(cell_tooltips.columns),
    )
    layers: list[alt.Chart] = [heat.add_params(chosen)]
    if dense := [layer for layer in range(prov.n_layers) if layer not in prov.moe_layers]:
        blank, lines = dense_rows(dense, labels, palette, tables, "label")
        layers += [blank.encode(x=x, y=y), lines.encode(y=y)]
    layers.append(outline(base, palette.mark).encode(x=x, y=y).transform_filter(chosen))
    dots = alt.Chart(tables(pd.DataFrame(columns=_DOTS), "dots")).mark_point(
        size=34, strokeWidth=1.8, stroke=palette.expert, tooltip=None
    )
    fill = chosen_by(alt.FillValue, "datum.routed == 'clean'", palette.expert, "transparent")
    layers.append(dots.encode(x=x, y=y, fill=fill))
    return rows_of(alt.layer(*layers), tables, len(cells), result.provenance.n_layers, palette)


def layer_expert(
    result: TraceResult,
    pos: int,
    *,
    view: View = View(),
    palette: Palette = LIGHT,
    end: float | None = None,
) -> Picture:
    """Layer × expert heat map of expert patches at one position: all experts of all layers.

    Selection `expert` with fields layer and expert (the shared one is `views.SHARED_INDEX`). Unrouted experts are
    blank, those routed only in a corrupt run carry a ring, the view's layer a frame, its expert and the experts of its
    coalition an outline.
    """
    selected = {"layer": view.layer, "expert": views.SHARED_INDEX if view.expert == SHARED else view.expert}
    frame = ticked = None
    if view.layer is not None:
        frame = pd.DataFrame({"layer": [view.layer]})
        grid = views.expert_grid(result, pos)
        members = grid.expert.isin([views.SHARED_INDEX if e == SHARED else e for e in view.coalition])
        if (members := members & (grid.layer == view.layer)).any():
            ticked = grid.loc[members, ["layer", "column"]]
    return _layer_expert(result, pos, view.measure, palette, end).marked(
        selected if view.expert is not None and view.layer is not None else None, frame=frame, ticked=ticked
    )


@remembered
@unchecked
def _layer_expert(result: TraceResult, pos: int, measure: str, palette: Palette, end: float | None) -> Picture:
    """The map without anything marked; `frame`: the table of the framed layer, `ticked`: of the coalition's experts."""
    tables = Tables()
    grid = views.expert_grid(result, pos)
    grid["value"], grid["defined"] = shade(grid[measure])
    grid["routed"] = grid.status != views.NOT_ROUTED
    grid["ring"] = grid.status == views.CORRUPT_ONLY
    grid = pd.concat([grid.reset_index(drop=True), expert_tooltips(result, grid)], axis=1)
    prov = result.provenance
    columns = expert_columns(prov.n_experts, shared=prov.has_shared)
    x = expert_axis(prov.n_experts, shared=prov.has_shared)
    y = layer_axis(prov.n_layers)
    chosen = selection("expert", {"layer": None, "expert": None}, False)
    keep = ["layer", "expert", "column", "value", "defined", "routed", "ring", *expert_tooltips.columns]
    base = alt.Chart(tables(grid[keep]))
    scale = diverging(grid.value, TITLES[measure], palette, palette.blank, end=end)
    layers: list[alt.Chart] = [
        base.mark_rect(cursor="pointer", strokeWidth=0.8 if prov.n_experts <= 40 else 0.4)
        .encode(
            x=x,
            y=y,
            color=scale,
            stroke=chosen_by(alt.StrokeValue, "datum.routed", palette.muted, palette.blank),
            tooltip=tooltip(expert_tooltips.columns),
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
        layers.insert(1, missing.encode(x=x, y=y, tooltip=tooltip(expert_tooltips.columns)))
    if dense := [layer for layer in range(prov.n_layers) if layer not in prov.moe_layers]:
        blank, lines = dense_rows(dense, columns, palette, tables, "column")
        layers += [blank.encode(x=x, y=y), lines.encode(y=y)]
    frame = alt.Chart(tables(pd.DataFrame(columns=["layer"]), "frame"))
    layers.append(outline(frame, palette.mark, width=1.6).encode(y=y))
    members = alt.Chart(tables(pd.DataFrame(columns=["layer", "column"]), "ticked"))
    layers.append(outline(members, palette.expert).encode(x=x, y=y))
    layers.append(outline(base, palette.expert).encode(x=x, y=y).transform_filter(chosen))
    return rows_of(alt.layer(*layers), tables, len(grid), prov.n_layers, palette)


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
    marked = isinstance(view.expert, int) and view.layer == layer
    labels = _strip_labels(result, layer)
    inside = view.pos is not None and view.pos < len(labels)
    return _routing_strip(result, layer, palette).marked(
        {"pos": view.pos, "expert": view.expert} if marked and view.pos is not None else None,
        marked_column=pd.DataFrame({"column": [str(view.expert)]}) if marked else None,
        marked_row=pd.DataFrame({"label": [labels[view.pos]]}) if inside else None,
    )


def _strip_labels(result: TraceResult, layer: int) -> list[str]:
    """The tokens' labels, ≈ before those with a near tie at this layer."""
    strip = views.routing_strip(result, layer)
    ties = set(strip.pos[strip.near_tie_clean.astype(bool) | strip.near_tie_corrupt.astype(bool)])
    return [f"≈ {label}" if pos in ties else label for pos, label in enumerate(views.token_labels(result))]


@remembered
@unchecked
def _routing_strip(result: TraceResult, layer: int, palette: Palette) -> Picture:
    """The strip without anything marked; `marked_column`, `marked_row`: the tables of the framed ones."""
    tables = Tables()
    strip = views.routing_strip(result, layer)
    labels = _strip_labels(result, layer)
    strip["label"] = [labels[p] for p in strip.pos]
    strip["column"] = strip.expert.astype(str)
    strip["weight"] = strip[["router_weight_clean", "router_weight_corrupt"]].max(axis=1)
    strip = pd.concat([strip.reset_index(drop=True), strip_tooltips(result, strip)], axis=1)
    prov = result.provenance
    columns = [str(e) for e in range(prov.n_experts)]
    every = next(step for step in (1, 2, 4, 8, 16, 32, 64, 128) if prov.n_experts / step <= 32)
    x = alt.X(
        "column:N", sort=None, title="expert", scale=alt.Scale(domain=columns, paddingInner=gap(len(columns))),
        axis=alt.Axis(
            values=columns[::every], labelAngle=0, labelOverlap="greedy", ticks=False, domain=False, labelPadding=6
        ),
    )  # fmt: skip
    y = token_axis(alt.Y, labels, _subject(prov, labels), palette)
    chosen = selection("routed", {"pos": None, "expert": None}, False)
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
        .encode(x=x, y=y, color=color, opacity=opacity, tooltip=tooltip(strip_tooltips.columns))
        .add_params(chosen)
    )
    column = alt.Chart(tables(pd.DataFrame(columns=["column"]), "marked_column"))
    layers.append(outline(column, palette.expert, width=1.6).encode(x=x))
    row = alt.Chart(tables(pd.DataFrame(columns=["label"]), "marked_row"))
    layers.append(outline(row, palette.mark, width=1.2).encode(y=y))
    layers.append(outline(base, palette.expert).encode(x=x, y=y).transform_filter(chosen))
    n_marks = len(strip) + len(labels) * len(columns)
    return rows_of(alt.layer(*layers), tables, n_marks, len(labels), palette)


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
    table = views.active_experts(result, layer, pos)
    names = dict(zip(table.expert, table.name, strict=True))
    name = names.get(views.SHARED_INDEX if view.expert == SHARED else view.expert) if view.layer == layer else None
    row = pd.DataFrame({"name": [name]}) if name else None
    return _expert_bars(result, layer, pos, palette).marked(None, marked_row=row)


@remembered
@unchecked
def _expert_bars(result: TraceResult, layer: int, pos: int, palette: Palette) -> Picture:
    """The bars without anything marked; `marked_row`: the table of the framed expert."""
    tables = Tables()
    table = views.active_experts(result, layer, pos)
    long = pd.concat(
        [
            pd.DataFrame({"name": table.name, "part": "true object lifted", "value": table.true_shift}),
            pd.DataFrame({"name": table.name, "part": "foil put down", "value": -table.foil_shift}),
        ],
        ignore_index=True,
    ).assign(t_logits=lambda rows: [logits(value) for value in rows.value])
    ticks_of = table[["name", "rescue"]].assign(t_rescue=[f"{logits(value)} logits" for value in table.rescue])
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
        alt.Tooltip("t_logits:N", title="logits"),
    ]
    rescue = [alt.Tooltip("name:N", title="expert"), alt.Tooltip("t_rescue:N", title="rescue")]
    bars = alt.Chart(tables(long)).mark_bar().encode(x=x, y=y, color=color, tooltip=tip)
    ticks = (
        alt.Chart(tables(ticks_of))
        .mark_tick(color=palette.ink, thickness=2.5, size=16)
        .encode(x=alt.X("rescue:Q"), y=y, tooltip=rescue)
    )
    layers: list[alt.Chart] = [bars, ticks]
    row = alt.Chart(tables(pd.DataFrame(columns=["name"]), "marked_row"))
    layers.append(outline(row, palette.expert, width=1.6).encode(y=y))
    return rows_of(alt.layer(*layers), tables, len(long), len(table), palette, step=26)


def _subject(prov: Provenance, labels: list[str]) -> list[str]:
    """The labels of the subject's tokens."""
    return [labels[pos] for pos in prov.subject_positions]
