"""The way from page to page, at the top of every sidebar. Each page is come back to as it was left."""

from __future__ import annotations

import streamlit as st

from . import state, study_state

PAGES = (
    (study_state.APP, "Trace", ":material/biotech:", state.HERE),
    (study_state.APP.parent / "pages" / "Study.py", "Study", ":material/lab_research:", study_state.HERE),
)
"""Script, name, icon, and what the page remembers of this tab."""


def draw() -> None:
    """The app's name and the links."""
    st.markdown("### :material/biotech: ExpertScope")
    with st.container(horizontal=True, gap="small"):
        for script, name, icon, here in PAGES:
            st.page_link(script, label=name, icon=icon, query_params=here.last())
