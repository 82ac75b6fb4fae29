"""The maps of the Compare page: layer × token of both sides and their difference, layer × expert, routing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import streamlit as st

from core import charts, sites, views
from core.compare import charts as compare_charts
from core.compare.align import same_role
from core.compare.link import SIDES, Pair
from core.compare.tables import COMPARED, ONLY_A, ONLY_B, Compared
from core.formats import count, logit, logits, restoration
from core.links import MEASURES, View
from core.picture import Picture
from core.requests import digest
from core.results import MIN_DROP, TraceResult

from . import address, compare_state, downloads, map_switches, pictures, present, text
from .answers import answer
from .compare_state import together

BOTH = {side: side for side in SIDES}
MAPS = (
    "One colour scale for both. Blue brings the answer back, orange drives it further away. Click a cell to read it on "
    "both sides."
)
HELP_MEASURE = "restoration = mean rescue ÷ mean drop: 0 as corrupt, 1 as clean. rescue = contrast − corrupt contrast."
SHARED_COLUMNS = " Tokens that correspond stand in the same column; blank: no such token on that side."
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


@dataclass(frozen=True)
class Place:
    """The chosen cell: a layer, and a position on each side (None: no such token there)."""

    layer: int
    a: int | None
    b: int | None

    def on(self, side: str) -> int | None:
        """The position on side `a` or `b`."""
        return self.a if side == "a" else self.b


def draw(compared: Compared, pair: Pair, *, maps: bool) -> None:
    """Everything below the switches. `maps`: whether what the layer × token maps show is there."""
    where, measure = place(compared, pair), pair.a.view.measure
    if maps:
        _token_maps(compared, where, measure)
        if where is not None:
            cell(compared, where)
    st.markdown("##### Experts")
    if compared.no_experts:
        st.info(f"Experts are not compared. {text.plain(compared.no_experts)}")
    elif where is not None:
        _experts(compared, where, measure)
    st.markdown("##### Routing of the clean runs")
    if compared.no_routing:
        st.info(f"Routing is not compared. {text.plain(compared.no_routing)}")
    else:
        _routing(compared)


def place(compared: Compared, pair: Pair) -> Place | None:
    """The cell that the link names; by default a's last token, where the expert patches are there already, and the
    layer that restores most of it. None without cells.

    What is not in the results is dropped; where tokens correspond, the one position implies the other.
    """
    prov = {side: compared.mapped(side).provenance for side in SIDES}
    asked = {side: pair.side(side).view.pos for side in SIDES}
    pos = {s: p if p is not None and p < len(prov[s].tokens) else None for s, p in asked.items()}
    layer = pair.a.view.layer if pair.a.view.layer is not None else pair.b.view.layer
    if layer is None or not any(layer in prov[side].moe_layers for side in SIDES) or set(pos.values()) == {None}:
        cells = views.layer_cells(compared.mapped("a"))
        pos = {"a": views.last_pos(compared.a), "b": None}
        here = cells[cells.pos == pos["a"]]
        if here.empty:
            return None
        layer = int(here.loc[here.rescue.idxmax(), "layer"])
    if not compared.alignment.columns:
        for one, other in (("a", "b"), ("b", "a")):
            if pos[other] is None:
                pos[other] = same_role(compared.side(one), pos[one], compared.side(other))  # type: ignore[arg-type]
        return Place(layer, pos["a"], pos["b"])
    if pos["a"] is not None:
        return Place(layer, pos["a"], compared.alignment.partner("a", pos["a"]))
    return Place(layer, compared.alignment.partner("b", pos["b"]), pos["b"])  # type: ignore[arg-type]


def switches(pair: Pair, n_layers: int) -> None:
    """What the colours show, what both layer × token maps patch, and in how many layers at once."""
    a, b = pair.a.view, pair.b.view
    key = address.key("measure")

    def site(key: str) -> Callable[[], None]:
        return address.callback(key, lambda: compare_state.show(site=st.session_state[key] or sites.MOE))

    def window(key: str) -> Callable[[], None]:
        return address.callback(key, lambda: compare_state.show(window=st.session_state[key] or 1))

    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        st.segmented_control(
            "What the colours show", MEASURES, default=a.measure, key=key, wrap=True, required=True,
            on_change=address.callback(
                key, lambda: compare_state.show(measure=st.session_state[key] or MEASURES[0])
            ),
            format_func=lambda m: "restoration" if m == "restoration" else "rescue in logits", help=HELP_MEASURE,
        )  # fmt: skip
        both = a.site if a.site == b.site else None
        map_switches.site(both, key=address.key(f"compare site {both}"), callback=site)
        both = a.window if a.window == b.window else None
        map_switches.window(both, n_layers=n_layers, key=address.key(f"compare window {both}"), callback=window)


def _header(title: str, name: str, compared: Compared, picture: Picture, table: pd.DataFrame, *, of: str = "") -> None:
    """A picture's title and its downloads. `of`: what the title goes on with away from the page."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown(f"**{text.plain(title)}**", width="content")
        downloads.menu(name, title + of, compared, picture, table)


def _ident(compared: Compared) -> str:
    marks = [(r.request.to_dict(), r.provenance.fingerprint, r.provenance.created) for r in (compared.a, compared.b)]
    maps = [compared.site(side) for side in SIDES]
    return digest(marks, compared.same_model, maps)[:10]


def _token_maps(compared: Compared, where: Place | None, measure: str) -> None:
    cells = {side: views.layer_cells(compared.mapped(side)) for side in SIDES}
    end = compare_charts.scale_end(list(cells.values()), [measure])
    n = len(compared.alignment.columns) or max(len(compared.side(side).provenance.tokens) for side in SIDES)
    with st.grid(2 if compared.no_cells else 3, min_column_width=270 if n <= 16 else 700, gap="medium"):
        for side in SIDES:
            with st.container():
                _side_map(compared, side, where, measure=measure, end=end, table=cells[side])
        if not compared.no_cells:
            with st.container():
                _difference(compared, where, measure)
    shared = compared.alignment.columns and not compared.alignment.same_tokens
    missing = missing_note([(side, compared.side(side)) for side in SIDES], measure)
    difference = "" if compared.no_cells else f" {DIFFERENCE}"
    present.caption(f"{_meaning(compared)} {MAPS}{SHARED_COLUMNS if shared else ''}{difference}{missing}")
    if compared.no_cells:
        st.info(f"There is no difference map. {text.plain(compared.no_cells)}")


def missing_note(sides: Sequence[tuple[str, TraceResult]], measure: str) -> str:
    """Why a map of some sides (name, result) is grey, where all of it is; empty otherwise."""
    grey = [name for name, result in sides if measure == "restoration" and result.drop < MIN_DROP]
    if not grey:
        return ""
    where = " and ".join(grey)
    return f" {where}: the drop is below {MIN_DROP:g} logits, so restoration is missing; rescue in logits is there."


def _meaning(compared: Compared) -> str:
    """What one cell patches, on both sides or on each."""
    told = {side: sites.cell_meaning(*compared.site(side)) for side in SIDES}
    if told["a"] == told["b"]:
        return told["a"]
    start = "One cell per layer and token: "
    return start + " ".join(f"{side}: {sentence.removeprefix(start)}" for side, sentence in told.items())


def _side_map(
    compared: Compared, side: str, where: Place | None, *, measure: str, end: float, table: pd.DataFrame
) -> None:
    pos = None if where is None else where.on(side)
    there = where is not None and pos is not None and where.layer in compared.mapped(side).provenance.moe_layers
    cell = (where.layer, pos) if there else None
    theme = pictures.theme()
    slot = pictures.slot(f"compare_{side}", (_ident(compared), measure, theme.name), cell)
    picture = pictures.kept(
        compare_charts.side_map, compared, side, measure=measure, chosen=slot.preset, palette=theme, end=end
    )
    site = compared.site(side)
    title = side if site == (sites.MOE, 1) else f"{side} · {sites.map_name(*site)}"
    seen = picture if cell is None else pictures.as_seen(picture, slot, layer=cell[0], pos=cell[1])
    _header(title, f"compare-{side}", compared, seen, table, of=": layer × token")

    def pick(mark: dict[str, int]) -> None:
        slot.picked = (mark["layer"], mark["pos"])
        if slot.picked == cell:
            return
        other = compared.alignment.partner(side, mark["pos"])
        if not compared.alignment.columns and where is not None:
            other = where.on("b" if side == "a" else "a")
        a, b = (mark["pos"], other) if side == "a" else (other, mark["pos"])
        compare_state.look(layer=mark["layer"], pos_a=a, pos_b=b)

    best = views.best_cell(compared.mapped(side))
    told = f"; the highest is layer {best[0]}, position {best[1]}" if best else ""
    alt = f"Layer by token heat map of {side}{told}"
    pictures.show(picture, key=slot.key, selection="cell", on_pick=pick, alt=alt)


def _difference(compared: Compared, where: Place | None, measure: str) -> None:
    theme, alignment = pictures.theme(), compared.alignment
    column = None
    if where is not None and where.a is not None and where.b is not None:
        column = alignment.column_of("a", where.a)
    cell = None if where is None or column is None else (where.layer, column)
    slot = pictures.slot("compare_difference", (_ident(compared), measure, theme.name), cell)
    picture = pictures.kept(compare_charts.difference_map, compared, measure=measure, chosen=slot.preset, palette=theme)
    seen = picture if cell is None else pictures.as_seen(picture, slot, layer=cell[0], column=cell[1])
    _header("b − a", "compare-difference", compared, seen, compared.cells, of=": layer × token")

    def pick(mark: dict[str, int]) -> None:
        slot.picked = (mark["layer"], mark["column"])
        if slot.picked != cell:
            chosen = alignment.columns[mark["column"]]
            compare_state.look(layer=mark["layer"], pos_a=chosen.a, pos_b=chosen.b)

    pictures.show(picture, key=slot.key, selection="difference", on_pick=pick, alt="Layer by token heat map of b − a")


def cell(compared: Compared, where: Place, sides: Mapping[str, str] = BOTH) -> None:
    """The chosen cell in a sentence. `sides`: what each side is called, and which of `compared` it is."""
    told, values = [], {}
    for name, side in sides.items():
        cells = views.layer_cells(compared.mapped(side))
        found = cells[(cells.layer == where.layer) & (cells.pos == (-1 if (pos := where.on(side)) is None else pos))]
        if found.empty:
            told.append(f"{name} has no such cell")
            continue
        row = values[side] = found.iloc[0]
        restored = "missing" if pd.isna(row.restoration) else restoration(row.restoration)
        rescue = logits(row.rescue)
        spread = "" if pd.isna(row.rescue_sd) else f" (sd {logit(row.rescue_sd)} over {count(row.draws)} draws)"
        told.append(f"{name} at “{text.plain(row.label)}” rescue **{rescue}**{spread}, restoration {restored}")
    if len(values) == 2 and not compared.no_cells:
        pairs = [(name, *(values[side][name] for side in SIDES)) for name in COMPARED]
        changes = [f"{name} {logits(b - a)}" for name, a, b in pairs if not pd.isna(b - a)]
        told.append(f"b − a {', '.join(changes)}")
    maps = [compared.site(side) for side in sides.values()]
    what = "Layer patch" if set(maps) == {(sites.MOE, 1)} else f"Patch of {sites.map_name(*maps[0])}"
    st.markdown(f"{what if maps[0] == maps[-1] else 'Patches'} at layer {where.layer}: {'; '.join(told)}.")


def _experts(compared: Compared, where: Place, measure: str) -> None:
    """Both sides' layer × expert maps at the chosen token, and their difference."""
    if where.a is None or where.b is None:
        side = "a" if where.a is None else "b"
        st.caption(f"The chosen token is not on side {side}, so there are no experts to compare. Choose another one.")
        return
    found = [_with_experts(compared.side(side), where.on(side), side) for side in SIDES]
    if found[0] is None or found[1] is None:
        return
    at = together(found[0], found[1], compared.same_model, compared.at_a, compared.at_b)
    theme = pictures.theme()
    table = at.experts(where.a, where.b)
    end = compare_charts.scale_end([table], [f"{measure}_{side}" for side in SIDES])
    ident = f"{_ident(at)}-{where}-{measure}"
    few = compared.a.provenance.n_experts <= 24
    with st.grid(3, min_column_width=270 if few else 700, gap="medium"):
        for side in SIDES:
            with st.container():
                result, pos = at.side(side), where.on(side)
                view = View(measure, pos, where.layer)
                picture = pictures.kept(charts.layer_expert, result, pos, view=view, palette=theme, end=end)
                title = f"{side} at “{views.token_labels(result)[pos]}”"
                grid = views.expert_grid(result, pos)
                _header(title, f"compare-experts-{side}", at, picture, grid, of=": layer × expert")
                pictures.still(picture, key=f"experts-{side}-{ident}", alt=f"Layer by expert heat map of {side}")
        with st.container():
            picture = pictures.kept(
                compare_charts.expert_difference, at, where.a, where.b, measure=measure, layer=where.layer,
                palette=theme,
            )  # fmt: skip
            _header("b − a", "compare-experts-difference", at, picture, table, of=": layer × expert")
            pictures.still(picture, key=f"experts-difference-{ident}", alt="Layer by expert heat map of b − a")
    one = int(table["where"].isin([ONLY_A, ONLY_B]).sum())
    there = int((table["where"] != views.NOT_ROUTED).sum())
    missing = missing_note([(side, at.side(side)) for side in SIDES], measure)
    present.caption(f"{EXPERTS} {EXPERT_DIFFERENCE} Here {one} of {there} are routed on one side only.{missing}")


def _with_experts(result: TraceResult, pos: int, side: str) -> TraceResult | None:
    """The result that has the expert patches of `pos`: this one, or another request's, asked for when needed."""
    if pos in views.expert_positions(result):
        return result
    return answer(result.request.replace(experts=(pos,)), f"compare experts {side}", place=side)[0]


def _routing(compared: Compared) -> None:
    theme = pictures.theme()
    with st.grid(2, min_column_width=430, gap="medium"):
        with st.container():
            picture = pictures.kept(compare_charts.routing_map, compared, palette=theme)
            _header("Overlap of the sets of experts", "compare-routing", compared, picture, compared.routing)
            pictures.still(picture, key=f"compare-routing-{_ident(compared)}", alt="Layer by token map of the Jaccard")
            present.caption(ROUTING)
        with st.container():
            picture = pictures.kept(compare_charts.routing_bars, compared, palette=theme)
            table = compared.routing_layers
            _header("By layer", "compare-routing-layers", compared, picture, table)
            pictures.still(picture, key=f"compare-bars-{_ident(compared)}", alt="Routing agreement of each layer")
            present.caption(BARS)
