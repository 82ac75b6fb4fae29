"""One expert on the Routing page: how often, where, and the tokens behind that, each open on the Trace page."""

from __future__ import annotations

import re

import pandas as pd
import streamlit as st

from core.derived import DerivedResult
from core.formats import NONE, count, percent
from core.links import Link
from core.named_rows import named_rows
from core.prompt_forms import DIRECT
from core.requests import Fact
from core.results import expert_name
from core.roles import ALL
from core.routing_kinds import routed_of
from core.routing_link import CHANGE
from core.routing_sets import of_expert
from core.views import visible

from . import address, downloads, expert_state, listing, numbers, pictures, routing_state, study_state, text
from .listing import Column
from .routing_shown import CLASS_WORDS, Shown
from .routing_state import look

MOST_ROWS = 300
"""Tokens listed on the page; the download has all."""
AROUND = 40
"""Characters of the prompt shown on each side of a token."""


def draw(shown: Shown) -> None:
    """The expert that the view names."""
    view, result = shown.view, shown.result
    name = expert_name(shown.layer, view.expert)
    table = numbers.of(
        f"the tokens behind {name}", _tokens_behind, result, shown.layer, view.expert, view.run, view.position_class
    )
    if table is None:
        return
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
            of = f" of set {shown.which.upper()}" if shown.which else ""
            st.markdown(f"##### {name}: the tokens{of} behind it", width="content")
            with st.container(horizontal=True, vertical_alignment="center", width="content"):
                expert_state.page_link(routing_state.expert_view(view, shown.layer, view.expert))
                nobody = {"expert": None, "fact": None}
                st.button("Close", key=address.key(f"routing close {shown.which}"), on_click=look, kwargs=nobody)
                title = f"Tokens{of} routed to {name}"
                downloads.menu(f"routing-behind{shown.which}", title, result, None, table)
        st.markdown(_sentence(shown, name))
        if table.empty:
            st.info("No token of this class is routed to it.", icon=":material/info:")
            return
        _list(shown, table)


def _sentence(shown: Shown, name: str) -> str:
    """Its frequency in every position class."""
    table = shown.result.tables["frequency"]
    mine = table[(table["name"] == name) & (table.position_class != ALL)]
    parts = []
    for position_class in shown.classes:
        if position_class == ALL:
            continue
        by_run = mine[mine.position_class == position_class].set_index("run").frequency
        shares = [f"{percent(by_run[run])}" if run in by_run else NONE for run in ("clean", "corrupt")]
        said = shares[0] if not shown.has_corrupt else f"{shares[0]} clean, {shares[1]} corrupt"
        parts.append(f"{CLASS_WORDS[position_class]} **{said}**")
    return f"Frequency: {'; '.join(parts)}."


def _tokens_behind(
    result: DerivedResult, layer: int, expert: int, run: str, position_class: str
) -> pd.DataFrame:
    """The tokens of the shown set that are routed to the expert, largest router weight first, each in its prompt."""
    routed = pictures.kept(routed_of, result)
    found = of_expert(routed, layer, expert)
    if run != CHANGE:
        found = found[found.run == run]
    if position_class != ALL:
        found = found[found.position_class == position_class]
    found = found.sort_values("router_weight", ascending=False, kind="stable")
    place = result.tables["prompts"].place.to_numpy()
    contexts = pictures.kept(_contexts, result)
    rows = found.assign(
        place=place[found.fact.to_numpy()],
        context=[contexts(number) for number in found.index],
        token=found.token.astype(str).map(visible),
    )
    columns = [
        "fact", "place", "case_id", "relation", "subject", "run", "draw", "position_class", "pos", "token_id", "token",
        "router_weight", "context",
    ]  # fmt: skip
    return rows[columns].reset_index(drop=True)


def _contexts(result: DerivedResult):  # noqa: ANN202 - a function of a token's number
    """A function that shows a token (by its number) in its prompt, between brackets."""
    tokens = pictures.kept(routed_of, result).tokens
    pieces = tokens.token.astype(str).to_numpy()
    pos = tokens.pos.to_numpy()
    ends = (pos == 0).nonzero()[0].tolist() + [len(tokens)]
    following = dict(zip(ends, ends[1:], strict=False))

    def show(number: int) -> str:
        first = number - int(pos[number])
        before, after = (whole_characters("".join(some)) for some in (
            pieces[first:number], pieces[number + 1 : following[first]],
        ))  # fmt: skip
        left = f"…{before[-AROUND:]}" if len(before) > AROUND else before
        right = f"{after[:AROUND]}…" if len(after) > AROUND else after
        return f"{left}⟦{pieces[number]}⟧{right}".strip()

    return show


def whole_characters(text: str) -> str:
    """Text made of decoded pieces with bytes such as <0xC3><0xB2> put together where they spell a character."""

    def put_together(found: re.Match[str]) -> str:
        try:
            return bytes.fromhex(found[0].replace("<0x", "").replace(">", "")).decode()
        except UnicodeDecodeError:
            return found[0]

    return re.sub(r"(?:<0x[0-9A-F]{2}>)+", put_together, text)


def _list(shown: Shown, table: pd.DataFrame) -> None:
    view = shown.view
    top = table.head(MOST_ROWS)
    facts = shown.result.request.facts
    columns = {
        "open": listing.link("open", "On the Trace page, new tab."),
        "router_weight": Column("weight", "Router weight: what multiplies the expert's output.", width=60),
        "context": Column("token in its prompt", width="large"),
        "token": Column("token", width=80),
        "pos": Column("pos", width=40),
        "relation": Column("relation", width=110),
        "run": Column("run", width=60),
        "position_class": Column("positions", width=90),
    }
    if view.run != CHANGE:
        del columns["run"]
    if view.position_class != ALL:
        del columns["position_class"]
    if not facts:
        del columns["open"], columns["relation"]
    else:
        top = top.assign(open=[_address(shown, facts[row.place], row.pos) for row in named_rows(top)])
    base = (shown.result.request, view.run, view.position_class, shown.layer, view.expert)
    slot = pictures.slot(f"routing-tokens{shown.which}", base, None)

    def pick() -> None:
        rows = address.ticked(slot.key)
        look(fact=int(top.fact[rows[0]]) if rows else None)

    options = {"on_select": address.callback(slot.key, pick), "selection_mode": "single-row"} if facts else {}
    listing.show(top, columns, key=slot.key, most=330, alt="Tokens routed to the expert", **options)
    more = f" The first {MOST_ROWS} of {count(len(table))}; the download has all." if len(table) > MOST_ROWS else ""
    st.caption(f"{count(len(table))} token{'s' if len(table) > 1 else ''}, largest router weight first.{more}")
    if facts:
        _one(shown, top)
    else:
        st.caption("Plain prompts have no subject, so there is nothing to trace.")


def _address(shown: Shown, fact: Fact, pos: int) -> str:
    return study_state.trace_address(link(shown, fact, pos))


def link(shown: Shown, fact: Fact, pos: int) -> Link:
    """The fact on the Trace page, at the position, the expert marked."""
    view = shown.view
    chosen = view.b if shown.which == "b" and view.b is not None else view.a
    listed = chosen.facts.stored if chosen.form == DIRECT else ""  # in another form it is no fact of the list
    return routing_state.trace_link(
        view, fact, pos=int(pos), layer=shown.layer, expert=view.expert, listed=listed
    )  # fmt: skip


def _one(shown: Shown, top: pd.DataFrame) -> None:
    """The ticked fact, and the way to it in this tab."""
    mine = top[top.fact == shown.view.fact]
    if shown.view.fact is None or mine.empty:
        st.caption("“open” shows the fact on the Trace page in another tab; tick a row to go there in this one.")
        return
    row = mine.iloc[0]
    fact = shown.result.request.facts[int(row.place)]
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"{text.plain(fact.text)} → **{text.plain(fact.true)}**", width="content")
        study_state.trace_link(link(shown, fact, row.pos))
