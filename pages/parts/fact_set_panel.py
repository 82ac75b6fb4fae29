"""Choosing facts for a question about many: a list, relations of it, how many, the seed. For any page's sidebar.

Knows no question: it is given a `FactSet` and tells of another one. What it means in facts, `base.facts_of` says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import streamlit as st

from core import facts
from core.errors import ExpertScopeError
from core.fact_sets import BUNDLED, MOST, FactSet, sentence

from . import address, base, text

HELP_SOURCE = "The bundled facts, or a list that you made on the Library page (upload, selection, facts of your own)."
HELP_RELATIONS = "Only facts of these relations. None chosen: of all."
HELP_N = "At most so many, drawn at random with the seed. Empty: all of them."
HELP_SEED = "Draws which facts are taken where there are more than that."
_LARGEST_SEED = 2**53 - 1  # a browser's numbers are exact up to here


def draw(fact_set: FactSet, *, changed: Callable[[FactSet], None], place: str = "", title: str = "Facts") -> None:
    """The widgets for `fact_set`; `changed` is called with another one. `place` tells the pages' widgets apart."""
    st.markdown(f"**{title}**")
    try:
        names = base.workbench().fact_lists.names()
        known = base.listed(fact_set.source)
        problem = None
    except ExpertScopeError as error:
        names, known, problem = [], (), error
    _source(fact_set, names, changed, place)
    if problem is not None:
        st.error(text.error(problem))
        return
    _relations(fact_set, facts.relations(known), changed, place)
    left, right = st.columns(2, vertical_alignment="bottom")
    key = address.key(f"{place}facts n")
    # Not as the widget's own default: that could not be emptied. At every run: what is set once can be lost where the
    # page is drawn again before the browser has it, and the field would look empty, which means all.
    st.session_state[key] = fact_set.n
    left.number_input(
        "How many", 1, MOST, None, 16, key=key, help=HELP_N, placeholder="all",
        on_change=_change(fact_set, "n", key, changed, lambda value: None if value is None else int(value)),
    )  # fmt: skip
    key = address.key(f"{place}facts seed")
    right.number_input(
        "Seed of the draw", 0, max(_LARGEST_SEED, fact_set.seed), fact_set.seed, 1, key=key, help=HELP_SEED,
        on_change=_change(fact_set, "seed", key, changed, lambda value: int(value or 0)),
    )  # fmt: skip
    st.caption(text.plain(sentence(fact_set, known)))


def _source(fact_set: FactSet, names: list[str], changed: Callable[[FactSet], None], place: str) -> None:
    options = [BUNDLED, *names]
    if fact_set.source not in options:
        options.append(fact_set.source)
    key = address.key(f"{place}facts source {len(names)}")

    def change() -> None:
        source = st.session_state.get(key)
        if source is not None and source != fact_set.source:  # another list has other relations
            changed(dataclasses.replace(fact_set, source=source, relations=()))

    st.selectbox(
        "List of facts", options, index=options.index(fact_set.source), key=key, help=HELP_SOURCE,
        format_func=lambda name: f"Bundled ({len(base.bundled()):,})" if name == BUNDLED else name,
        on_change=address.callback(key, change), label_visibility="collapsed",
    )  # fmt: skip


def _relations(fact_set: FactSet, counts: dict[str, int], changed: Callable[[FactSet], None], place: str) -> None:
    odd = [name for name in fact_set.relations if name not in counts]
    if not counts and not odd:
        return
    key = address.key(f"{place}facts relations {fact_set.source}")
    st.multiselect(
        "Relations", [*counts, *odd], default=list(fact_set.relations), key=key, placeholder="all relations",
        format_func=lambda name: f"{name.replace('_', ' ')} ({counts.get(name, 0)})", help=HELP_RELATIONS,
        on_change=_change(fact_set, "relations", key, changed, tuple), label_visibility="collapsed",
    )  # fmt: skip


def _change(
    fact_set: FactSet, field: str, key: str, changed: Callable[[FactSet], None], convert: Callable[[Any], Any]
) -> Callable[[], None]:
    def change() -> None:
        changed(dataclasses.replace(fact_set, **{field: convert(st.session_state.get(key))}))

    return address.callback(key, change)
