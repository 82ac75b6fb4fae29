"""The chosen cell of the Trace page: the layer patch in words, its active experts as a table and as bars."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from core import charts, sites, tooltips, views
from core.formats import count, logit, logits, restoration, weight
from core.links import SHARED, View
from core.results import TraceResult, expert_name
from core.trace_view import members

from . import address, display, downloads, expert_state, listing, pictures, present, sections, state, text
from .listing import Column

WHOLE_TABLE = 640
"""Pixels that the table of experts takes with all its columns."""
BARS = (
    "Each expert's update put back alone: how far it lifts the true object's logit, and how far it puts the foil's "
    "down (to the left of 0: lowers the true object, lifts the foil). Both add up to its rescue, the tick."
)
DIRECT = (
    "The part of the rescue that reaches the logits without a later layer, the final norm's scale as in the corrupt "
    "run. The remainder is due to later layers and to that scale."
)


def draw(at: TraceResult | None, here: TraceResult | None, shown: View, ident: str) -> None:
    """Everything about the chosen cell. `at`: a result with the expert patches of its position; `here`: the one whose
    cells the layer × token map shows; None for what is not there yet."""
    if here is not None and not shown.is_base:
        _other_site(here, shown)
    if at is None:
        return
    if shown.layer in at.provenance.moe_layers:
        _experts(at, shown, ident)
    else:
        with _title(f"##### Layer {shown.layer} is dense: it has no experts"):
            _choose(at, shown, ident)


def _other_site(here: TraceResult, shown: View) -> None:
    """The number behind the marked cell of another site or window."""
    if (found := _cell_of(here, shown)) is not None:
        around = "" if shown.window == 1 else f", in a window of {shown.window} layers"
        st.markdown(
            f"**{sites.NAMES[shown.site]}** of layer {shown.layer}{around}, at “{text.plain(found.label)}”: "
            f"{_effect(found)}."
        )


def _cell_of(result: TraceResult, shown: View) -> pd.Series | None:
    cells = views.layer_cells(result)
    found = cells[(cells.layer == shown.layer) & (cells.pos == shown.pos)]
    return found.iloc[0] if len(found) else None


def _effect(row: pd.Series) -> str:
    """Rescue and restoration in words, and what was lifted or put down."""
    restored = "restoration missing" if pd.isna(row.restoration) else f"restoration {restoration(row.restoration)}"
    spread = "" if pd.isna(row.rescue_sd) else f", rescue sd {logit(row.rescue_sd)} over {count(row.draws)} draws"
    reading = tooltips.reading(row.true_shift, row.foil_shift)
    return f"rescue **{logits(row.rescue)}** logits, {restored}{spread}: {reading}"


def _title(words: str) -> Any:
    row = st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute")
    row.markdown(words, width="content")
    return row


def _experts(at: TraceResult, shown: View, ident: str) -> None:
    """The cell's active experts as a table and as bars."""
    table = views.active_experts(at, shown.layer, shown.pos)
    cell = _cell_of(at, shown)
    assert cell is not None
    with _title(f"##### Experts of layer {shown.layer} at “{text.plain(cell.label)}”"):
        _choose(at, shown, ident)
    st.markdown(f"The whole layer patch here: {_effect(cell)}.")
    names = list(table.name)
    chosen = (
        None if shown.expert is None else expert_name(shown.layer, None if shown.expert == SHARED else shown.expert)
    )
    if chosen in names:
        _chosen_expert(table[table.name == chosen].iloc[0])
        expert_state.link_from_trace(at.request, shown.layer, shown.expert)
    elif chosen is not None:
        st.markdown(f":small[**{chosen}** is not routed at this token; the marks show where it is.]")
    with st.grid(2, min_column_width=display.pixels(WHOLE_TABLE), gap="medium"):
        with st.container():
            _table(table, at, shown, ident)
        with st.container():
            view = View(layer=shown.layer, expert=shown.expert)
            picture = pictures.kept(charts.expert_bars, at, shown.layer, shown.pos, view=view, palette=pictures.theme())
            downloads.header("Is the answer restored, or the foil put down?", "cell-experts", at, picture, table)
            pictures.still(
                picture, key=f"bars-{ident}", alt="Rescue of each active expert, split into true and foil logit"
            )
            present.caption(BARS)
    sections.draw(at, shown, ident)


def _chosen_expert(row: pd.Series) -> None:
    """One sentence with the marked expert's numbers."""
    weights = ""
    if not pd.isna(row.router_weight_clean):
        clean, corrupt = weight(row.router_weight_clean), weight(row.router_weight_corrupt)
        weights = f" (router weight {clean} clean, {corrupt} corrupt)"
    st.markdown(f"**{row['name']}** alone{weights}: {_effect(row)}.")


def _table(table: pd.DataFrame, at: TraceResult, shown: View, ident: str) -> None:
    """The experts; a tick marks one everywhere, or puts several into the coalition where that is open."""
    building = shown.section == "coalition"
    experts = [SHARED if index == views.SHARED_INDEX else int(index) for index in table.expert]
    wanted = shown.coalition if building else shown.expert
    slot = pictures.slot("table", (ident, shown.layer, shown.pos, building), wanted)
    ticked = slot.preset if building else (slot.preset,)
    rows = [row for row, expert in enumerate(experts) if expert in ticked]

    def pick() -> None:
        rows = address.ticked(slot.key)
        picked = [experts[row] for row in rows]
        if building:
            slot.picked = members(picked)
            state.look(layer=shown.layer, pos=shown.pos, coalition=slot.picked)
        else:
            slot.picked = picked[0] if picked else None
            state.look(layer=shown.layer, pos=shown.pos, expert=slot.picked)

    columns = {
        "name": Column("expert", pinned=True, width=78),
        "router_weight_clean": Column("w clean", "Router weight in the clean run.", width=62),
        "router_weight_corrupt": Column("w corrupt", "Router weight, mean over the corrupt runs.", width=72),
        "rescue": Column("rescue", "Contrast with this update put back − corrupt contrast, logits.", width=62),
        "direct": Column("direct", DIRECT, width=62),
        "restoration": Column("restoration", "Mean rescue ÷ mean drop.", width=82),
        "share": Column("share", "Share of the layer patch: rescue ÷ the layer patch's rescue.", width=60),
        "rescue_sd": Column("sd", "Sample standard deviation of the rescue over the draws.", width=55),
        "status": Column("routed in", width=130),
    }
    if at.request.draws == 1:
        del columns["rescue_sd"]
    if shown.pos != views.last_pos(at):  # 0 there, by definition
        del columns["direct"]
    listing.show(
        table, columns, key=slot.key, on_select=state.callback(slot.key, pick),
        selection_mode="multi-row" if building else "single-row", selection_default={"selection": {"rows": rows}},
        alt=f"Active experts of layer {shown.layer} at position {shown.pos}",
    )  # fmt: skip
    st.caption(
        "Tick the experts that are put back together."
        if building
        else "Tick a row to mark the expert everywhere on the page."
    )


def _choose(result: TraceResult, shown: View, ident: str) -> None:
    """The same choice as a click on the map, for the keyboard."""
    labels, layers = views.token_labels(result), result.provenance.moe_layers
    if shown.site != sites.MOE:
        layers = list(range(result.provenance.n_layers))
    with st.container(horizontal=True, width="content"):
        for name, options, current in (("layer", layers, shown.layer), ("pos", list(range(len(labels))), shown.pos)):
            key = f"es_{name}_{ident}_{current}"

            def change(name: str = name, key: str = key) -> None:
                both = {"layer": shown.layer, "pos": shown.pos} | {name: st.session_state[key]}
                state.go(**both)

            st.selectbox(
                "Layer" if name == "layer" else "Token", options, index=options.index(current), key=key,
                on_change=state.callback(key, change),
                format_func="layer {}".format if name == "layer" else labels.__getitem__,
                width=display.pixels(120 if name == "layer" else 170),
                label_visibility="collapsed",
            )  # fmt: skip
