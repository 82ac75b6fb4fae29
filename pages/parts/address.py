"""A page's state and the address bar in step: one value per page, written into the query parameters, read from them.

Widgets change the value in their callbacks, before the page is drawn; the page then writes the address. An address
that changes in any other way (opened, edited, back button, another page) is read anew. Knows no page's content.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from . import display

T = TypeVar("T")

_PAGE, _TOUCHED, _GENERATION = "es_page", "es_touched", "es_generation"
_DRAWN, _DRAWN_BEFORE = "es_drawn", "es_drawn_before"
_REMEMBERED = 300


class Address(Generic[T]):
    """The state of the page `name` in this browser tab."""

    def __init__(self, name: str, *, read: Callable[[dict[str, str]], T], write: Callable[[T], dict[str, str]]) -> None:
        """`read`: from query parameters, never raises; `write`: its inverse."""
        self._name, self._read, self._write = name, read, write
        self._value, self._written = f"es_link_{name}", f"es_written_{name}"

    def begin(self) -> T:
        """The current state. Reads the address when the page is come to, and whenever it changed from outside."""
        session = st.session_state
        params = st.query_params.to_dict()
        touched = session.pop(_TOUCHED, False)
        arrived = session.get(_PAGE) != self._name
        if arrived or self._value not in session or self._from_outside(params, touched):
            session[self._value] = self._read(params)
            renew()
        session[_PAGE] = self._name
        session[_DRAWN_BEFORE] = session.get(_DRAWN, set()) | session.get(_DRAWN_BEFORE, set())
        session[_DRAWN] = set()
        return session[self._value]

    def write(self) -> None:
        """Put the state into the address."""
        params = self._write(self.value) | display.query()
        if st.query_params.to_dict() != params:
            st.query_params.from_dict(params)
        written: list[dict[str, str]] = st.session_state.setdefault(self._written, [])
        if params not in written:
            written.append(params)
            del written[:-_REMEMBERED]

    @property
    def value(self) -> T:
        """The current state, also for callbacks."""
        return st.session_state[self._value]

    def change(self, value: T) -> None:
        """Another state; the page is drawn with it next."""
        touch()
        st.session_state[self._value] = value

    def last(self) -> dict[str, str]:
        """Query parameters of the state in which the page was left; none where it was not seen yet."""
        return self._write(self.value) if self._value in st.session_state else {}

    def _from_outside(self, params: dict[str, str], touched: bool) -> bool:
        """Whether the address was changed by the viewer. An old address of our own may arrive late, with a rerun that
        was asked for before the browser took the new one; then only the browser's word counts that it is the back
        button."""
        context = get_script_run_ctx()
        if getattr(context, "is_history_navigation", False):
            return True
        return not touched and params not in st.session_state.get(self._written, [])


def end() -> None:
    """The page is drawn to its end: what was there before and is no more has no say any longer."""
    st.session_state[_DRAWN_BEFORE] = set()


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


def key(name: str) -> str:
    """A widget's key: fresh whenever the address was read anew, or `renew` asked for it, so that the widget starts from
    what the state says."""
    return f"{name}@{st.session_state.get(_GENERATION, 0)}"


def renew() -> None:
    """The page's widgets start from its state again: something else than they changed it."""
    st.session_state[_GENERATION] = st.session_state.get(_GENERATION, 0) + 1


def touch() -> None:
    """This run comes from the page itself, not from the address bar."""
    st.session_state[_TOUCHED] = True


def rerun() -> None:
    """Draw the whole page again."""
    touch()
    st.rerun()


def ticked(key: str) -> list[int]:
    """The rows that are ticked in the table `key`, in the order in which that was done."""
    return (st.session_state.get(key) or {}).get("selection", {}).get("rows") or []
