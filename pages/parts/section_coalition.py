"""The coalition builder: the ticked experts' updates put back together, beside each alone and the layer patch."""

from __future__ import annotations

import streamlit as st

from core import views
from core.cells import pictures as cell_pictures
from core.cells import tables, words
from core.cells.asking import ask
from core.links import View
from core.results import TraceResult
from core.trace_view import members

from . import downloads, pictures, present, sections, state
from .answers import answer

LINE = "Tick experts in the table above, or click them in the layer × expert map, in the framed layer."
MEANING = (
    "The sum of the singles is what the ticked experts would bring back if none depended on another. All clean-active: "
    "the coalition patch of the clean top-k. Lines: the range over draws."
)
ROLES = {
    tables.SINGLE: "kept", tables.SUM: "low", tables.TOGETHER: "expert", tables.TOP_K: "joined",
    tables.UNION: "muted", tables.LAYER: "high",
}  # fmt: skip


def draw(at: TraceResult, shown: View, ident: str) -> None:
    """The section. `at`: has the expert patches of the chosen cell's position."""
    active = views.active_experts(at, shown.layer, shown.pos)
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown(f":small[{LINE}]", width="content")
        with st.container(horizontal=True, width="content"):
            clean = active[active.status.isin([views.BOTH, views.CLEAN_ONLY])]
            _button("All clean-active", [int(e) for e in clean.expert], shown)
            _button("None", [], shown)
    if not shown.coalition:
        return
    asked = ask("coalition", at.request, layer=shown.layer, pos=shown.pos, experts=list(shown.coalition))
    found, _ = answer(asked, "section")
    if found is None:
        return
    rows = pictures.kept(tables.coalition_rows, found)
    sections.say([words.coalition(rows, floor=at.provenance.noise_floor or 0.0)])
    picture = pictures.kept(_effects, found, palette=pictures.theme())
    downloads.header("Together, alone, and the whole layer", "coalition", found, picture, rows)
    pictures.still(picture, key=f"coalition-{ident}", alt="Rescue of each ticked expert, of their sum, of all together")
    present.caption(MEANING)


def _effects(found, *, palette):  # noqa: ANN001, ANN202 - `pictures.kept` remembers it by the answer
    return cell_pictures.effects(tables.coalition_rows(found), roles=ROLES, palette=palette)


def _button(label: str, experts: list[int], shown: View) -> None:
    chosen = members(experts)
    st.button(
        label, key=f"es_tick_{label}", disabled=chosen == shown.coalition, type="tertiary",
        on_click=lambda: state.look(layer=shown.layer, pos=shown.pos, coalition=chosen),
    )  # fmt: skip

