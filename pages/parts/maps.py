"""The maps of the Trace page: layer × token at any site, layer × expert at one position, the routing strip."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import streamlit as st

from core import charts, sites, views
from core.cells import tables
from core.cells.asking import ask
from core.derived import DerivedResult
from core.formats import bound
from core.links import SHARED, View
from core.requests import digest
from core.results import MIN_DROP, TraceResult
from core.trace_view import MEASURES, SHOWN, SPREAD, members

from . import cell, corruptions, display, downloads, map_switches, pictures, present, state
from .answers import answer

COLOURS = "Blue brings the answer back, orange drives it further away. Bold: the subject. Click a cell."
APART = "The stronger the colour, the further the draws lie apart. Bold: the subject. Click a cell."
EXPERT_MAP = (
    "Each coloured cell puts back one expert's update alone. Blank: not routed at this token. "
    "Ring: routed in the corrupt run only. Click an expert."
)
COLOUR_NAMES = {"restoration": "restoration", "rescue": "rescue in logits", "rescue_sd": "spread over draws"}
HELP_MEASURE = (
    "restoration = mean rescue ÷ mean drop: 0 as corrupt, 1 as clean. rescue = contrast − corrupt contrast. Spread: "
    "sample standard deviation of the rescue over the draws."
)
TICK = "In the framed layer a click ticks an expert for the coalition."
STRIP = (
    "Which experts each token goes to at this layer. Stronger colour: larger router weight. ≈ marks a near tie, where "
    "the choice could flip under rounding. Click to follow an expert."
)


def shown_view(result: TraceResult, view: View) -> View:
    """The view with its gaps filled: the last position, and the layer that restores most there."""
    pos = views.last_pos(result) if view.pos is None else view.pos
    layer = view.layer
    if layer is None:
        cells = views.layer_cells(result)
        here = cells[cells.pos == pos]
        layer = int(here.loc[here.rescue.idxmax(), "layer"]) if len(here) else None
    return dataclasses.replace(view, pos=pos, layer=layer)


def draw(result: TraceResult, view: View) -> None:
    """All maps of a result, and everything about the chosen cell."""
    shown = shown_view(result, view)
    ident = digest(result.request.to_dict(), result.provenance.fingerprint, result.provenance.created)[:10]
    wide = len(result.provenance.tokens) > 26 or result.provenance.n_experts > 40
    _switches(result, view)
    at = None
    with st.container() if wide else st.grid(2, min_column_width=display.pixels(430), gap="medium"):
        with st.container():
            here = _token_map(result, shown, ident)
        with st.container():
            if shown.layer is not None:
                at = _experts(result, shown.pos)
            if at is not None:
                _expert_map(at, shown, ident)
    corruptions.draw(result, view)
    if shown.layer is None:
        st.caption("This result has no cells.")
        return
    cell.draw(at, here, shown, ident)
    _strip(result, shown, ident)


def _experts(result: TraceResult, pos: int) -> TraceResult | None:
    """The result that has the expert patches of `pos`: this one, or another request's, asked for when needed."""
    if pos in views.expert_positions(result):
        return result
    return answer(result.request.replace(experts=(pos,)), "experts")[0]


def _switches(result: TraceResult, view: View) -> None:
    """What the colours show, what the layer × token map patches, and in how many layers at once."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        several = result.request.draws > 1 or view.measure == SPREAD
        key = state.key("measure")
        st.segmented_control(
            "What the colours show", SHOWN if several else MEASURES, default=view.measure, key=key, wrap=True,
            required=True,
            on_change=state.callback(key, lambda: state.look(measure=st.session_state[key] or MEASURES[0])),
            format_func=COLOUR_NAMES.__getitem__, help=HELP_MEASURE,
        )  # fmt: skip

        def site(key: str) -> Callable[[], None]:
            return state.callback(key, lambda: state.look(site=st.session_state[key] or sites.MOE))

        def window(key: str) -> Callable[[], None]:
            return state.callback(key, lambda: state.look(window=st.session_state[key]))

        map_switches.site(view.site, key=state.key("site"), callback=site)
        map_switches.window(
            view.window, n_layers=result.provenance.n_layers, key=state.key("window"), callback=window
        )


def _site(result: TraceResult, shown: View, ident: str) -> tuple[TraceResult, TraceResult | DerivedResult] | None:
    """The trace with the cells that the layer × token map shows, and the answer that they come from."""
    if shown.is_base:
        return result, result
    found, _ = answer(ask("site_map", result.request, site=shown.site, window=shown.window), "sites")
    if found is None:
        return None

    def at_site(found: DerivedResult, _: str) -> TraceResult:
        return tables.at_site(result, found)

    return pictures.kept(at_site, found, ident), found


def _token_map(result: TraceResult, shown: View, ident: str) -> TraceResult | None:
    """The layer × token map; gives the result whose cells it shows, if it is there."""
    title = "Layer × token" + ("" if shown.is_base else f", {sites.map_name(shown.site, shown.window)}")
    there = _site(result, shown, ident)
    if there is None:
        st.caption(f"{title}. {sites.cell_meaning(shown.site, shown.window)}")
        return None
    here, origin = there
    chosen = (shown.layer, shown.pos)
    followed = (shown.layer, shown.expert) if isinstance(shown.expert, int) else None
    what = (shown.site, shown.window)
    slot = pictures.slot("cells", (ident, *what, shown.measure, pictures.theme().name, followed), chosen)
    layer, pos = slot.preset
    view = View(shown.measure, pos, layer, shown.expert)
    picture = pictures.kept(charts.layer_token, here, view=view, palette=pictures.theme())
    seen = pictures.as_seen(picture, slot, layer=shown.layer, pos=shown.pos)
    downloads.header(title, "layer-token", origin, seen, views.layer_cells(here))

    def pick(mark: dict[str, int]) -> None:
        slot.picked = (mark["layer"], mark["pos"])
        if slot.picked != chosen:
            state.go(mark["layer"], mark["pos"])

    best = views.best_cell(here)
    alt = f"Layer by token heat map; the highest is layer {best[0]}, position {best[1]}" if best else "Empty map"
    pictures.show(picture, key=slot.key, selection="cell", on_pick=pick, alt=alt)
    without = result.provenance.n_layers - len(here.provenance.moe_layers)
    kind = "dense layer" if shown.site == sites.MOE else "layer"
    note = f" Dashed: {without} {kind}{'s' if without > 1 else ''}, nothing to patch." if without else ""
    meaning = sites.cell_meaning(shown.site, shown.window)
    colours = APART if shown.measure == SPREAD else COLOURS
    present.caption(f"{meaning} {colours}{note}{_missing_note(result, shown)}{_rounding_note(result)}")
    return here


def _expert_map(at: TraceResult, shown: View, ident: str) -> None:
    expert = (shown.layer, shown.expert)
    building = shown.section == "coalition"
    ticked = shown.coalition if building else ()
    base = (ident, shown.pos, shown.measure, pictures.theme().name, shown.layer, ticked)
    slot = pictures.slot("experts", base, expert)
    view = View(shown.measure, shown.pos, shown.layer, slot.preset[1], coalition=ticked)
    picture = pictures.kept(charts.layer_expert, at, shown.pos, view=view, palette=pictures.theme())
    title = f"Layer × expert at “{views.token_labels(at)[shown.pos]}”"
    index = views.SHARED_INDEX if shown.expert == SHARED else shown.expert
    seen = pictures.as_seen(picture, slot, layer=shown.layer, expert=index)
    downloads.header(title, "layer-expert", at, seen, views.expert_grid(at, shown.pos))

    def pick(mark: dict[str, int]) -> None:
        chosen = SHARED if mark["expert"] == views.SHARED_INDEX else mark["expert"]
        slot.picked = (mark["layer"], chosen)
        if building and mark["layer"] == shown.layer:
            active = views.active_experts(at, shown.layer, shown.pos)
            if mark["expert"] in set(active.expert):
                toggled = members(set(shown.coalition) ^ {chosen})
                marked = chosen if chosen in toggled else None
                state.look(layer=shown.layer, pos=shown.pos, expert=marked, coalition=toggled)
        else:
            state.go(mark["layer"], shown.pos, chosen)

    alt = f"Layer by expert heat map at position {shown.pos}, layer {shown.layer} framed"
    pictures.show(picture, key=slot.key, selection="expert", on_pick=pick, alt=alt)
    how = EXPERT_MAP if not building else EXPERT_MAP.replace("Click an expert.", TICK)
    present.caption(how + _missing_note(at, shown) + _rounding_note(at))


def _strip(result: TraceResult, shown: View, ident: str) -> None:
    """Routing of every token at one layer, clean against corrupt."""
    layers = result.provenance.moe_layers
    layer = shown.layer if shown.strip is None else shown.strip
    if layer not in layers:  # a dense layer's cell, at another site
        layer = min(layers, key=lambda other: abs(other - layer))
    slot = pictures.slot("strip", (ident, layer, pictures.theme().name, shown.layer, shown.pos, shown.expert), None)
    view = View(pos=shown.pos, layer=shown.layer, expert=shown.expert)
    picture = pictures.kept(charts.routing_strip, result, layer, view=view, palette=pictures.theme())
    table = views.routing_strip(result, layer)
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown(f"##### Routing at layer {layer}, clean against corrupt", width="content")
        with st.container(horizontal=True, vertical_alignment="center", width="content"):
            key = f"es_strip_{ident}_{layer}"
            st.selectbox(
                "Layer of the strip", layers, index=layers.index(layer), key=key, width=display.pixels(120),
                on_change=state.callback(key, lambda: state.look(strip=st.session_state[key])),
                format_func="layer {}".format,
                label_visibility="collapsed",
            )  # fmt: skip
            downloads.menu("routing", f"Routing at layer {layer}", result, picture, table)

    def pick(mark: dict[str, int]) -> None:
        state.go(layer, mark["pos"], mark["expert"])

    counts = table.change.value_counts()
    changed = int(counts.get(views.CLEAN_ONLY, 0)), int(counts.get(views.CORRUPT_ONLY, 0))
    pictures.show(
        picture, key=slot.key, selection="routed", on_pick=pick,
        alt=f"Routing at layer {layer}: {changed[0]} choices only in the clean run, {changed[1]} only in corrupt runs",
    )  # fmt: skip
    present.caption(
        f"{STRIP} Here {changed[0]} of the choices are made in the clean run only, {changed[1]} in a corrupt run only."
    )


def _missing_note(result: TraceResult, shown: View) -> str:
    if shown.measure == SPREAD and result.request.draws == 1:
        return " Grey: one draw has no spread; ask for more in the sidebar."
    if shown.measure == "restoration" and result.drop < MIN_DROP:
        return f" Grey: missing, because the drop is below {MIN_DROP:g} logits."
    return ""


def _rounding_note(result: TraceResult) -> str:
    """Only where it could be mistaken for an effect."""
    floor = result.provenance.noise_floor or 0.0
    if floor < views.VISIBLE_ROUNDING:
        return ""
    return f" Rescues below {bound(floor)} logits are within rounding ({result.provenance.dtype})."
