"""The Library's facts: the table of a list, what can be done with those that are ticked, typing and editing them."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from core import library_script
from core.fact_sets import BUNDLED
from core.library_link import LibraryView
from core.requests import Fact

from . import address, base, fact_fields, library_lists, library_state, listing, present, study_state, text
from .library_state import doing, look
from .listing import Column

MOST = 2000
"""Rows that are shown at once; filters and search narrow them down."""
COLUMNS = ("trace", "subject", "true", "foil", "relation", "case_id", "prompt")
HELP = {
    "trace": "Opens this fact on the Trace page, in another tab.",
    "true": "True object.",
    "foil": "The wrong object that the true one is compared with; automatic: the model's most probable other token.",
    "prompt": "{} stands for the subject.",
    "case_id": "Number of the fact in its list; it also seeds the noise.",
}


def draw(view: LibraryView) -> None:
    """The section."""
    if library_lists.missing(view):
        return
    shown = library_lists.shown_facts(view)
    library_lists.head(view, shown)
    known = len(library_lists.known_facts(view))
    if not shown:
        st.info("The list is empty. Type a fact in below." if not known else "No fact of the list is like that.")
    else:
        key = table_key(view, "facts", shown)
        above = st.container()
        listed = table(view, shown, key=key)
        present.note("library-facts", "Facts", None, listed, None, caption=f"{_count(len(shown), known)}.")
        library_state.offer(library_script.of_facts(view))
        st.caption(f"{_count(len(shown), known)}. Tick rows for what can be done with them.")
        rows = library_state.ticked(key, min(len(shown), MOST))
        with above:
            if rows:
                actions(view, [shown[row] for row in rows])
            else:
                to_list(shown, ticked=False, origin=view.source)
    _own(view)


def table_key(view: LibraryView, name: str, shown: Sequence[Fact]) -> str:
    """A key for a table of facts: a fresh one, with nothing ticked, whenever other rows are shown."""
    return address.key(f"library {name} {view.source} {hash((tuple(shown), view.relation, view.search, view.outcome))}")


def table(
    view: LibraryView, shown: Sequence[Fact], *, key: str, more: pd.DataFrame | None = None, config: dict | None = None
) -> pd.DataFrame:
    """Facts as a table with ticks. `more`: further columns, which come first; `config`: how they are shown. Gives what
    is shown, without the links."""
    listed = list(shown[:MOST])
    frame = pd.DataFrame(
        {
            "trace": [study_state.trace_address(library_state.trace_of(view, fact)) for fact in listed],
            "subject": [fact.subject for fact in listed],
            "true": [fact.true for fact in listed],
            "foil": ["automatic" if fact.foil_auto else fact.foil for fact in listed],
            "relation": [(fact.relation or "").replace("_", " ") for fact in listed],
            "prompt": [fact.prompt for fact in listed],
            "case_id": [str(fact.case_id) for fact in listed],
        }
    )
    first = list(more) if more is not None else []
    if more is not None:
        frame = pd.concat([frame.drop(columns=first, errors="ignore"), more.iloc[: len(frame)]], axis=1)
    columns = {
        "trace": listing.link("Trace", HELP["trace"]),
        "subject": Column("subject"),
        "true": Column("true object", HELP["true"]),
        "foil": Column("foil", HELP["foil"]),
        "relation": Column("relation"),
        "case_id": Column("case_id", HELP["case_id"]),
        "prompt": Column("prompt", HELP["prompt"], width="large"),
    } | (config or {})
    order = ["trace", "subject", *first, *(name for name in COLUMNS[2:] if name not in first)]
    listing.show(
        frame, {name: columns[name] for name in order}, key=key, on_select="rerun", selection_mode="multi-row",
        most=460, alt="Facts",
    )  # fmt: skip
    return frame[[name for name in order if name != "trace"]]


def _count(n: int, known: int) -> str:
    said = f"{n:,} facts" if n == known else f"{n:,} of {known:,} facts"
    if n > MOST:
        said += f"; the first {MOST:,} are listed, narrow them down for the others"
    return said


# -- what can be done with some facts ----------------------------------------------------------------------------------


def actions(view: LibraryView, chosen: Sequence[Fact]) -> None:
    """What can be done with the ticked facts."""
    with st.container(horizontal=True, vertical_alignment="center"):
        to_list(chosen, ticked=True, origin=view.source)
        if len(chosen) == 1:
            study_state.trace_link(library_state.trace_of(view, chosen[0]))
        if view.source == BUNDLED:
            return
        if len(chosen) == 1:
            with st.popover("Edit", icon=":material/edit:", key=f"es_library_edit {hash(chosen[0])}"):
                _edit(view, chosen[0])
        ids = [fact.case_id for fact in chosen]
        library_state.confirm(
            f"Take out {len(ids):,}", f"Take {library_lists.count(len(ids))} out of this list",
            lambda: _remove(view.source, ids), key="facts",
        )  # fmt: skip


def _remove(name: str, ids: Sequence[int]) -> None:
    doing(lambda: base.workbench().fact_lists.remove(name, ids), lambda n: f"Took out {library_lists.count(n)}.")


def to_list(chosen: Sequence[Fact], *, ticked: bool, origin: str, what: str = "") -> None:
    """Making a list of these facts, or adding them to one. `origin`: the list that they are from."""
    which = what or f"{'ticked' if ticked else 'shown'}"
    label = f"To a list: {len(chosen):,} {which}"
    with st.popover(label, icon=":material/playlist_add:", key=f"es_to_list_{what} {origin}"):
        names = library_lists.names()
        key = address.key(f"library to list {what} {len(names)}")
        new = "a new list"
        into = st.selectbox("Into", [new, *(name for name in names if name != origin)], key=f"{key} into")
        if into == new:
            st.text_input("Name", key=key, max_chars=120)
        st.button(
            "Make the list" if into == new else "Add", type="primary", key=f"es_to_list_do_{what}",
            on_click=_put, args=(None if into == new else into, key, list(chosen), origin),
        )  # fmt: skip


def _put(into: str | None, key: str, chosen: Sequence[Fact], origin: str) -> None:
    if into is None:
        library_lists.keep(st.session_state.get(key) or "", chosen, f"Chosen from the list {origin}.")
        return
    added = doing(lambda: base.workbench().fact_lists.add(into, chosen))
    if added is not None:
        there = len(chosen) - len(added)
        more = f" {there:,} were there already." if there else ""
        doing(lambda: None, f"Added {library_lists.count(len(added))} to “{into}”.{more}")
        look(source=into, section="facts")


# -- one's own ---------------------------------------------------------------------------------------------------------


def _own(view: LibraryView) -> None:
    with st.expander("Add a fact of your own", icon=":material/add:"):
        _add(view)


@st.fragment
def _add(view: LibraryView) -> None:
    """Fields, live tokens, and where the fact goes. A fragment: typing redraws only this."""
    left, right = st.columns(2, gap="large")
    with left:
        typed = fact_fields.draw(Fact("", "", "", relation=view.relation), place="library ", relation=True)
    with right:
        st.caption(text.plain(f"As {view.model.name} reads it (the model is chosen under Validation):"))
        ready = _tokens(view, typed)
        names = library_lists.names()
        new = "a new list"
        options = [*names, new]
        into = st.selectbox(
            "Into the list", options, index=options.index(view.source) if view.source in names else len(names),
            key=address.key(f"library add into {view.source} {len(names)}"),
        )  # fmt: skip
        name = into
        if into == new:
            name = st.text_input("Name of the list", "my facts", key=address.key("library add name"), max_chars=120)
        if st.button("Add the fact", type="primary", key="es_library_add", disabled=not _filled(typed)):
            _put_typed(name, typed, new=into == new)
            address.rerun()
        if _filled(typed) and not ready:
            st.caption("It can be kept although this model cannot be asked about it.")


def _put_typed(name: str, typed: Fact, *, new: bool) -> None:
    desk = base.workbench().fact_lists
    if new:
        made = doing(lambda: desk.put(name, [typed], note="Typed in."), lambda made: f"Made the list “{made}”.")
        if made is not None:
            look(source=made)
        return
    added = doing(
        lambda: desk.add(name, [typed]),
        lambda added: f"Added to “{name}”." if added else f"This fact is in “{name}” already.",
    )
    if added is not None and name != library_state.HERE.value.source:
        look(source=name)


@st.fragment
def _edit(view: LibraryView, fact: Fact) -> None:
    typed = fact_fields.draw(fact, place=f"library edit {fact.case_id} ", relation=True)
    _tokens(view, typed)
    same = typed == fact
    if st.button("Save", type="primary", key="es_library_save", disabled=same or not _filled(typed)):
        desk = base.workbench().fact_lists
        doing(lambda: desk.edit(view.source, fact.case_id, typed), "Saved.")
        address.rerun()


def _tokens(view: LibraryView, fact: Fact) -> bool:
    if not fact.text.strip():
        st.caption("Its tokens are shown here as you type.")
        return False
    return fact_fields.tokens(
        fact, view.model, special_tokens=view.special_tokens, object_tokens=view.object_tokens
    )


def _filled(fact: Fact) -> bool:
    return all(part.strip() for part in (fact.prompt, fact.subject, fact.true)) and bool(fact.foil or fact.foil_auto)

