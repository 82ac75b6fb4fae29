"""What can be opened below the chosen cell of the Trace page, one section at a time: a switch and its sections.

Nothing of a section is asked for before it is opened, and the page is on the screen before it answers.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence

import streamlit as st

from core.links import View
from core.results import TraceResult
from core.trace_view import SECTIONS

from . import present, state

NAMES = {
    "coalition": "Coalition",
    "minimal": "Minimal set",
    "necessity": "Necessity",
    "controls": "Controls",
    "draws": "Draws",
}
HELP = (
    "Coalition: several experts put back together. Minimal set: how few experts restore the fact. Necessity: what the "
    "clean run loses without an expert. Controls: is the marked expert special among the active ones? Draws: how far "
    "the noise draws lie apart. Click again to close."
)


def draw(at: TraceResult, shown: View, ident: str) -> None:
    """The switch and the open section. `at`: has the expert patches of the chosen cell's position."""
    key = state.key(f"section/{shown.section}")
    st.segmented_control(
        "More about this cell", SECTIONS, default=shown.section, key=key, wrap=True,
        format_func=NAMES.__getitem__, help=HELP,
        on_change=state.callback(key, lambda: state.look(section=st.session_state[key])),
    )  # fmt: skip
    if shown.section is not None:
        with st.container(border=True):
            importlib.import_module(f"pages.parts.section_{shown.section}").draw(at, shown, ident)


def say(sentences: Sequence[str]) -> None:
    """What a section found, in Markdown sentences: on the page, and at the head of the page's report."""
    for sentence in sentences:
        st.markdown(sentence)
    present.say([re.sub(r"\\(.)|\*\*", lambda escaped: escaped[1] or "", sentence) for sentence in sentences])
