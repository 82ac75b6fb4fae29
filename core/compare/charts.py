"""The pictures of two traces side by side: maps on shared axes and one colour scale, differences, routing agreement.

Altair only; no Streamlit, no model, no files.
"""

from __future__ import annotations

import altair as alt
import pandas as pd

from .. import views
from ..formats import NONE, logits, overlap, percent, weight
from ..marks import (
    PERCENT,
    TITLES,
    dense_rows,
    diverging,
    expert_axis,
    expert_columns,
    layer_axis,
    outline,
    row_height,
    rows_of,
    selection,
    shade,
    token_axis,
    tooltip,
)
from ..palette import LIGHT, Palette
from ..picture import Picture, Tables, finish, limit, unchecked
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
@unchecked
def _side_map(compared: Compared, side: str, measure: str, palette: Palette, end: float | None) -> Picture:
    """The map without anything marked."""
    data, result = Tables(), compared.mapped(side)
    cells = views.layer_cells(result)
    cells["value"], cells["defined"] = shade(cells[measure])
    cells = pd.concat([cells.reset_index(drop=True), cell_tooltips(result, cells)], axis=1)
    labels, subject = _columns(compared, side)
    cells["label"] = [labels[column] for column in _column_of(compared, side, cells.pos)]
    n_layers = max(compared.side(s).provenance.n_layers for s in SIDES)
    x, y = token_axis(alt.X, labels, subject, palette), layer_axis(n_layers)
    picked = selection("cell", {"layer": None, "pos": None}, False)
    base = alt.Chart(data(cells[["layer", "pos", "label", "value", "defined", *cell_tooltips.columns]]))
    color = diverging(cells.value, TITLES[measure], palette, palette.missing, end=end)
    heat = base.mark_rect(cursor="pointer").encode(x=x, y=y, color=color, tooltip=tooltip(cell_tooltips.columns))
    layers: list[alt.Chart] = [heat.add_params(picked)]
    prov = result.provenance
    if absent := [label for label in labels if label not in set(cells.label)]:
        layers.append(_absent(absent, prov.moe_layers, data, palette, f"no such token in {side}").encode(x=x, y=y))
    if dense := [layer for layer in range(prov.n_layers) if layer not in prov.moe_layers]:
        blank, lines = dense_rows(dense, labels, palette, data, "label")
        layers += [blank.encode(x=x, y=y), lines.encode(y=y)]
    layers.append(outline(base, palette.mark).encode(x=x, y=y).transform_filter(picked))
    return rows_of(alt.layer(*layers), data, len(cells), n_layers, palette)


def difference_map(
    compared: Compared, *, measure: str = "restoration", chosen: Cell | None = None, palette: Palette = LIGHT
) -> Picture:
    """Layer × token heat map of b − a. Selection `difference` with fields layer and column; `chosen` is preset."""
    selected = None if chosen is None else dict(zip(("layer", "column"), chosen, strict=True))
    return _difference_map(compared, measure, palette).marked(selected)


@remembered
@unchecked
def _difference_map(compared: Compared, measure: str, palette: Palette) -> Picture:
    """The map without anything marked."""
    data, cells = Tables(), compared.cells.copy()
    there = cells.pos_a.notna() & cells.pos_b.notna()
    cells["value"], cells["defined"] = shade(cells[f"{measure}_difference"])
    for name, column in _difference_tooltips(cells).items():
        cells[name] = column
    labels, subject = _columns(compared, "a")
    prov = compared.a.provenance
    x, y = token_axis(alt.X, labels, subject, palette), layer_axis(prov.n_layers)
    picked = selection("difference", {"layer": None, "column": None}, False)
    tips = ["t_cell", "t_rescue", "t_restoration"]
    base = alt.Chart(data(cells.loc[there, ["layer", "column", "label", "value", "defined", *tips]]))
    color = diverging(cells.value, f"{TITLES[measure]}: b − a", palette, palette.missing)
    heat = base.mark_rect(cursor="pointer").encode(x=x, y=y, color=color, tooltip=tooltip(tips))
    layers: list[alt.Chart] = [heat.add_params(picked)]
    if absent := list(dict.fromkeys(cells.label[~there])):
        why = "this token is on one side only"
        layers.append(_absent(absent, compared.layers, data, palette, why).encode(x=x, y=y))
    if dense := [layer for layer in range(prov.n_layers) if layer not in compared.layers]:
        blank, lines = dense_rows(dense, labels, palette, data, "label")
        layers += [blank.encode(x=x, y=y), lines.encode(y=y)]
    layers.append(outline(base, palette.mark).encode(x=x, y=y).transform_filter(picked))
    return rows_of(alt.layer(*layers), data, len(cells), prov.n_layers, palette)


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
@unchecked
def _expert_difference(compared: Compared, pos_a: int, pos_b: int, measure: str, palette: Palette) -> Picture:
    """The map without anything marked; `frame`: the table of the framed layer."""
    data, prov = Tables(), compared.a.provenance
    grid = compared.experts(pos_a, pos_b)
    grid["value"], grid["defined"] = shade(grid[f"{measure}_difference"])
    for name, column in _expert_difference_tooltips(grid).items():
        grid[name] = column
    columns = expert_columns(prov.n_experts, shared=prov.has_shared)
    x = expert_axis(prov.n_experts, shared=prov.has_shared)
    y = layer_axis(prov.n_layers)
    tips = ["t_expert", "t_routed", "t_rescue", "t_restoration", "t_router_weight"]
    keep = ["layer", "column", "value", "defined", *tips]
    routed = grid["where"] != views.NOT_ROUTED
    blank = alt.Chart(data(grid.loc[~routed, keep])).mark_rect(color=palette.blank)
    one_side = alt.Chart(data(grid.loc[routed & ~grid.defined, keep])).mark_rect(color=palette.missing)
    both = alt.Chart(data(grid.loc[grid.defined, keep])).mark_rect(stroke=palette.muted, strokeWidth=0.4)
    color = diverging(grid.value, f"{TITLES[measure]}: b − a", palette, palette.missing)
    layers: list[alt.Chart] = [
        blank.encode(x=x, y=y, tooltip=tooltip(tips)),
        one_side.encode(x=x, y=y, tooltip=tooltip(tips)),
        both.encode(x=x, y=y, color=color, tooltip=tooltip(tips)),
    ]
    if dense := [i for i in range(prov.n_layers) if i not in prov.moe_layers]:
        empty, lines = dense_rows(dense, columns, palette, data, "column")
        layers += [empty.encode(x=x, y=y), lines.encode(y=y)]
    frame = alt.Chart(data(pd.DataFrame(columns=["layer"]), "frame"))
    layers.append(outline(frame, palette.mark, width=1.6).encode(y=y))
    return rows_of(alt.layer(*layers), data, len(grid), prov.n_layers, palette)


@unchecked
def routing_map(compared: Compared, *, palette: Palette = LIGHT) -> Picture:
    """Layer × token heat map of how much the sets of experts of the two clean runs overlap (Jaccard)."""
    data, cells = Tables(), compared.routing.copy()
    cells["t_cell"] = [f"layer {r.layer} at {r.label}" for r in cells.itertuples()]
    cells["t_jaccard"] = [overlap(value) for value in cells.jaccard]
    for name in ("both", "only_a", "only_b"):
        cells[f"t_{name}"] = cells[name].replace("", NONE)
    labels, subject = _columns(compared, "a")
    prov = compared.a.provenance
    x, y = token_axis(alt.X, labels, subject, palette), layer_axis(prov.n_layers)
    tips = ["t_cell", "t_jaccard", "t_both", "t_only_a", "t_only_b"]
    color = alt.Color(
        "jaccard:Q",
        scale=alt.Scale(domain=[0, 1], range=[palette.low, palette.mid], clamp=True, interpolate="rgb"),
        legend=alt.Legend(
            title="Jaccard", orient="top", direction="horizontal", gradientLength=110, gradientThickness=9,
            values=[0, 0.5, 1],
        ),
    )  # fmt: skip
    base = alt.Chart(data(cells[["layer", "label", "jaccard", *tips]]))
    layers: list[alt.Chart] = [base.mark_rect().encode(x=x, y=y, color=color, tooltip=tooltip(tips))]
    if absent := [label for label in labels if label not in set(cells.label)]:
        why = "this token is on one side only"
        layers.append(_absent(absent, prov.moe_layers, data, palette, why).encode(x=x, y=y))
    if dense := [layer for layer in range(prov.n_layers) if layer not in prov.moe_layers]:
        blank, lines = dense_rows(dense, labels, palette, data, "label")
        layers += [blank.encode(x=x, y=y), lines.encode(y=y)]
    return rows_of(alt.layer(*layers), data, len(cells), prov.n_layers, palette)


@unchecked
def routing_bars(compared: Compared, *, palette: Palette = LIGHT) -> Picture:
    """Per layer: the share of positions with the same set of experts (bar) and the mean Jaccard (tick)."""
    data, table = Tables(), compared.routing_layers.copy()
    table["t_layer"] = [f"layer {layer}" for layer in table.layer]
    table["t_same_set"] = [f"{percent(r.same)} of {r.positions} positions" for r in table.itertuples()]
    table["t_mean_Jaccard"] = [overlap(value) for value in table.jaccard]
    tips = tooltip(["t_layer", "t_same_set", "t_mean_Jaccard"])
    n_layers = compared.a.provenance.n_layers
    y = layer_axis(n_layers)
    axis = alt.Axis(labelExpr=PERCENT, tickCount=5, grid=True)
    x = alt.X(
        "same:Q", title="same set of experts (bar), mean Jaccard (tick)", scale=alt.Scale(domain=[0, 1]), axis=axis
    )
    base = alt.Chart(data(table))
    bars = base.mark_bar(color=palette.kept).encode(x=x, y=y, tooltip=tips)
    ticks = base.mark_tick(color=palette.ink, thickness=2.5, size=max(row_height(n_layers) - 8, 6)).encode(
        x=alt.X("jaccard:Q"), y=y, tooltip=tips
    )
    height = max(n_layers * row_height(n_layers), 60)
    return finish(alt.layer(bars, ticks), data, 2 * len(table), height, palette)


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


def _absent(labels: list[str], layers: list[int], data: Tables, palette: Palette, why: str) -> alt.Chart:
    """Blank cells of columns that have no token here."""
    rows = pd.MultiIndex.from_product([layers, labels], names=["layer", "label"]).to_frame(index=False)
    rows["t_note"], rows["t_kind"] = rows.label, why
    return alt.Chart(data(rows)).mark_rect(color=palette.blank).encode(tooltip=tooltip(["t_note", "t_kind"]))


def _difference_tooltips(cells: pd.DataFrame) -> dict[str, list[str]]:
    return {
        "t_cell": [f"layer {r.layer} at {r.label}" for r in cells.itertuples()],
        "t_rescue": [_from_to(r.rescue_a, r.rescue_b, r.rescue_difference) for r in cells.itertuples()],
        "t_restoration": [
            _from_to(r.restoration_a, r.restoration_b, r.restoration_difference) for r in cells.itertuples()
        ],
    }


def _expert_difference_tooltips(grid: pd.DataFrame) -> dict[str, list[str]]:
    rows = list(grid.itertuples())
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
