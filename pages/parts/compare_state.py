"""What this browser tab looks at on the Compare page: a `core.compare.link.Pair`, in step with the address bar."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import streamlit as st

from core.compare.link import Pair, from_query, to_query
from core.compare.tables import Compared
from core.derived import DerivedResult
from core.links import Browsing, Link, View, with_query
from core.requests import TraceRequest
from core.results import TraceResult

from . import base
from .address import Address, renew
from .asker import Asker

PAGE = Path(__file__).resolve().parent.parent / "Compare.py"
_KEPT = 24
_made: OrderedDict[tuple[object, ...], Compared] = OrderedDict()
_lock = threading.Lock()
HERE: Address[Pair] = Address(
    "compare",
    read=lambda params: from_query(params, bundled=base.bundled().get, default=base.default_fact()),
    write=to_query,
)


def address() -> str:
    """The link to what is shown."""
    return with_query(st.context.url or "http://localhost:8501/Compare", to_query(HERE.value))


def asker(side: str) -> Asker:
    """The question of side `a` or `b`, for the panels of the sidebar."""

    def ask(request: TraceRequest, *, bundled: bool | None = None, listed: str = "") -> None:
        pair = HERE.value
        current = pair.side(side)
        browsing = current.browsing
        if request.fact != current.request.fact:  # another subject was named for the fact that was there
            request, browsing = request.replace(replacement=()), browsing.following()
        elif bundled is None:
            listed = current.listed
        kept = _tokens_of(request) == _tokens_of(current.request)
        is_bundled = current.bundled if bundled is None else bundled
        link = Link(request, current.view, is_bundled, listed=listed, browsing=browsing)
        pair = pair.with_side(side, link)
        HERE.change(pair if kept else pair.looking(layer=None, pos_a=None, pos_b=None))

    return Asker(f"{side}.", lambda: HERE.value.side(side).request, ask)


def browse(side: str, **changes: str) -> None:
    """Leaf through something else for side `a` or `b` (see `state.browse`)."""
    link = HERE.value.side(side)
    HERE.change(HERE.value.with_side(side, replace(link, browsing=replace(link.browsing, **changes))))
    HERE.write()


def look(*, layer: int | None, pos_a: int | None, pos_b: int | None) -> None:
    """Choose another cell."""
    HERE.change(HERE.value.looking(layer=layer, pos_a=pos_a, pos_b=pos_b))


def show(*sides: str, **changes: object) -> None:
    """Other maps on the sides that are named, on both if none is: `measure`, `site`, `window`."""
    HERE.change(HERE.value.showing(*sides, **changes))


def change(**changes: object) -> None:
    """Change something else of the page's state."""
    HERE.change(replace(HERE.value, problems=(), **changes))


def swap() -> None:
    """a becomes b and b becomes a."""
    HERE.change(HERE.value.swapped())
    renew()


def beside(link: Link) -> dict[str, str]:
    """Query parameters of this page with a question of the Trace page beside a copy of itself."""
    view = replace(link.view.maps(), expert=None, strip=None)
    one = replace(link, view=view, problems=(), browsing=Browsing())
    return to_query(Pair(one, one))


def against(a: TraceRequest, b: TraceRequest, *, bundled: bool) -> dict[str, str]:
    """Query parameters of this page with two questions about one fact."""
    return to_query(Pair(Link(a, View(), bundled), Link(b, View(), bundled)))


def together(
    a: TraceResult, b: TraceResult, same_model: bool, at_a: DerivedResult | None = None,
    at_b: DerivedResult | None = None,
) -> Compared:  # fmt: skip
    """The results as one value, the same one for as long as they are the same: its tables are made once."""
    key = (id(a), id(b), same_model, id(at_a), id(at_b))
    with _lock:  # it holds the results, so that their ids stay theirs
        made = _made.setdefault(key, Compared(a, b, same_model, at_a, at_b))
        _made.move_to_end(key)
        while len(_made) > _KEPT:
            _made.popitem(last=False)
    return made


def _tokens_of(request: TraceRequest) -> tuple[object, ...]:
    """What a chosen cell's place depends on."""
    return request.model.name, request.fact, request.special_tokens
