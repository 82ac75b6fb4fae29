"""The maps of the Compare page: layer × token of both sides and their difference, layer × expert, routing."""

from __future__ import annotations

import functools

import pandas as pd
import streamlit as st

from core import charts, views
from core.compare import charts as compare_charts
from core.compare.link import SIDES, Pair
from core.compare.tables import BOTH, COMPARED, Compared
from core.links import MEASURES, View
from core.picture import Picture
from core.requests import digest
from core.results import TraceResult
from core.tooltips import number

from . import address, compare_state, downloads, pictures, text
from .answers import answer

MAPS = (
    "One cell per MoE layer and token, as on the Trace page, on one colour scale. Blue brings the answer back, orange "
    "drives it further away. Click a cell to read it on both sides."
)
SHARED_COLUMNS = {
    True: " Tokens that correspond stand in the same column; blank: no such token on that side.",
    False: "",
}
DIFFERENCE = "b − a, cell by cell: blue cells restore more in b, orange ones more in a. Grey: missing on a side."
EXPERTS = "The update of one expert alone, at the chosen token of each side. Blank: not routed there."
EXPERT_DIFFERENCE = (
    "b − a, expert by expert. Grey: routed on one side only, where there is nothing to subtract. Blank: on neither."
)
ROUTING = (
    "The sets of experts that each token goes to in the two clean runs: Jaccard = experts in both ÷ experts in either. "
    "Pale: the same set; orange: none in common."
)
BARS = "Per layer: the share of positions whose sets are the same, and the mean Jaccard."


def draw(compared: Compared, pair: Pair) -> None:
    """Everything below the numbers."""
    where = _place(compared, pair)
    _switch(pair)
    _token_maps(compared, pair, where)
    if where is not None:
        _cell(compared, *where)
    st.markdown("##### Experts")
    if compared.no_experts:
        st.info(f"Experts are not compared. {text.plain(compared.no_experts)}")
    else:
        _experts(compared, pair, where)
    st.markdown("##### Routing of the clean runs")
    if compared.no_routing:
        st.info(f"Routing is not compared. {text.plain(compared.no_routing)}")
    else:
        _routing(compared)


def _place(compared: Compared, pair: Pair) -> tuple[int, int | None, int | None] | None:
    """(layer, position in a, position in b) of the chosen cell; by default a's best. None without cells.

    What is not in the results is dropped; where tokens correspond the one position implies the other.
    """
    prov = {side: compared.side(side).provenance for side in SIDES}
    pos = {side: pair.side(side).view.pos for side in SIDES}
    pos = {s: p if p is not None and p < len(prov[s].tokens) else None for s, p in pos.items()}
    layer = pair.a.view.layer if pair.a.view.layer is not None else pair.b.view.layer
    if all(layer not in prov[side].moe_layers for side in SIDES) or set(pos.values()) == {None}:
        best = views.best_cell(compared.a)
        if best is None:
            return None
        layer, pos = best[0], {"a": best[1], "b": None}
    for one, other in (("a", "b"), ("b", "a")):
        if pos[one] is not None and compared.alignment.columns:
            partner = compared.alignment.partner(one, pos[one])
            if one == "a" or pos[other] is None:
                pos[other] = partner
    return layer, pos["a"], pos["b"]  # type: ignore[return-value]


def _switch(pair: Pair) -> None:
    key = address.key("measure")
    measure = pair.a.view.measure

    def change() -> None:
        compare_state.HERE.change(compare_state.HERE.value.measured(st.session_state[key] or MEASURES[0]))

    st.segmented_control(
        "What the colours show", MEASURES, default=measure, key=key, required=True,
        on_change=address.callback(key, change), label_visibility="collapsed",
        format_func=lambda m: "restoration" if m == "restoration" else "rescue in logits",
        help="restoration = mean rescue ÷ mean drop: 0 as corrupt, 1 as clean. rescue = contrast − corrupt contrast.",
    )  # fmt: skip


def _header(title: str, name: str, compared: Compared, picture: Picture, table: pd.DataFrame) -> None:
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown(f"**{title}**", width="content")
        downloads.of_pair(name, title, compared, picture, table)


def _ident(compared: Compared) -> str:
    marks = [(r.request.to_dict(), r.provenance.fingerprint, r.provenance.created) for r in (compared.a, compared.b)]
    return digest(marks)[:10]


def _token_maps(compared: Compared, pair: Pair, where: tuple[int, int | None, int | None] | None) -> None:
    measure, theme = pair.a.view.measure, pictures.theme()
    cells = {side: pictures.kept(views.layer_cells, compared.side(side)) for side in SIDES}
    end = compare_charts.scale_end(list(cells.values()), [measure])
    n = len(compared.alignment.columns) or max(len(compared.side(side).provenance.tokens) for side in SIDES)
    least = 330 if n <= 16 else 700
    with st.grid(2 if compared.no_cells else 3, min_column_width=least, gap="medium"):
        for side in SIDES:
            with st.container():
                _side_map(compared, side, where, measure=measure, end=end, table=cells[side])
        if not compared.no_cells:
            with st.container():
                _difference(compared, where, measure)
    note = SHARED_COLUMNS[bool(compared.alignment.columns) and not compared.alignment.same_tokens]
    st.caption(MAPS + note + (f" {DIFFERENCE}" if not compared.no_cells else ""))
    if compared.no_cells:
        st.info(f"There is no difference map. {text.plain(compared.no_cells)}")
    del theme


def _side_map(
    compared: Compared, side: str, where: tuple[int, int | None, int | None] | None, *, measure: str, end: float,
    table: pd.DataFrame,
) -> None:  # fmt: skip
    pos = None if where is None else where[1 + SIDES.index(side)]
    layers = compared.side(side).provenance.moe_layers
    cell = None if where is None or pos is None or where[0] not in layers else (where[0], pos)
    theme = pictures.theme()
    slot = pictures.slot(f"compare_{side}", (_ident(compared), compared.same_model, measure, theme.name), cell)
    picture = pictures.kept(
        compare_charts.side_map, compared, side, measure=measure, chosen=slot.preset, palette=theme, end=end
    )
    _header(side, f"compare-{side}", compared, picture, table)

    def pick(mark: dict[str, int]) -> None:
        slot.picked = (mark["layer"], mark["pos"])
        if slot.picked != cell:
            _look(compared, side, where, *slot.picked)

    best = views.best_cell(compared.side(side))
    alt = f"Layer by token heat map of {side}" + (f"; the highest is layer {best[0]}, position {best[1]}" if best else "")
    pictures.show(picture, key=slot.key, selection="cell", on_pick=pick, alt=alt)


def _look(
    compared: Compared, side: str, where: tuple[int, int | None, int | None] | None, layer: int, pos: int
) -> None:
    """A cell of one side was clicked: the other side follows where it has such a token, and else stays."""
    other = compared.alignment.partner(side, pos)
    if not compared.alignment.columns and where is not None:
        other = where[2 if side == "a" else 1]
    a, b = (pos, other) if side == "a" else (other, pos)
    compare_state.look(layer=layer, pos_a=a, pos_b=b)


def _difference(compared: Compared, where: tuple[int, int | None, int | None] | None, measure: str) -> None:
    theme, columns = pictures.theme(), compared.alignment.columns
    cell = None
    if where is not None:
        column = compared.alignment.column_of("a", where[1])
        column = compared.alignment.column_of("b", where[2]) if column is None else column
        cell = None if column is None else (where[0], column)
    slot = pictures.slot("compare_difference", (_ident(compared), compared.same_model, measure, theme.name), cell)
    picture = pictures.kept(
        compare_charts.difference_map, compared, measure=measure, chosen=slot.preset, palette=theme
    )
    _header("b − a", "compare-difference", compared, picture, compared.cells)

    def pick(mark: dict[str, int]) -> None:
        slot.picked = (mark["layer"], mark["column"])
        if slot.picked != cell:
            column = columns[mark["column"]]
            compare_state.look(layer=mark["layer"], pos_a=column.a, pos_b=column.b)

    pictures.show(picture, key=slot.key, selection="difference", on_pick=pick, alt="Layer by token heat map of b − a")


def _cell(compared: Compared, layer: int, pos_a: int | None, pos_b: int | None) -> None:
    """The chosen cell on both sides, in a sentence."""
    told, values = [], {}
    for side, pos in (("a", pos_a), ("b", pos_b)):
        result = compared.side(side)
        cells = pictures.kept(views.layer_cells, result)
        found = cells[(cells.layer == layer) & (cells.pos == (-1 if pos is None else pos))]
        if found.empty:
            told.append(f"{side} has no such cell")
            continue
        row = found.iloc[0]
        values[side] = row
        restored = "missing" if pd.isna(row.restoration) else number(row.restoration, 3)
        told.append(f"{side} at {text.plain(row.label)} rescue **{number(row.rescue, 3, True)}**, restoration {restored}")
    change = ""
    if len(values) == 2:
        change = "; b − a: " + ", ".join(
            f"{name} {number(values['b'][name] - values['a'][name], 3, True)}" for name in COMPARED
        )
    st.markdown(f"Layer patch at layer {layer}: {'; '.join(told)}{change}.")


def _experts(compared: Compared, pair: Pair, where: tuple[int, int | None, int | None] | None) -> None:
    layer, *positions = where or (None, None, None)
    chosen = dict(zip(SIDES, positions, strict=True))
    for side in SIDES:
        if chosen[side] is None:
            st.caption(f"The chosen token is not on side {side}, so there are no experts to compare. Choose another one.")
            return
    at: dict[str, TraceResult] = {}
    for side in SIDES:
        found = _with_experts(compared.side(side), chosen[side], side)
        if found is not None:
            at[side] = found
    if len(at) < 2:
        return
    measure, theme = pair.a.view.measure, pictures.theme()
    table = pictures.kept(_expert_table, compared, at["a"], at["b"], chosen["a"], chosen["b"])
    end = compare_charts.scale_end([table], [f"{measure}_{side}" for side in SIDES])
    prov = compared.a.provenance
    with st.grid(3, min_column_width=330 if prov.n_experts <= 24 else 700, gap="medium"):
        for side in SIDES:
            with st.container():
                result, pos = at[side], chosen[side]
                picture = pictures.kept(
                    charts.layer_expert, result, pos, view=View(measure, pos, layer), palette=theme, end=end
                )
                title = f"{side} at “{views.token_labels(result)[pos]}”"
                grid = pictures.kept(views.expert_grid, result, pos)
                _header(text.plain(title), f"compare-experts-{side}", compared, picture, grid)
                key = f"compare-experts-{side}-{_ident(compared)}-{pos}-{measure}-{layer}"
                pictures.still(picture, key=key, alt=f"Layer by expert heat map of {side}")
        with st.container():
            picture = pictures.kept(_expert_difference, compared, at["a"], table_of=at["b"], positions=tuple(positions),
                                    measure=measure, layer=layer, palette=theme)
            _header("b − a", "compare-experts-difference", compared, picture, table)
            key = f"compare-experts-difference-{_ident(compared)}-{positions}-{measure}-{layer}"
            pictures.still(picture, key=key, alt="Layer by expert heat map of b − a")
    one = int((table["where"].isin([views.NOT_ROUTED, BOTH]) == False).sum())  # noqa: E712
    st.caption(f"{EXPERTS} {EXPERT_DIFFERENCE} Here {one} experts are routed on one side only.")


def _routing(compared: Compared) -> None:
    theme = pictures.theme()
    with st.grid(2, min_column_width=430, gap="medium"):
        with st.container():
            picture = pictures.kept(compare_charts.routing_map, compared, palette=theme)
            _header("Overlap of the sets of experts", "compare-routing", compared, picture, compared.routing)
            pictures.still(picture, key=f"compare-routing-{_ident(compared)}", alt="Layer by token map of the Jaccard")
            st.caption(ROUTING)
        with st.container():
            picture = pictures.kept(compare_charts.routing_bars, compared, palette=theme)
            table = compared.routing_layers
            _header("By layer", "compare-routing-layers", compared, picture, table)
            pictures.still(picture, key=f"compare-bars-{_ident(compared)}", alt="Routing agreement of each layer")
            st.caption(BARS)
