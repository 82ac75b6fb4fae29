"""The previous and the next fact of the relation, by button or key: what is looked at in one fact, in many."""

from __future__ import annotations

import functools

import streamlit as st

from . import base, state, text


def draw(last: int | None) -> None:
    """Buttons for the previous and the next fact of the relation. `last`: the last position of the prompt on the page,
    None where there is no answer."""
    link = state.HERE.value
    fact = link.request.fact
    if not link.bundled or not fact.relation:
        return
    relation = [other for other in base.bundled().values() if other.relation == fact.relation]
    at = next((i for i, other in enumerate(relation) if other.case_id == fact.case_id), None)
    if at is None or len(relation) < 2:
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        ways = (("Previous", -1, "P", ":material/chevron_left:"), ("Next", 1, "N", ":material/chevron_right:"))
        for name, way, letter, icon in ways:
            other = relation[(at + way) % len(relation)]
            st.button(
                name, key=f"es_neighbour_{name}", icon=icon, shortcut=letter, type="tertiary",
                icon_position="left" if way < 0 else "right", help=f"{other.subject} → {other.true}",
                on_click=functools.partial(state.step, other, last=-1 if last is None else last),
            )  # fmt: skip
        shown = text.plain(fact.relation.replace("_", " "))
        st.markdown(f":small[Fact {at + 1} of {len(relation)}: {shown}]", width="content")
