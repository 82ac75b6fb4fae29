"""What this browser tab looks at on the Trace page: a `core.links.Link`, kept in step with the address bar."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import streamlit as st

from core.links import Link, View, from_query, link, to_query
from core.requests import Fact, TraceRequest

from . import base
from .address import Address, callback, end, key, renew, rerun, touch

__all__ = [
    "address", "ask", "begin", "callback", "end", "go", "key", "look", "renew", "request", "rerun", "step", "touch",
    "view", "write",
]  # fmt: skip

HERE: Address[Link] = Address(
    "trace",
    read=lambda params: from_query(params, bundled=base.bundled().get, default=base.default_fact()),
    write=lambda current: to_query(current.request, current.view, bundled=current.bundled),
)
begin, write = HERE.begin, HERE.write


def address() -> str:
    """The link to what is shown."""
    current = HERE.value
    return link(st.context.url or "http://localhost:8501/", current.request, current.view, bundled=current.bundled)


def ask(request: TraceRequest, *, bundled: bool | None = None) -> None:
    """Another question. What was looked at stays where it means the same: as long as model and fact are the same."""
    current = HERE.value
    if request.fact != current.request.fact:  # another subject was named for the fact that was there
        request = request.replace(replacement=())
    same = (request.model.name, request.fact, request.special_tokens) == (
        current.request.model.name,
        current.request.fact,
        current.request.special_tokens,
    )
    view = current.view if same else current.view.elsewhere()
    HERE.change(Link(request, view, current.bundled if bundled is None else bundled))


def look(**changes: Any) -> None:
    """Look at something else in the same result."""
    current = HERE.value
    HERE.change(replace(current, view=replace(current.view, **changes), problems=()))


def go(layer: int, pos: int, expert: int | str | None = None) -> None:
    """Look at another cell of the same result, or at an expert in it."""
    current = HERE.value
    HERE.change(replace(current, view=current.view.at(layer, pos, expert), problems=()))


def step(fact: Fact, *, last: int) -> None:
    """Ask about a neighbouring bundled fact. `last`: the last position of the prompt that is left."""
    current = HERE.value
    request = current.request.replace(fact=fact, replacement=())
    HERE.change(Link(request, current.view.of_neighbour(last), True))
    renew()


def request() -> TraceRequest:
    """The current question, for callbacks."""
    return HERE.value.request


def view() -> View:
    """What is looked at, for callbacks."""
    return HERE.value.view
