"""The Library page: facts and lists of them, what is stored (traces, studies, derived answers), models here."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import streamlit as st

from core.fact_sets import BUNDLED
from core.library_link import SECTIONS, LibraryView

from . import address, base, frame, in_line, library_lists, library_state, navigation, present, text
from .library_state import HERE, look

TITLES = {
    "facts": "Facts",
    "validation": "Validation",
    "traces": "Traces",
    "studies": "Studies",
    "store": "Store",
    "models": "Models",
}
EXPLAINED = {
    "facts": "Prompts with a subject, a true object and a foil. The bundled ones belong to the demo model; make lists "
    "of your own by uploading a file, typing facts in, or choosing from another list. Every page can be asked about "
    "them.",
    "validation": "Which facts of the list a model can be asked about, and why not the others: whether the subject "
    "and single-token objects are found, and whether the model knows the fact (clean contrast) and the corruption "
    "takes it away (drop).",
    "traces": "Every trace that the store keeps. Open one, name it, or take it elsewhere as a file.",
    "studies": "Every study that the store keeps.",
    "store": "What was computed is kept in one file, so that it appears at once when asked again. Beyond the limit, "
    "what was not used for longest goes first. Studies and lists of facts stay, and do not count.",
    "models": "The models that are known by name or lie on this machine. One at a time is in memory.",
}
_LISTS = ("facts", "validation")
"""Sections about a list of facts."""


@in_line.drawn
def draw() -> None:
    """The whole page."""
    base.start_page("Library")
    view = HERE.begin()
    with st.sidebar:
        navigation.draw()
        if view.section in _LISTS:
            library_lists.sidebar(view)
    HERE.write()
    _title(view)
    for problem in view.problems:
        st.warning(text.plain(problem))
    library_state.said()
    _switch(view)
    st.caption(EXPLAINED[view.section])
    _section(view.section)(view)
    frame.foot()


def _section(name: str) -> Callable[[LibraryView], None]:
    """A section's module is imported when it is first looked at."""
    return importlib.import_module(f".library_{name}", __package__).draw


def _title(view: LibraryView) -> None:
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.subheader("Library", anchor=False, width="content")
        with st.container(horizontal=True, vertical_alignment="center", width="content"):
            of = "" if view.section not in _LISTS or view.source == BUNDLED else f" of “{view.source}”"
            present.place("library", f"Library: {TITLES[view.section].lower()}{of}")
            with st.popover("Link", icon=":material/link:"):
                st.caption("Opens exactly this: section, list, filters. Lists and traces are in this machine's store.")
                st.code(library_state.address(), language=None, wrap_lines=True)


def _switch(view: LibraryView) -> None:
    key = address.key("library section")

    def change() -> None:
        look(section=st.session_state[key] or SECTIONS[0], search="")

    st.segmented_control(
        "Section", SECTIONS, default=view.section, key=key, wrap=True, required=True, format_func=TITLES.__getitem__,
        on_change=address.callback(key, change), label_visibility="collapsed",
    )  # fmt: skip
