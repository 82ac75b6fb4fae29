"""Who is looking: this browser tab, the owner of the jobs that it starts. They are let go of when the tab is closed.

A tab whose connection broke may come back, and a reloaded one asks for the same again: both have a moment for it. Knows
of jobs only that they have owners.
"""

from __future__ import annotations

import threading

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from . import base

GRACE = 15.0
"""Seconds after which a tab that is gone wants nothing any more."""

_here: set[str] = set()


def me() -> str:
    """The id of this browser tab."""
    context = get_script_run_ctx()
    return _present(context.session_id) if context else "none"


def gone(tab: str) -> None:
    """The tab has no connection any more. What it asked for is let go of, unless it is back by then."""
    _here.discard(tab)
    timer = threading.Timer(GRACE, _let_go, (tab,))
    timer.daemon = True
    timer.start()


@st.cache_resource(scope="session", show_spinner=False, on_release=gone)
def _present(tab: str) -> str:
    """Kept by Streamlit for as long as the tab is connected."""
    _here.add(tab)
    return tab


def _let_go(tab: str) -> None:
    if tab not in _here:
        base.workbench().jobs.leave(tab)
