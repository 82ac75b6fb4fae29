"""Controls of one expert for this fact: active-random, gate-matched, equal norm; specificity and rank."""

from __future__ import annotations

import streamlit as st

from core import views
from core.cells import pictures as cell_pictures
from core.cells import tables, words
from core.cells.asking import ask
from core.links import SHARED, View
from core.results import TraceResult, expert_name

from . import downloads, pictures, present, sections
from .answers import answer

MEANING = (
    "Active-random: other clean-active experts of this cell, drawn by the paper's rule. Gate-matched: the one with the "
    "nearest router weight. Equal norm: both updates scaled to the smaller norm. One fact shows what to look at; "
    "whether an expert is specific only many facts can tell (Study page)."
)
ROLES = {tables.SELECTED: "expert", tables.MATCHED: "joined", tables.RANDOM: "kept", tables.OTHER: "missing"}


def draw(at: TraceResult, shown: View, ident: str) -> None:
    """The section. `at`: has the expert patches of the chosen cell's position."""
    if shown.expert == SHARED:
        st.markdown("The shared expert is always on: there is nothing to compare it with. Mark a routed one.")
        return
    expert = shown.expert
    if expert is None:
        active = views.active_experts(at, shown.layer, shown.pos)
        clean = active[active.status.isin([views.BOTH, views.CLEAN_ONLY])]
        if clean.empty:
            st.markdown("No expert is clean-active here, so there is nothing to compare.")
            return
        expert = int(clean.expert.iloc[0])
        st.caption("No expert is marked, so the clean-active one with the highest rescue is taken.")
    found, _ = answer(ask("cell_controls", at.request, layer=shown.layer, pos=shown.pos, expert=expert), "section")
    if found is None:
        return
    sections.say(words.controls(tables.specificity(found), expert_name(shown.layer, expert)))
    rows = pictures.kept(tables.control_rows, found)
    picture = pictures.kept(_effects, found, palette=pictures.theme())
    downloads.header("The marked expert and its controls", "controls", found, picture, rows)
    pictures.still(picture, key=f"controls-{ident}", alt="Rescue of the marked expert and of its controls")
    present.caption(MEANING)


def _effects(found, *, palette):  # noqa: ANN001, ANN202 - `pictures.kept` remembers it by the answer
    rows = tables.control_rows(found)
    rows["name"] = rows.name.where(rows.kind != "equal_norm", rows.name + ", equal norm")
    return cell_pictures.effects(rows, roles=ROLES, palette=palette)
