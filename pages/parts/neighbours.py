"""The previous and the next fact of the relation, by button or key: what is looked at in one fact, in many.

They are those of the list that the fact was chosen from, or else of one that it is in, the bundled or a stored one.
"""

from __future__ import annotations

import functools

import streamlit as st

from core.errors import ExpertScopeError
from core.fact_sets import BUNDLED
from core.links import Link
from core.requests import Fact

from . import base, state, text

MOST_SEARCHED = 20_000
"""Stored lists of more facts are not looked through for a fact of which nobody said that it is from there."""


def draw(last: int | None) -> None:
    """Buttons for the previous and the next fact of the relation. `last`: the last position of the prompt on the page,
    None where there is no answer."""
    link = state.HERE.value
    fact = link.request.fact
    try:
        source = _source(link)
        known = () if source is None else base.listed(source)
    except ExpertScopeError as error:  # a link may come from where the list is
        if link.listed:
            st.caption(text.plain(error.what))
        return
    relation = [other for other in known if other.relation == fact.relation]
    at = next((i for i, other in enumerate(relation) if other == fact), None)
    if at is None or len(relation) < 2:
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        ways = (("Previous", -1, "P", ":material/chevron_left:"), ("Next", 1, "N", ":material/chevron_right:"))
        for name, way, letter, icon in ways:
            other = relation[(at + way) % len(relation)]
            st.button(
                name, key=f"es_neighbour_{name}", icon=icon, shortcut=letter, type="tertiary",
                icon_position="left" if way < 0 else "right", help=f"{other.subject} → {other.true}",
                on_click=functools.partial(
                    state.step, other, last=-1 if last is None else last, listed="" if source == BUNDLED else source
                ),
            )  # fmt: skip
        what = (fact.relation or "without a relation").replace("_", " ")
        where = "" if source == BUNDLED else f", in the list “{source}”"
        st.markdown(f":small[Fact {at + 1} of {len(relation)}: {text.plain(what + where)}]", width="content")


def _source(link: Link) -> str | None:
    """The list whose facts are the neighbours, None where the fact is in none."""
    if link.listed or link.bundled:
        return link.listed or BUNDLED
    stored = base.workbench().fact_lists.all()
    return _holding(link.request.fact, tuple((found.name, found.n, found.updated) for found in stored))


@functools.lru_cache(maxsize=256)
def _holding(fact: Fact, stored: tuple[tuple[str, int, int], ...]) -> str | None:
    """The first of the `stored` lists (name, facts, when it was changed) that holds the fact."""
    names = (name for name, n, _ in stored if n <= MOST_SEARCHED)
    return next((name for name in names if fact in base.listed(name)), None)
