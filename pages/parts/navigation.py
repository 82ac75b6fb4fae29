"""The way from page to page, at the top of every sidebar. Each page is come back to as it was left."""

from __future__ import annotations

import streamlit as st

from . import (
    address,
    averages_state,
    compare_state,
    display,
    expert_state,
    library_state,
    routing_state,
    state,
    study_state,
)

_PAGES = study_state.APP.parent / "pages"
PAGES = (
    (study_state.APP, "Trace", ":material/biotech:", state.HERE),
    (averages_state.PAGE, "Averages", ":material/stacked_line_chart:", averages_state.HERE),
    (routing_state.PAGE, "Routing", ":material/alt_route:", routing_state.HERE),
    (expert_state.PAGE, "Expert", ":material/hub:", expert_state.HERE),
    (compare_state.PAGE, "Compare", ":material/compare_arrows:", compare_state.HERE),
    (_PAGES / "Study.py", "Study", ":material/lab_research:", study_state.HERE),
    (library_state.PAGE, "Library", ":material/folder_open:", library_state.HERE),
    (_PAGES / "Method.py", "Method", ":material/function:", None),
)
"""Script, name, icon, and what the page remembers of this tab, if it does."""


def draw() -> None:
    """The app's name, the links, the large-type switch."""
    st.markdown("### :material/biotech: ExpertScope")
    with st.grid(2, min_column_width=display.pixels(105), gap="xxsmall"):
        for script, name, icon, here in PAGES:
            st.page_link(script, label=name, icon=icon, query_params=here.last() if here else None)
    display.switch(address.touch)
