"""The minimal set: found greedily, with its curve and random sets of the same sizes beside it."""

from __future__ import annotations

import streamlit as st

from core.cells import pictures as cell_pictures
from core.cells import words
from core.cells.asking import ask
from core.links import View
from core.results import TraceResult
from core.trace_view import SCOPES, members

from . import display, downloads, listing, pictures, present, sections, state, text
from .answers import answer
from .listing import Column

AT_ONCE = 3
"""Up to this many draws the whole demo model is searched without a click."""
SCOPE_NAMES = {"cell": "this cell", "layer": "this layer", "pos": "this token", "model": "the whole model"}
MEANING = (
    "At each step the clean-active expert joins that restores most together with those before it. Grey: random sets of "
    "the same size, their range and mean. A set that random ones match says little."
)


def draw(at: TraceResult, shown: View, ident: str) -> None:
    """The section. `at`: has the expert patches of the chosen cell's position."""
    _choose(shown)
    layer = shown.layer if shown.scope in ("cell", "layer") else None
    pos = shown.pos if shown.scope in ("cell", "pos") else None
    asked = ask("minimal_set", at.request, layer=layer, pos=pos, target=shown.target)
    few = shown.scope != "model" or at.request.draws <= AT_ONCE
    quick = shown.scope == "cell" or (at.request.model.name == "demo" and few)
    found, _ = answer(asked, "section", auto=quick)
    if found is None:
        return
    values, curve = found.values, found.tables["curve"]
    said = words.minimal(
        curve, scope=values["scope"], target=values["target"], reached=values["reached"],
        candidates=len(found.tables["candidates"]),
    )  # fmt: skip
    sections.say([text.plain(said)])
    for note in values["notes"]:
        st.caption(text.plain(note))
    if curve.empty:
        return
    with st.grid(2, min_column_width=display.pixels(430), gap="medium"):
        with st.container():
            picture = pictures.kept(_curve, found, palette=pictures.theme())
            downloads.header("Restoration of the growing set", "minimal", found, picture, curve)
            pictures.still(picture, key=f"minimal-{ident}", alt="Restoration by size of the set, and of random sets")
            present.caption(MEANING)
        with st.container():
            _table(found)
            if shown.scope == "cell":
                chosen = members(int(e) for e in curve.expert)
                st.button(
                    "Tick these experts", key=state.key("tick minimal"), icon=":material/checklist:",
                    on_click=lambda: state.look(
                        layer=shown.layer, pos=shown.pos, section="coalition", coalition=chosen
                    ),
                )  # fmt: skip


def _curve(found, *, palette):  # noqa: ANN001, ANN202 - `pictures.kept` remembers it by the answer
    return cell_pictures.minimal_curve(found.tables["curve"], target=found.values["target"], palette=palette)


def _choose(shown: View) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        scope = state.key("scope")
        st.segmented_control(
            "Experts of", SCOPES, default=shown.scope, key=scope, wrap=True,
            required=True, format_func=SCOPE_NAMES.__getitem__,
            on_change=state.callback(scope, lambda: state.look(scope=st.session_state[scope] or SCOPES[0])),
            help="Candidates are the clean-active experts of the cell, of the layer or token, or of every cell.",
        )  # fmt: skip
        target = state.key("target")
        st.number_input(
            "Until restored", min(0.01, shown.target), max(10.0, shown.target), shown.target, 0.1, key=target,
            width=display.pixels(150), format="%.4g", help="The restoration to reach: 1 is the clean contrast.",
            on_change=state.callback(target, lambda: state.look(target=float(st.session_state[target]))),
        )  # fmt: skip


def _table(found) -> None:  # noqa: ANN001 - a DerivedResult
    curve = found.tables["curve"]
    form = {
        "size": Column("size", width=50),
        "name": Column("joins", width=78),
        "pos": Column("pos", "Position of the token.", width=50),
        "restoration": Column("restoration", "Mean rescue ÷ mean drop."),
        "random_restoration": Column("random sets", "Mean restoration of random sets of the same size."),
    }
    listing.show(curve, form, alt="Steps of the minimal set", most=320)
