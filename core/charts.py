"""The pictures: tables of `core.views` drawn with Altair. No Streamlit, no model, no files.

Every chart is zero-centred where it shows an effect, shows what is missing as missing, and explains each mark in its
tooltip. Selections are by integer layer, position and expert, never by label.
"""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from . import maps, views
from .formats import logits
from .links import SHARED, View
from .marks import (
    BARE,
    TITLES,
    dense_tables,
    ends,
    expert_columns,
    gap,
    numbers_axis,
    outline,
    rows_of,
    selection,
    shade,
    token_axis,
    tokens,
    tooltip,
)
from .palette import LIGHT, Palette
from .picture import CANVAS_MARKS, Open, Picture, design, named
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
def _layer_token(result: TraceResult, measure: str, palette: Palette, end: float | None) -> Picture:
    """The map without anything marked; `dots`: the table of the tokens that are routed to an expert."""
    cells = views.layer_cells(result)
    cells["value"], cells["defined"] = shade(cells[measure])
    cells = pd.concat([cells.reset_index(drop=True), cell_tooltips(result, cells)], axis=1)
    tips = tuple(cell_tooltips.columns)
    prov, labels = result.provenance, views.token_labels(result)
    tables = {
        "cells": cells[["layer", "pos", "label", "value", "defined", *tips]],
        **dense_tables(prov.n_layers, prov.moe_layers, labels, "label"),
        "dots": pd.DataFrame(columns=_DOTS),
    }
    chart = maps.token_map(prov.n_layers, len(labels), TITLES[measure], tips, ("cell", "layer", "pos"), palette)
    return rows_of(
        chart, tables, len(cells), prov.n_layers, palette,
        ends=ends(cells.value, end), **tokens(labels, _subject(prov, labels)),
    )  # fmt: skip


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
def _layer_expert(result: TraceResult, pos: int, measure: str, palette: Palette, end: float | None) -> Picture:
    """The map without anything marked; `frame`: the table of the framed layer, `ticked`: of the coalition's experts."""
    grid = views.expert_grid(result, pos)
    grid["value"], grid["defined"] = shade(grid[measure])
    grid["routed"] = grid.status != views.NOT_ROUTED
    grid["ring"] = grid.status == views.CORRUPT_ONLY
    grid = pd.concat([grid.reset_index(drop=True), expert_tooltips(result, grid)], axis=1)
    tips = tuple(expert_tooltips.columns)
    keep = ["layer", "expert", "column", "value", "defined", "routed", "ring", *tips]
    prov = result.provenance
    columns = expert_columns(prov.n_experts, shared=prov.has_shared)
    undefined = grid.loc[grid.routed & ~grid.defined, keep]
    tables = {
        "experts": grid[keep],
        **({"undefined": undefined} if len(undefined) else {}),
        "ringed": grid.loc[grid.ring, ["layer", "column"]],
        **dense_tables(prov.n_layers, prov.moe_layers, columns, "column"),
        "frame": pd.DataFrame(columns=["layer"]),
        "ticked": pd.DataFrame(columns=["layer", "column"]),
    }
    chart = maps.expert_map(prov.n_layers, prov.n_experts, prov.has_shared, TITLES[measure], tips, "routed", palette)
    return rows_of(chart, tables, len(grid), prov.n_layers, palette, ends=ends(grid.value, end))


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
def _routing_strip(result: TraceResult, layer: int, palette: Palette) -> Picture:
    """The strip without anything marked; `marked_column`, `marked_row`: the tables of the framed ones."""
    strip = views.routing_strip(result, layer)
    labels = _strip_labels(result, layer)
    strip["label"] = [labels[p] for p in strip.pos]
    strip["column"] = strip.expert.astype(str)
    strip["weight"] = strip[["router_weight_clean", "router_weight_corrupt"]].max(axis=1)
    strip = pd.concat([strip.reset_index(drop=True), strip_tooltips(result, strip)], axis=1)
    prov = result.provenance
    columns = expert_columns(prov.n_experts, shared=False)
    n_cells = len(columns) * len(labels)
    cells = pd.MultiIndex.from_product([labels, columns], names=["label", "column"]).to_frame(index=False)
    tables = {
        **({"blank": cells} if n_cells <= CANVAS_MARKS else {}),
        "routed": strip[["pos", "expert", "label", "column", "change", "weight", *strip_tooltips.columns]],
        "marked_column": pd.DataFrame(columns=["column"]),
        "marked_row": pd.DataFrame(columns=["label"]),
    }
    return rows_of(
        _strip(prov.n_experts, len(labels), palette), tables, len(strip) + n_cells, len(labels), palette,
        weights=[0, max(float(strip.weight.max()), 1e-6)], **tokens(labels, _subject(prov, labels)),
    )  # fmt: skip


@design
def _strip(n_experts: int, n_tokens: int, palette: Palette) -> alt.LayerChart:
    """Open: `weights`, the ends of the opacity's scale, and what `marks.tokens` gives."""
    columns = expert_columns(n_experts, shared=False)
    every = next(step for step in (1, 2, 4, 8, 16, 32, 64, 128) if n_experts / step <= 32)
    x = alt.X(
        "column:N", sort=None, title="expert", scale=alt.Scale(domain=columns, paddingInner=gap(len(columns))),
        axis=numbers_axis(columns[::every], **BARE),
    )  # fmt: skip
    y = token_axis(alt.Y, n_tokens, palette)
    chosen = selection("routed", {"pos": None, "expert": None}, False)
    base = named("routed")
    names = [views.BOTH, views.CLEAN_ONLY, views.CORRUPT_ONLY]
    color = alt.Color(
        "change:N",
        scale=alt.Scale(domain=names, range=[palette.kept, palette.left, palette.joined]),
        legend=alt.Legend(title="routed here in the run", orient="top", symbolType="square", titleLimit=300),
    )
    opacity = alt.Opacity("weight:Q", legend=None, scale=alt.Scale(domain=Open("weights"), range=[0.3, 1]))
    routed = base.mark_rect(cursor="pointer").encode(
        x=x, y=y, color=color, opacity=opacity, tooltip=tooltip(strip_tooltips.columns)
    )
    return alt.layer(
        named("blank").mark_rect(color=palette.blank, tooltip=None).encode(x=x, y=y),
        routed.add_params(chosen),
        outline(named("marked_column"), palette.expert, width=1.6).encode(x=x),
        outline(named("marked_row"), palette.mark, width=1.2).encode(y=y),
        outline(base, palette.expert).encode(x=x, y=y).transform_filter(chosen),
    )


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
def _expert_bars(result: TraceResult, layer: int, pos: int, palette: Palette) -> Picture:
    """The bars without anything marked; `marked_row`: the table of the framed expert."""
    table = views.active_experts(result, layer, pos)
    long = pd.concat(
        [
            pd.DataFrame({"name": table.name, "part": LIFTED, "value": table.true_shift}),
            pd.DataFrame({"name": table.name, "part": PUT_DOWN, "value": -table.foil_shift}),
        ],
        ignore_index=True,
    ).assign(t_logits=lambda rows: [logits(value) for value in rows.value])
    rescues = table[["name", "rescue"]].assign(t_rescue=[f"{logits(value)} logits" for value in table.rescue])
    tables = {"parts": long, "rescues": rescues, "marked_row": pd.DataFrame(columns=["name"])}
    return rows_of(_bars(palette), tables, len(long), len(table), palette, step=26, names=list(table.name))


LIFTED, PUT_DOWN = "true object lifted", "foil put down"


@design
def _bars(palette: Palette) -> alt.LayerChart:
    """Open: `names`, in their order."""
    axis = alt.Axis(ticks=False, domain=False, labelLimit=120)
    y = alt.Y("name:N", sort=Open("names"), title=None, axis=axis)
    x = alt.X("value:Q", title="logits", axis=alt.Axis(grid=True, tickCount=5))
    color = alt.Color(
        "part:N",
        scale=alt.Scale(domain=[LIFTED, PUT_DOWN], range=[palette.high, palette.joined]),
        legend=alt.Legend(title=None, orient="top"),
    )
    expert = alt.Tooltip("name:N", title="expert")
    tip = [expert, alt.Tooltip("part:N"), alt.Tooltip("t_logits:N", title="logits")]
    ticks = named("rescues").mark_tick(color=palette.ink, thickness=2.5, size=16)
    return alt.layer(
        named("parts").mark_bar().encode(x=x, y=y, color=color, tooltip=tip),
        ticks.encode(x=alt.X("rescue:Q"), y=y, tooltip=[expert, alt.Tooltip("t_rescue:N", title="rescue")]),
        outline(named("marked_row"), palette.expert, width=1.6).encode(y=y),
    )


def _subject(prov: Provenance, labels: list[str]) -> list[str]:
    """The labels of the subject's tokens."""
    return [labels[pos] for pos in prov.subject_positions]
