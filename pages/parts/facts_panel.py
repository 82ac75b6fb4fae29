"""Choosing a fact: from the bundled list by relation and subject, or typed in with its tokens shown as one types."""

from __future__ import annotations

import dataclasses
import itertools

import streamlit as st

from core import facts
from core.requests import Fact, TraceRequest

from . import address, base, fact_fields
from .asker import Asker

SHOWN = 300
"""Most facts offered at once; the search narrows them down."""
ALL = "all relations"
BUNDLED, TYPED = "Bundled", "Typed in"


def draw(request: TraceRequest, asker: Asker, *, bundled: bool) -> None:
    """The fact section of a sidebar. `bundled`: the question's fact is a bundled one."""
    st.markdown("**Fact**")
    known = base.bundled()
    if not known:
        st.error("The bundled facts are missing (demo/facts.jsonl). Clone the repository again, or type a fact in.")
    key = asker.key("source")
    source = st.segmented_control(
        "Where the fact comes from", [BUNDLED, TYPED], default=BUNDLED if bundled and known else TYPED, key=key,
        label_visibility="collapsed", required=True, width="stretch", on_change=address.touch,
    )  # fmt: skip
    if source == BUNDLED and known:
        _search(request, asker, bundled)
    else:
        _typed(request, asker, bundled)


def label(fact: Fact) -> str:
    """How a fact is listed."""
    return f"{fact.subject} → {fact.true}  ·  {(fact.relation or '').replace('_', ' ')}"


@st.cache_data(show_spinner=False)
def _relations() -> dict[str, int]:
    return facts.relations(base.bundled().values())


@st.cache_data(show_spinner=False, max_entries=200)
def _found(query: str, relation: str | None) -> list[int]:
    known = base.bundled().values()
    if not query:  # nothing to compare: the first visit need not wait for that
        listed = (fact.case_id for fact in known if relation is None or fact.relation == relation)
        return list(itertools.islice(listed, SHOWN + 1))
    return [fact.case_id for fact in facts.search(known, query, relation=relation, limit=SHOWN + 1)]


@st.fragment
def _search(request: TraceRequest, asker: Asker, bundled: bool) -> None:
    """Search and list. A fragment: typing redraws only this."""
    counts = _relations()
    relation = st.selectbox(
        "Relation", [ALL, *counts], key=asker.key("relation"), label_visibility="collapsed",
        format_func=lambda r: r if r == ALL else f"{r.replace('_', ' ')} ({counts[r]})",
        help="Which relation's facts are listed.",
    )  # fmt: skip
    query = st.text_input(
        "Search", key=asker.key("query"), type="search", live="300ms", label_visibility="collapsed",
        placeholder="Search: subject, object, case_id", max_chars=100,
    )  # fmt: skip
    found = _found(query.strip(), None if relation == ALL else relation)
    current = request.fact.case_id if bundled else None
    options = found[:SHOWN]
    if current is not None and current not in options and not query and relation == ALL:
        options = [current, *options]
    key = asker.key(f"fact/{relation}/{query}")
    known = base.bundled()

    def choose() -> None:
        case_id = st.session_state.get(key)
        if case_id is not None:
            asker.put(asker.now().replace(fact=known[case_id]), bundled=True)
            st.session_state["es_chosen"] = True

    if not options:
        st.caption("No bundled fact has all of these words. Type the fact in instead?")
        return
    st.selectbox(
        "Fact", options, index=options.index(current) if current in options else None, key=key,
        format_func=lambda case_id: label(known[case_id]), on_change=address.callback(key, choose),
        label_visibility="collapsed",
        placeholder=f"{len(options)} facts, choose one",
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

