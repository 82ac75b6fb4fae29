"""What this browser tab looks at, kept in step with the address bar.

One value, `core.links.Link`, is the truth. Widgets change it in their callbacks, before the page is drawn; the page
then writes the address. An address that changes in any other way (opened, edited, back button) is read anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from core.links import Link, View, from_query, link, to_query
from core.requests import TraceRequest

from . import base

_LINK, _WRITTEN, _TOUCHED, _GENERATION = "es_link", "es_written", "es_touched", "es_generation"
_DRAWN, _DRAWN_BEFORE = "es_drawn", "es_drawn_before"
_REMEMBERED = 300


def begin() -> Link:
    """The current state. Reads the address on the first run of a tab and whenever it changed from outside."""
    session = st.session_state
    params = st.query_params.to_dict()
    touched = session.pop(_TOUCHED, False)
    if _LINK not in session or _from_outside(params, touched):
        session[_LINK] = from_query(params, bundled=base.bundled().get, default=base.default_fact())
        session[_GENERATION] = session.get(_GENERATION, 0) + 1
    session[_DRAWN_BEFORE] = session.get(_DRAWN, set()) | session.get(_DRAWN_BEFORE, set())
    session[_DRAWN] = set()
    return session[_LINK]


def end() -> None:
    """The page is drawn to its end: what was there before and is no more has no say any longer."""
    st.session_state[_DRAWN_BEFORE] = set()


def write() -> None:
    """Put the state into the address."""
    current = st.session_state[_LINK]
    params = to_query(current.request, current.view, bundled=current.bundled)
    if st.query_params.to_dict() != params:
        st.query_params.from_dict(params)
    written: list[dict[str, str]] = st.session_state.setdefault(_WRITTEN, [])
    if params not in written:
        written.append(params)
        del written[:-_REMEMBERED]


def _from_outside(params: dict[str, str], touched: bool) -> bool:
    """Whether the address was changed by the viewer. An old address of our own may arrive late, with a rerun that was
    asked for before the browser took the new one; then only the browser's word counts that it is the back button."""
    context = get_script_run_ctx()
    if getattr(context, "is_history_navigation", False):
        return True
    return not touched and params not in st.session_state.get(_WRITTEN, [])


def callback(key: str, change: Callable[[], None]) -> Callable[[], None]:
    """`change` as the callback of the widget `key`, ignored when that widget is no longer on the page.

    A browser may still send the value of a widget that was just replaced; Streamlit takes it for a change.
    """
    st.session_state.setdefault(_DRAWN, set()).add(key)

    def call() -> None:
        touch()
        if key in st.session_state.get(_DRAWN, set()) | st.session_state.get(_DRAWN_BEFORE, set()):
            change()

    return call


def address() -> str:
    """The link to what is shown."""
    current = st.session_state[_LINK]
    return link(st.context.url or "http://localhost:8501/", current.request, current.view, bundled=current.bundled)


def key(name: str) -> str:
    """A widget's key: fresh whenever the address was read anew, so that the widget starts from what it says."""
    return f"{name}@{st.session_state.get(_GENERATION, 0)}"


def touch() -> None:
    """This run comes from the page itself, not from the address bar."""
    st.session_state[_TOUCHED] = True


def rerun() -> None:
    """Draw the whole page again."""
    touch()
    st.rerun()


def ask(request: TraceRequest, *, bundled: bool | None = None) -> None:
    """Another question. What was looked at stays where it means the same: as long as model and fact are the same."""
    touch()
    current: Link = st.session_state[_LINK]
    if request.fact != current.request.fact:  # another subject was named for the fact that was there
        request = request.replace(replacement=())
    same = (request.model.name, request.fact, request.special_tokens) == (
        current.request.model.name,
        current.request.fact,
        current.request.special_tokens,
    )
    view = current.view if same else View(measure=current.view.measure)
    st.session_state[_LINK] = Link(request, view, current.bundled if bundled is None else bundled)


def look(**changes: Any) -> None:
    """Look at something else in the same result."""
    touch()
    current: Link = st.session_state[_LINK]
    st.session_state[_LINK] = replace(current, view=replace(current.view, **changes), problems=())


def request() -> TraceRequest:
    """The current question, for callbacks."""
    return st.session_state[_LINK].request


def view() -> View:
    """What is looked at, for callbacks."""
    return st.session_state[_LINK].view
