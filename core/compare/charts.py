"""The pictures of two traces side by side: maps on shared axes and one colour scale, differences, routing agreement.

Altair only; no Streamlit, no model, no files.
"""

from __future__ import annotations

import altair as alt
import pandas as pd

from .. import maps, views
from ..formats import NONE, logits, overlap, percent, weight
from ..marks import (
    PERCENT,
    TITLES,
    blank_cells,
    dense_rows,
    dense_tables,
    diverging,
    ends,
    expert_axis,
    expert_columns,
    layer_axis,
    outline,
    row_height,
    rows_of,
    shade,
    token_axis,
    tokens,
    tooltip,
)
from ..named_rows import named_rows
from ..palette import LIGHT, Palette
from ..picture import Picture, design, finish, limit, named
from ..remembered import remembered
from ..tooltips import cell_tooltips
from .tables import BOTH, SIDES, Compared

Cell = tuple[int, int]
"""(layer, position on that side), or (layer, column) on the shared axis."""


def scale_end(tables: list[pd.DataFrame], names: list[str]) -> float:
    """The end of one colour scale for several maps: for the columns `names` of `tables`."""
    return limit(pd.concat([table[name] for table in tables for name in names if name in table], ignore_index=True))


def side_map(
    compared: Compared, side: str, *, measure: str = "restoration", chosen: Cell | None = None,
    palette: Palette = LIGHT, end: float | None = None,
) -> Picture:  # fmt: skip
    """Layer × token heat map of side `a` or `b`. Selection `cell` with fields layer and pos; `chosen` is preset.

    Where the prompts correspond both sides have the same columns, and a token that this side lacks is blank; the layer
    axis is that of the deeper model.
    """
    selected = None if chosen is None else dict(zip(("layer", "pos"), chosen, strict=True))
    return _side_map(compared, side, measure, palette, end).marked(selected)


@remembered
def _side_map(compared: Compared, side: str, measure: str, palette: Palette, end: float | None) -> Picture:
    """The map without anything marked."""
    result = compared.mapped(side)
    cells = views.layer_cells(result)
    cells["value"], cells["defined"] = shade(cells[measure])
    cells = pd.concat([cells.reset_index(drop=True), cell_tooltips(result, cells)], axis=1)
    labels, subject = _columns(compared, side)
    cells["label"] = [labels[column] for column in _column_of(compared, side, cells.pos)]
    n_layers = max(compared.side(s).provenance.n_layers for s in SIDES)
    prov, tips = result.provenance, tuple(cell_tooltips.columns)
    absent = [label for label in labels if label not in set(cells.label)]
    tables = {
        "cells": cells[["layer", "pos", "label", "value", "defined", *tips]],
        **_absent(absent, prov.moe_layers, f"no such token in {side}"),
        **dense_tables(prov.n_layers, prov.moe_layers, labels, "label"),
    }
    chart = maps.token_map(n_layers, len(labels), TITLES[measure], tips, ("cell", "layer", "pos"), palette)
    given = {"ends": ends(cells.value, end), **tokens(labels, subject)}
    return rows_of(chart, tables, len(cells), n_layers, palette, **given)


def difference_map(
    compared: Compared, *, measure: str = "restoration", chosen: Cell | None = None, palette: Palette = LIGHT
) -> Picture:
    """Layer × token heat map of b − a. Selection `difference` with fields layer and column; `chosen` is preset."""
    selected = None if chosen is None else dict(zip(("layer", "column"), chosen, strict=True))
    return _difference_map(compared, measure, palette).marked(selected)


@remembered
def _difference_map(compared: Compared, measure: str, palette: Palette) -> Picture:
    """The map without anything marked."""
    cells = compared.cells.copy()
    there = cells.pos_a.notna() & cells.pos_b.notna()
    cells["value"], cells["defined"] = shade(cells[f"{measure}_difference"])
    for name, column in _difference_tooltips(cells).items():
        cells[name] = column
    labels, subject = _columns(compared, "a")
    n_layers, tips = compared.a.provenance.n_layers, ("t_cell", "t_rescue", "t_restoration")
    absent = list(dict.fromkeys(cells.label[~there]))
    tables = {
        "cells": cells.loc[there, ["layer", "column", "label", "value", "defined", *tips]],
        **_absent(absent, compared.layers, ONE_SIDE),
        **dense_tables(n_layers, compared.layers, labels, "label"),
    }
    chosen = ("difference", "layer", "column")
    chart = maps.token_map(n_layers, len(labels), f"{TITLES[measure]}: b − a", tips, chosen, palette)
    given = {"ends": ends(cells.value), **tokens(labels, subject)}
    return rows_of(chart, tables, len(cells), n_layers, palette, **given)


ONE_SIDE = "this token is on one side only"


def expert_difference(
    compared: Compared, pos_a: int, pos_b: int, *, measure: str = "restoration", layer: int | None = None,
    palette: Palette = LIGHT,
) -> Picture:  # fmt: skip
    """Layer × expert heat map of b − a at a position of each side (see `Compared.experts`). `layer` is framed.

    An expert that is routed on one side only has no difference: it is grey, and its tooltip says what it does there.
    """
    frame = None if layer is None else pd.DataFrame({"layer": [layer]})
    return _expert_difference(compared, pos_a, pos_b, measure, palette).marked(None, frame=frame)


@remembered
def _expert_difference(compared: Compared, pos_a: int, pos_b: int, measure: str, palette: Palette) -> Picture:
    """The map without anything marked; `frame`: the table of the framed layer."""
    prov, grid = compared.a.provenance, compared.experts(pos_a, pos_b)
    grid["value"], grid["defined"] = shade(grid[f"{measure}_difference"])
    for name, column in _expert_difference_tooltips(grid).items():
        grid[name] = column
    keep = ["layer", "column", "value", "defined", *_EXPERT_TIPS]
    routed = grid["where"] != views.NOT_ROUTED
    columns = expert_columns(prov.n_experts, shared=prov.has_shared)
    tables = {
        "not_routed": grid.loc[~routed, keep],
        "one_side": grid.loc[routed & ~grid.defined, keep],
        "both": grid.loc[grid.defined, keep],
        **dense_tables(prov.n_layers, prov.moe_layers, columns, "column"),
        "frame": pd.DataFrame(columns=["layer"]),
    }
    chart = _expert_differences(prov.n_layers, prov.n_experts, prov.has_shared, f"{TITLES[measure]}: b − a", palette)
    return rows_of(chart, tables, len(grid), prov.n_layers, palette, ends=ends(grid.value))


_EXPERT_TIPS = ["t_expert", "t_routed", "t_rescue", "t_restoration", "t_router_weight"]


@design
def _expert_differences(n_layers: int, n_experts: int, shared: bool, title: str, palette: Palette) -> alt.LayerChart:
    """Open: `ends`."""
    at = {"x": expert_axis(n_experts, shared=shared), "y": layer_axis(n_layers)}
    told = at | {"tooltip": tooltip(_EXPERT_TIPS)}
    color = diverging(title, palette, palette.missing)
    empty, lines = dense_rows(palette)
    return alt.layer(
        named("not_routed").mark_rect(color=palette.blank).encode(**told),
        named("one_side").mark_rect(color=palette.missing).encode(**told),
        named("both").mark_rect(stroke=palette.muted, strokeWidth=0.4).encode(color=color, **told),
        empty.encode(**at),
        lines.encode(y=at["y"]),
        outline(named("frame"), palette.mark, width=1.6).encode(y=at["y"]),
    )


def routing_map(compared: Compared, *, palette: Palette = LIGHT) -> Picture:
    """Layer × token heat map of how much the sets of experts of the two clean runs overlap (Jaccard)."""
    cells = compared.routing.copy()
    cells["t_cell"] = [f"layer {r.layer} at {r.label}" for r in named_rows(cells)]
    cells["t_jaccard"] = [overlap(value) for value in cells.jaccard]
    for name in ("both", "only_a", "only_b"):
        cells[f"t_{name}"] = cells[name].replace("", NONE)
    labels, subject = _columns(compared, "a")
    prov = compared.a.provenance
    absent = [label for label in labels if label not in set(cells.label)]
    tables = {
        "cells": cells[["layer", "label", "jaccard", *_OVERLAP_TIPS]],
        **_absent(absent, prov.moe_layers, ONE_SIDE),
        **dense_tables(prov.n_layers, prov.moe_layers, labels, "label"),
    }
    chart = _overlaps(prov.n_layers, len(labels), palette)
    return rows_of(chart, tables, len(cells), prov.n_layers, palette, **tokens(labels, subject))


_OVERLAP_TIPS = ["t_cell", "t_jaccard", "t_both", "t_only_a", "t_only_b"]


@design
def _overlaps(n_layers: int, n_tokens: int, palette: Palette) -> alt.LayerChart:
    """Open: what `marks.tokens` gives."""
    x, y = token_axis(alt.X, n_tokens, palette), layer_axis(n_layers)
    color = alt.Color(
        "jaccard:Q",
        scale=alt.Scale(domain=[0, 1], range=[palette.low, palette.mid], clamp=True, interpolate="rgb"),
        legend=alt.Legend(
            title="Jaccard", orient="top", direction="horizontal", gradientLength=110, gradientThickness=9,
            values=[0, 0.5, 1],
        ),
    )  # fmt: skip
    blank, lines = dense_rows(palette)
    return alt.layer(
        named("cells").mark_rect().encode(x=x, y=y, color=color, tooltip=tooltip(_OVERLAP_TIPS)),
        blank_cells("absent", palette).encode(x=x, y=y),
        blank.encode(x=x, y=y),
        lines.encode(y=y),
    )


def routing_bars(compared: Compared, *, palette: Palette = LIGHT) -> Picture:
    """Per layer: the share of positions with the same set of experts (bar) and the mean Jaccard (tick)."""
    table = compared.routing_layers.copy()
    table["t_layer"] = [f"layer {layer}" for layer in table.layer]
    table["t_same_set"] = [f"{percent(r.same)} of {r.positions} positions" for r in named_rows(table)]
    table["t_mean_Jaccard"] = [overlap(value) for value in table.jaccard]
    n_layers = compared.a.provenance.n_layers
    height = max(n_layers * row_height(n_layers), 60)
    return finish(_agreements(n_layers, palette), {"layers": table}, 2 * len(table), height, palette)


@design
def _agreements(n_layers: int, palette: Palette) -> alt.LayerChart:
    tips = tooltip(["t_layer", "t_same_set", "t_mean_Jaccard"])
    y = layer_axis(n_layers)
    axis = alt.Axis(labelExpr=PERCENT, tickCount=5, grid=True)
    x = alt.X(
        "same:Q", title="same set of experts (bar), mean Jaccard (tick)", scale=alt.Scale(domain=[0, 1]), axis=axis
    )
    base = named("layers")
    ticks = base.mark_tick(color=palette.ink, thickness=2.5, size=max(row_height(n_layers) - 8, 6))
    return alt.layer(
        base.mark_bar(color=palette.kept).encode(x=x, y=y, tooltip=tips),
        ticks.encode(x=alt.X("jaccard:Q"), y=y, tooltip=tips),
    )


def _columns(compared: Compared, side: str) -> tuple[list[str], list[str]]:
    """(labels of the columns of a side's map, those of the subject): shared where the prompts correspond."""
    columns = compared.alignment.columns
    if columns:
        return [c.label for c in columns], [c.label for c in columns if c.subject]
    result = compared.side(side)
    labels = views.token_labels(result)
    return labels, [labels[pos] for pos in result.provenance.subject_positions]


def _column_of(compared: Compared, side: str, positions: pd.Series) -> list[int]:
    if not compared.alignment.columns:
        return [int(pos) for pos in positions]
    at = {getattr(c, side): i for i, c in enumerate(compared.alignment.columns)}
    return [at[int(pos)] for pos in positions]


def _absent(labels: list[str], layers: list[int], why: str) -> dict[str, pd.DataFrame]:
    """The table of the cells of columns that have no token here; none where all have."""
    if not labels:
        return {}
    rows = pd.MultiIndex.from_product([layers, labels], names=["layer", "label"]).to_frame(index=False)
    rows["t_note"], rows["t_kind"] = rows.label, why
    return {"absent": rows}


def _difference_tooltips(cells: pd.DataFrame) -> dict[str, list[str]]:
    rows = list(named_rows(cells))
    return {
        "t_cell": [f"layer {r.layer} at {r.label}" for r in rows],
        "t_rescue": [_from_to(r.rescue_a, r.rescue_b, r.rescue_difference) for r in rows],
        "t_restoration": [_from_to(r.restoration_a, r.restoration_b, r.restoration_difference) for r in rows],
    }


def _expert_difference_tooltips(grid: pd.DataFrame) -> dict[str, list[str]]:
    rows = list(named_rows(grid))
    where = [r.status_a if r.where == BOTH and r.status_a == r.status_b else r.where for r in rows]
    return {
        "t_expert": [r.name for r in rows],
        "t_routed": where,
        "t_rescue": [_from_to(r.rescue_a, r.rescue_b, r.rescue_difference) for r in rows],
        "t_restoration": [_from_to(r.restoration_a, r.restoration_b, r.restoration_difference) for r in rows],
        "t_router_weight": [
            f"clean: a {weight(r.router_weight_clean_a)}, b {weight(r.router_weight_clean_b)}" for r in rows
        ],
    }


def _from_to(a: float, b: float, difference: float) -> str:
    return f"a {logits(a)}, b {logits(b)}, b − a {logits(difference)}"
