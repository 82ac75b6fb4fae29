"""What stands around every page's own content: sentences about what is wrong, where an answer came from, the end."""

from __future__ import annotations

from collections.abc import Iterable

import streamlit as st

from core import formats

from . import address, base, present, store_panel, text


def problems(sentences: Iterable[str]) -> None:
    """What is wrong with the link, all of it in one box, and with what was typed last."""
    if said := "  \n".join(text.plain(text.on_page(sentence)) for sentence in sentences):
        st.warning(said)
    if problem := st.session_state.pop("es_input_error", None):
        st.error(text.plain(text.on_page(problem)))


def came_from(created: str, fresh: bool) -> None:
    """A badge: the answer was computed just now, or lay in the store. `created`: when it was computed, ISO 8601."""
    if fresh:
        st.badge("computed just now", color="green", icon=":material/bolt:")
    else:
        when = f"Computed {formats.moment(created)} UTC."
        st.badge("from the store", color="gray", icon=":material/inventory_2:", help=when)


def foot(said: Iterable[str] = ()) -> None:
    """What has to be said of the page's numbers; the sidebar's last lines, drawn after everything that may have been
    stored; the end of the page. `said`: what the page has said already."""
    for note in present.notes():
        if note not in said:
            st.caption(f"Note: {text.plain(note)}")
    with st.sidebar:
        store_panel.draw()
    address.end()
    base.end_page()
