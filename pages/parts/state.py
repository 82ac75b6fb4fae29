"""What this browser tab looks at on the Trace page: a `core.links.Link`, kept in step with the address bar."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import streamlit as st

from core.links import Link, View, from_query, with_query
from core.requests import Fact, TraceRequest

from . import base
from .address import Address, callback, end, key, renew, rerun, touch

__all__ = [
    "address", "ask", "begin", "browse", "callback", "end", "go", "key", "look", "renew", "request", "rerun", "step",
    "touch", "view", "write",
]  # fmt: skip

HERE: Address[Link] = Address(
    "trace",
    read=lambda params: from_query(params, bundled=base.bundled().get, default=base.default_fact()),
    write=Link.to_query,
)
begin, write = HERE.begin, HERE.write


def address() -> str:
    """The link to what is shown."""
    return with_query(st.context.url or "http://localhost:8501/", HERE.value.to_query())


def ask(request: TraceRequest, *, bundled: bool | None = None, listed: str = "") -> None:
    """Another question. What was looked at stays where it means the same: as long as model and fact are the same.
    `bundled`, `listed`: of another fact (see `core.links.Link`)."""
    current = HERE.value
    browsing = current.browsing
    if request.fact != current.request.fact:  # another subject was named for the fact that was there
        request, browsing = request.replace(replacement=()), browsing.following()
    elif bundled is None:
        listed = current.listed
    same = (request.model.name, request.fact, request.special_tokens) == (
        current.request.model.name,
        current.request.fact,
        current.request.special_tokens,
    )
    view = current.view if same else current.view.elsewhere()
    is_bundled = current.bundled if bundled is None else bundled
    HERE.change(Link(request, view, is_bundled, listed=listed, browsing=browsing))


def browse(**changes: str) -> None:
    """Leaf through something else. In the address at once: such a widget draws its panel alone again."""
    current = HERE.value
    HERE.change(replace(current, browsing=replace(current.browsing, **changes), problems=()))
    write()


def look(**changes: Any) -> None:
    """Look at something else in the same result."""
    current = HERE.value
    HERE.change(replace(current, view=replace(current.view, **changes), problems=()))


def go(layer: int, pos: int, expert: int | str | None = None) -> None:
    """Look at another cell of the same result, or at an expert in it."""
    current = HERE.value
    HERE.change(replace(current, view=current.view.at(layer, pos, expert), problems=()))


def step(fact: Fact, *, last: int, listed: str) -> None:
    """Ask about a neighbouring fact of the list `listed` (empty: the bundled one). `last`: the last position of the
    prompt that is left."""
    current = HERE.value
    request = current.request.replace(fact=fact, replacement=())
    view, browsing = current.view.of_neighbour(last), current.browsing.following()
    HERE.change(Link(request, view, base.is_bundled(fact), listed=listed, browsing=browsing))
    renew()


def request() -> TraceRequest:
    """The current question, for callbacks."""
    return HERE.value.request


def view() -> View:
    """What is looked at, for callbacks."""
    return HERE.value.view
