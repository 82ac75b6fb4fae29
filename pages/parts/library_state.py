"""What this browser tab looks at on the Library page: a `core.library_link.LibraryView`, in step with the address bar.

And how the page's actions report: what went wrong or was done is said at the top of the page that is drawn next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from core.errors import ExpertScopeError
from core.fact_sets import BUNDLED
from core.library_link import LibraryView, from_query, to_query
from core.links import Link, View, with_query
from core.requests import Fact

from . import address as address_bar
from . import base, present, text
from .address import Address

if TYPE_CHECKING:
    from core.script import Script

PAGE = Path(__file__).resolve().parent.parent / "Library.py"
HERE: Address[LibraryView] = Address("library", read=from_query, write=to_query)
_WRONG, _DONE = "es_library_wrong", "es_library_done"


def look(**changes: Any) -> None:
    """Look at something else. Another list has other relations."""
    if "source" in changes:
        changes = {"relation": None, "search": "", "outcome": None} | changes
    HERE.change(replace(HERE.value, problems=(), **changes))


def address() -> str:
    """The link to what is shown."""
    return with_query(st.context.url or "http://localhost:8501/Library", to_query(HERE.value))


def offer(script: Script | None = None) -> None:
    """The section that is shown can be had as a report; `script`: how to get the same without the page."""
    present.offer({"page": "Library"} | to_query(HERE.value), script)


def trace_of(view: LibraryView, fact: Fact) -> Link:
    """A fact as a question to the Trace page."""
    listed = "" if view.source == BUNDLED else view.source
    return Link(view.trace(fact), View(), base.is_bundled(fact), listed=listed)


def doing(work: Callable[[], Any], done: str | Callable[[Any], str] = "") -> Any:
    """`work()` in a callback: its value, or None where it failed. What is wrong, or `done` (a sentence, perhaps made
    of the value), is said on the page that is drawn next."""
    address_bar.touch()
    try:
        value = work()
    except ExpertScopeError as error:
        st.session_state[_WRONG] = text.error(error)
        return None
    said = done if isinstance(done, str) else done(value)
    if said:
        st.session_state[_DONE] = said
    return True if value is None else value


def said() -> None:
    """What the last action reported."""
    if wrong := st.session_state.pop(_WRONG, None):
        st.error(wrong)
    if done := st.session_state.pop(_DONE, None):
        st.success(text.plain(done), icon=":material/check:")


def ticked(key: str, n: int) -> list[int]:
    """The rows that are ticked in the table `key` of `n` rows."""
    rows = address_bar.ticked(key)
    return sorted(row for row in rows if 0 <= row < n)


def confirm(label: str, question: str, work: Callable[[], Any], *, key: str, icon: str = ":material/delete:") -> None:
    """A destructive action: a popover that asks first. `work` is the button's callback."""
    with st.popover(label, icon=icon, key=f"es_ask_{key}"):
        sure = st.checkbox(question, key=address_bar.key(f"sure {key}"))
        st.button("Yes, do it", disabled=not sure, on_click=work, key=f"es_do_{key}", width="stretch", type="primary")
