"""The maps of the Trace page: layer × token, layer × expert at one position, the cell's experts, the routing strip."""

from __future__ import annotations

import dataclasses

import pandas as pd
import streamlit as st

from core import charts, tooltips, views
from core.links import MEASURES, SHARED, View
from core.requests import digest
from core.results import MIN_DROP, TraceResult, expert_name

from . import downloads, expert_state, pictures, state, text
from .answers import answer

TOKEN_MAP = (
    "One cell per MoE layer and token: the block's output there is put back to its clean value in the corrupt run. "
    "Blue brings the answer back, orange drives it further away. Click a cell."
)
EXPERT_MAP = (
    "Each coloured cell puts back one expert's update alone. Blank: not routed at this token. "
    "Ring: routed in the corrupt run only. Click an expert."
)
VISIBLE_ROUNDING = 1e-3
"""From this noise floor on (logits) the maps say so."""
DIRECT = (
    "The part of the rescue that reaches the logits without a later layer, the final norm's scale as in the corrupt "
    "run. The remainder is due to later layers and to that scale."
)
STRIP = (
    "Which experts each token goes to at this layer. Stronger colour: larger router weight. ≈ marks a near tie, where "
    "the choice could flip under rounding. Click to follow an expert."
)


def shown_view(result: TraceResult, view: View) -> View:
    """The view with its gaps filled: the last position, and the layer that restores most there."""
    pos = views.last_pos(result) if view.pos is None else view.pos
    layer = view.layer
    if layer is None:
        cells = pictures.kept(views.layer_cells, result)
        here = cells[cells.pos == pos]
        layer = int(here.loc[here.rescue.idxmax(), "layer"]) if len(here) else None
    return dataclasses.replace(view, pos=pos, layer=layer)


def draw(result: TraceResult, view: View) -> None:
    """All maps of a result."""
    shown = shown_view(result, view)
    ident = digest(result.request.to_dict(), result.provenance.fingerprint, result.provenance.created)[:10]
    wide = len(result.provenance.tokens) > 26 or result.provenance.n_experts > 40
    _switch(view)
    at = None
    with st.container() if wide else st.grid(2, min_column_width=430, gap="medium"):
        with st.container():
            _token_map(result, shown, ident)
        with st.container():
            if shown.layer is not None:
                at = _experts(result, shown.pos)
            if at is not None:
                _expert_map(at, shown, ident)
    if shown.layer is None:
        st.caption("This result has no cells.")
        return
    if at is not None:
        _cell(at, shown, ident)
    _strip(result, shown, ident)


def _experts(result: TraceResult, pos: int) -> TraceResult | None:
    """The result that has the expert patches of `pos`: this one, or another request's, asked for when needed."""
    if pos in views.expert_positions(result):
        return result
    return answer(result.request.replace(experts=(pos,)), "experts")[0]


def _switch(view: View) -> None:
    key = state.key("measure")

    def change() -> None:
        state.look(measure=st.session_state[key] or MEASURES[0])

    st.segmented_control(
        "What the colours show", MEASURES, default=view.measure, key=key, required=True,
        on_change=state.callback(key, change),
        format_func=lambda m: "restoration" if m == "restoration" else "rescue in logits",
        label_visibility="collapsed",
        help="restoration = mean rescue ÷ mean drop: 0 as corrupt, 1 as clean. rescue = contrast − corrupt contrast.",
    )  # fmt: skip


def _header(title: str, name: str, result: TraceResult, picture, table: pd.DataFrame) -> None:
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown(f"**{title}**", width="content")
        downloads.menu(name, title, result, picture, table)


def _token_map(result: TraceResult, shown: View, ident: str) -> None:
    cell = (shown.layer, shown.pos)
    followed = (shown.layer, shown.expert) if isinstance(shown.expert, int) else None
    slot = pictures.slot("cells", (ident, shown.measure, pictures.theme().name, followed), cell)
    layer, pos = slot.preset
    view = dataclasses.replace(shown, layer=layer, pos=pos, strip=None)
    picture = pictures.kept(charts.layer_token, result, view=view, palette=pictures.theme())
    _header("Layer × token", "layer-token", result, picture, pictures.kept(views.layer_cells, result))

    def pick(mark: dict[str, int]) -> None:
        slot.picked = (mark["layer"], mark["pos"])
        if slot.picked != cell:
            state.look(layer=mark["layer"], pos=mark["pos"], expert=None, strip=None)

    best = views.best_cell(result)
    alt = f"Layer by token heat map; the highest is layer {best[0]}, position {best[1]}" if best else "Empty map"
    pictures.show(picture, key=slot.key, selection="cell", on_pick=pick, alt=alt)
    dense = result.provenance.n_layers - len(result.provenance.moe_layers)
    note = f" Dashed: {dense} dense layer{'s' if dense > 1 else ''}, nothing to patch." if dense else ""
    st.caption(TOKEN_MAP + note + _missing_note(result, shown) + _rounding_note(result))


def _expert_map(at: TraceResult, shown: View, ident: str) -> None:
    expert = (shown.layer, shown.expert)
    slot = pictures.slot("experts", (ident, shown.pos, shown.measure, pictures.theme().name, shown.layer), expert)
    view = dataclasses.replace(shown, expert=slot.preset[1], strip=None)
    picture = pictures.kept(charts.layer_expert, at, shown.pos, view=view, palette=pictures.theme())
    title = f"Layer × expert at “{views.token_labels(at)[shown.pos]}”"
    _header(title, "layer-expert", at, picture, pictures.kept(views.expert_grid, at, shown.pos))

    def pick(mark: dict[str, int]) -> None:
        chosen = SHARED if mark["expert"] == views.SHARED_INDEX else mark["expert"]
        slot.picked = (mark["layer"], chosen)
        state.look(layer=mark["layer"], pos=shown.pos, expert=chosen, strip=None)

    alt = f"Layer by expert heat map at position {shown.pos}, layer {shown.layer} framed"
    pictures.show(picture, key=slot.key, selection="expert", on_pick=pick, alt=alt)
    st.caption(EXPERT_MAP + _missing_note(at, shown) + _rounding_note(at))


def _cell(at: TraceResult, shown: View, ident: str) -> None:
    """The chosen cell: its active experts as a table and as bars."""
    table = pictures.kept(views.active_experts, at, shown.layer, shown.pos)
    cells = pictures.kept(views.layer_cells, at)
    cell = cells[(cells.layer == shown.layer) & (cells.pos == shown.pos)].iloc[0]
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown(f"##### Experts of layer {shown.layer} at “{text.plain(cell.label)}”", width="content")
        _choose_cell(at, shown, ident)
    restored = "restoration missing" if pd.isna(cell.restoration) else f"restoration {cell.restoration:.3f}"
    st.markdown(
        f"The whole layer patch here: rescue **{cell.rescue:+.3f}** logits, {restored}: "
        f"{tooltips.reading(cell.true_shift, cell.foil_shift)}."
    )
    names = list(table.name)
    chosen = (
        None if shown.expert is None else expert_name(shown.layer, None if shown.expert == SHARED else shown.expert)
    )
    if chosen in names:
        _chosen_expert(table[table.name == chosen].iloc[0])
        expert_state.link_from_trace(at.request, shown.layer, shown.expert)
    elif chosen is not None:
        st.markdown(f":small[**{chosen}** is not routed at this token; the marks show where it is.]")
    with st.grid(2, min_column_width=430, gap="medium"):
        with st.container():
            _table(table, at, shown, ident, chosen)
        with st.container():
            view = dataclasses.replace(shown, strip=None)
            picture = pictures.kept(charts.expert_bars, at, shown.layer, shown.pos, view=view, palette=pictures.theme())
            _header("Is the answer restored, or the foil put down?", "cell-experts", at, picture, table)
            pictures.still(
                picture, key=f"bars-{ident}", alt="Rescue of each active expert, split into true and foil logit"
            )


def _chosen_expert(row: pd.Series) -> None:
    """One sentence with the marked expert's numbers."""
    weights = ""
    if not pd.isna(row.router_weight_clean):
        weights = f", router weight {row.router_weight_clean:.3f} clean, {row.router_weight_corrupt:.3f} corrupt"
    restored = "restoration missing" if pd.isna(row.restoration) else f"restoration {row.restoration:.3f}"
    st.markdown(
        f"**{row['name']}** alone: rescue **{row.rescue:+.3f}** logits, {restored}{weights}: "
        f"{tooltips.reading(row.true_shift, row.foil_shift)}."
    )


def _table(table: pd.DataFrame, at: TraceResult, shown: View, ident: str, chosen: str | None) -> None:
    names = list(table.name)
    slot = pictures.slot("table", (ident, shown.layer, shown.pos), chosen)
    row = names.index(slot.preset) if slot.preset in names else None

    def pick() -> None:
        rows = (st.session_state.get(slot.key) or {}).get("selection", {}).get("rows") or []
        slot.picked = names[rows[0]] if rows else None
        value = None
        if rows:
            number = int(table.expert[rows[0]])
            value = SHARED if number == views.SHARED_INDEX else number
        state.look(layer=shown.layer, pos=shown.pos, expert=value)

    columns = {
        "name": st.column_config.TextColumn("expert", pinned=True, width=78),
        "router_weight_clean": _number("w clean", "%.3f", 62, "Router weight in the clean run."),
        "router_weight_corrupt": _number("w corrupt", "%.3f", 72, "Router weight, mean over the corrupt runs."),
        "rescue": _number("rescue", "%+.3f", 62, "Contrast with this update put back − corrupt contrast, logits."),
        "direct": _number("direct", "%+.3f", 62, DIRECT),
        "restoration": _number("restoration", "%+.3f", 82, "Mean rescue ÷ mean drop."),
        "share": _number("share", "%.0f %%", 60, "Share of the layer patch: rescue ÷ the layer patch's rescue."),
        "rescue_sd": _number("sd", "%.3f", 55, "Sample standard deviation of the rescue over the draws."),
        "status": st.column_config.TextColumn("routed in", width=130),
    }
    if at.request.draws == 1:
        del columns["rescue_sd"]
    if shown.pos != views.last_pos(at):  # 0 there, by definition
        del columns["direct"]
    st.dataframe(
        table.assign(share=(100 * table.share).round() + 0.0),  # + 0.0: no −0 %
        column_config=columns, column_order=list(columns), hide_index=True,
        key=slot.key, on_select=state.callback(slot.key, pick),
        selection_mode="single-row", selection_default={"selection": {"rows": [] if row is None else [row]}},
        alt=f"Active experts of layer {shown.layer} at position {shown.pos}",
        height=min(38 + 35 * len(table), 400),
    )  # fmt: skip
    st.caption("Tick a row to mark the expert everywhere on the page.")


def _choose_cell(result: TraceResult, shown: View, ident: str) -> None:
    """The same choice as a click on the map, for the keyboard."""
    labels, layers = views.token_labels(result), result.provenance.moe_layers
    with st.container(horizontal=True, width="content"):
        for name, options, current in (("layer", layers, shown.layer), ("pos", list(range(len(labels))), shown.pos)):
            key = f"es_{name}_{ident}_{current}"

            def change(name: str = name, key: str = key) -> None:
                both = {"layer": shown.layer, "pos": shown.pos} | {name: st.session_state[key]}
                state.look(**both, expert=None, strip=None)

            st.selectbox(
                "Layer" if name == "layer" else "Token", options, index=options.index(current), key=key,
                on_change=state.callback(key, change),
                format_func="layer {}".format if name == "layer" else labels.__getitem__,
                width=120 if name == "layer" else 170,
                label_visibility="collapsed",
            )  # fmt: skip


def _strip(result: TraceResult, shown: View, ident: str) -> None:
    """Routing of every token at one layer, clean against corrupt."""
    layers = result.provenance.moe_layers
    layer = shown.layer if shown.strip is None else shown.strip
    slot = pictures.slot("strip", (ident, layer, pictures.theme().name, shown.layer, shown.pos, shown.expert), None)
    picture = pictures.kept(charts.routing_strip, result, layer, view=shown, palette=pictures.theme())
    table = pictures.kept(views.routing_strip, result, layer)
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown(f"##### Routing at layer {layer}, clean against corrupt", width="content")
        with st.container(horizontal=True, vertical_alignment="center", width="content"):
            key = f"es_strip_{ident}_{layer}"
            st.selectbox(
                "Layer of the strip", layers, index=layers.index(layer), key=key, width=120,
                on_change=state.callback(key, lambda: state.look(strip=st.session_state[key])),
                format_func="layer {}".format,
                label_visibility="collapsed",
            )  # fmt: skip
            downloads.menu("routing", f"Routing at layer {layer}", result, picture, table)

    def pick(mark: dict[str, int]) -> None:
        state.look(layer=layer, pos=mark["pos"], expert=mark["expert"], strip=None)

    counts = table.change.value_counts()
    changed = int(counts.get(views.CLEAN_ONLY, 0)), int(counts.get(views.CORRUPT_ONLY, 0))
    pictures.show(
        picture, key=slot.key, selection="routed", on_pick=pick,
        alt=f"Routing at layer {layer}: {changed[0]} choices only in the clean run, {changed[1]} only in corrupt runs",
    )  # fmt: skip
    st.caption(
        f"{STRIP} Here {changed[0]} of the choices are made in the clean run only, {changed[1]} in a corrupt run only."
    )


def _missing_note(result: TraceResult, shown: View) -> str:
    if shown.measure == "restoration" and result.drop < MIN_DROP:
        return f" Grey: missing, because the drop is below {MIN_DROP:g} logits."
    return ""


def _rounding_note(result: TraceResult) -> str:
    """Only where it could be mistaken for an effect."""
    floor = result.provenance.noise_floor or 0.0
    if floor < VISIBLE_ROUNDING:
        return ""
    return f" Rescues below {floor:.2g} logits are within rounding ({result.provenance.dtype})."


def _number(label: str, form: str, width: int, help_: str):
    return st.column_config.NumberColumn(label, format=form, width=width, help=help_)
