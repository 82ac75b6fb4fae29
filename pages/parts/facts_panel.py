"""Choosing a fact: from the bundled list or a stored one, by relation and subject; or typed in with its tokens shown as
one types."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Protocol

import streamlit as st

from core import facts
from core.browsing import BUNDLED, LISTS, MAX_WORDS, TYPED, Browsing
from core.errors import ExpertScopeError
from core.fact_sets import BUNDLED as BUNDLED_LIST
from core.links import Link
from core.requests import Fact, TraceRequest

from . import address, base, fact_fields, text
from .asker import Asker

SHOWN = 300
"""Most facts offered at once; the search narrows them down."""
ALL = "all relations"
SOURCE_NAMES = {BUNDLED: "Bundled", LISTS: "Lists", TYPED: "Typed in"}
HELP_LIST = "A list that you made on the Library page: uploaded, chosen from others, or typed in."
_Source = tuple[str, int]
"""A list's name, and when it was changed last: what it holds may be remembered for as long as both stay."""


class Browse(Protocol):
    """Changes what is leafed through: fields of `core.browsing.Browsing`."""

    def __call__(self, **changes: str) -> None: ...


def draw(link: Link, asker: Asker, browse: Browse) -> None:
    """The fact section of a sidebar. `link`: says the question, where its fact comes from, and what is leafed
    through."""
    st.markdown("**Fact**")
    known, browsing = base.bundled(), link.browsing
    if not known:
        st.error("The bundled facts are missing (demo/facts.jsonl). Clone the repository again, or type a fact in.")
    names, open_list = _names(), browsing.stored or link.listed
    options = [BUNDLED, *([LISTS] if names or open_list else []), TYPED]
    own = LISTS if link.listed else BUNDLED if link.bundled and known else TYPED
    key = asker.key(f"source/{len(options)}")

    def choose() -> None:
        chosen = st.session_state[key]
        first = names[0] if chosen == LISTS and names and not link.listed else ""
        browse(source="" if chosen == own else chosen, stored=first, relation="", words="")

    source = st.segmented_control(
        "Where the fact comes from", options, key=key, label_visibility="collapsed", required=True, width="stretch",
        default=browsing.source if browsing.source in options else own, format_func=SOURCE_NAMES.__getitem__,
        on_change=address.callback(key, choose),
    )  # fmt: skip
    if source == LISTS:
        _stored(link, asker, browse, names)
    elif source == BUNDLED and known:
        here = link.bundled and not link.listed
        _search(link.request, asker, browse, browsing, source=(BUNDLED_LIST, 0), here=here)
    else:
        _typed(link.request, asker, link.bundled)


def label(fact: Fact) -> str:
    """How a fact is listed."""
    relation = (fact.relation or "").replace("_", " ")
    return f"{fact.subject} → {fact.true}" + (f"  ·  {relation}" if relation else "")


def _names() -> list[str]:
    """The stored lists; none where they cannot be read (the store panel says why)."""
    try:
        return base.workbench().fact_lists.names()
    except ExpertScopeError:
        return []


def _stored(link: Link, asker: Asker, browse: Browse, names: list[str]) -> None:
    """Choosing a stored list, and a fact of it."""
    open_list = link.browsing.stored or link.listed
    options = names if open_list in ("", *names) else [open_list, *names]
    key = asker.key(f"list/{len(options)}")

    def choose() -> None:
        chosen = st.session_state[key]
        browse(stored="" if chosen == link.listed else chosen, relation="", words="")

    name = st.selectbox(
        "List of facts", options, index=options.index(open_list) if open_list else 0, help=HELP_LIST, key=key,
        label_visibility="collapsed", on_change=address.callback(key, choose),
    )  # fmt: skip
    try:
        found = base.workbench().fact_lists.find(name)
        base.listed(name)
    except ExpertScopeError as error:
        st.error(text.error(error))
        return
    if found is None or not found.n:
        st.caption("This list is empty. Facts can be put into it on the Library page.")
        return
    _search(link.request, asker, browse, link.browsing, source=(name, found.updated), here=name == link.listed)


@functools.lru_cache(maxsize=4)
def _by_number(source: _Source) -> dict[int, Fact]:
    return {fact.case_id: fact for fact in base.listed(source[0])}


def _known(source: _Source) -> dict[int, Fact]:
    """The facts of a list by case_id, in its order."""
    return base.bundled() if source[0] == BUNDLED_LIST else _by_number(source)


@st.cache_data(show_spinner=False, max_entries=20)
def _relations(source: _Source) -> dict[str, int]:
    return facts.relations(_known(source).values())


@st.cache_data(show_spinner=False, max_entries=200)
def _found(source: _Source, query: str, relation: str | None) -> list[int]:
    known = _known(source).values()
    if not query:  # nothing to compare: the first visit need not wait for that
        listed = (fact.case_id for fact in known if relation is None or fact.relation == relation)
        return list(itertools.islice(listed, SHOWN + 1))
    return [fact.case_id for fact in facts.search(known, query, relation=relation, limit=SHOWN + 1)]


@st.fragment
def _search(
    request: TraceRequest, asker: Asker, browse: Browse, browsing: Browsing, *, source: _Source, here: bool
) -> None:
    """Search and list. A fragment: typing redraws only this. `here`: the question's fact was chosen here."""
    counts, known = _relations(source), _known(source)
    relations = list(dict.fromkeys(("", *counts, browsing.relation)))  # a link may name another, and that is shown
    name, words = asker.key(f"relation/{source[0]}"), asker.key(f"query/{source[0]}")
    relation = st.selectbox(
        "Relation", relations, index=relations.index(browsing.relation), key=name, label_visibility="collapsed",
        format_func=lambda r: f"{r.replace('_', ' ')} ({counts.get(r, 0)})" if r else ALL,
        help="Which relation's facts are listed.",
        on_change=address.callback(name, lambda: browse(relation=st.session_state[name])),
    )  # fmt: skip
    query = st.text_input(
        "Search", browsing.words, key=words, type="search", live="300ms", label_visibility="collapsed",
        placeholder="Search: subject, object, case_id", max_chars=MAX_WORDS,
        on_change=address.callback(words, lambda: browse(words=st.session_state[words].strip())),
    )  # fmt: skip
    found = _found(source, query.strip(), relation or None)
    current = request.fact.case_id if here and known.get(request.fact.case_id) == request.fact else None
    options = found[:SHOWN]
    if current is not None and current not in options and not query and not relation:
        options = [current, *options]
    key = asker.key(f"fact/{source}/{relation}/{query}")

    def choose() -> None:
        case_id = st.session_state.get(key)
        if case_id is not None:
            fact = known[case_id]
            listed = "" if source[0] == BUNDLED_LIST else source[0]
            asker.put(asker.now().replace(fact=fact), bundled=base.is_bundled(fact), listed=listed)
            st.session_state["es_chosen"] = True

    if not options:
        what = "all of these words" if query.strip() else "this relation"
        st.caption(f"No fact of this list has {what}. Type the fact in instead?")
        return
    st.selectbox(
        "Fact", options, index=options.index(current) if current in options else None, key=key,
        format_func=lambda case_id: label(known[case_id]), on_change=address.callback(key, choose),
        label_visibility="collapsed",
        placeholder=f"{len(options)} fact{'s' if len(options) != 1 else ''}, choose one",
    )  # fmt: skip
    if len(found) > SHOWN:
        st.caption(f"The first {SHOWN} are listed; search for the others.")
    if st.session_state.pop("es_chosen", False):
        address.rerun()


@st.fragment
def _typed(request: TraceRequest, asker: Asker, bundled: bool) -> None:
    """Fields, live tokens, and the button that asks. A fragment: typing redraws only this."""
    fact = request.fact
    own = dataclasses.replace(fact, case_id=0, relation=None) if bundled else fact
    typed = fact_fields.draw(own, place=asker.place)
    ready = fact_fields.tokens(
        typed, request.model, special_tokens=request.special_tokens, object_tokens=request.object_tokens,
        first_token=request.first_token,
    )  # fmt: skip
    same = not bundled and typed == fact
    if st.button(
        "Trace this fact", type="primary", width="stretch", disabled=not ready or same, key=asker.key("trace typed"),
        help="This is the fact on the page." if same else None,
    ):  # fmt: skip
        asker.ask(request.replace(fact=typed), bundled=False)
        address.rerun()
