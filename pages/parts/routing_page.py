"""The Routing page: where the tokens of many prompts go, clean against corrupt, one set against another."""

from __future__ import annotations

import functools

import streamlit as st

from core.derived import DerivedResult
from core.requests import Fact, corrupt_runs
from core.routing_link import FACTS, SECTIONS, RoutingView, check

from . import address, base, frame, in_line, listing, present, routing_sidebar, routing_state, text
from .answers import answer
from .routing_state import look

TITLES = {
    "frequency": "Frequency and load",
    "relations": "Relations",
    "co-activation": "Co-activation",
    "compare": "Compare two sets",
}
EXPLAINED = {
    "frequency": "How often each expert is routed: the share of the tokens that go to it. Every token goes to top-k "
    "experts, so a layer's frequencies add up to k.",
    "relations": "What the routing says about a fact's relation.",
    "co-activation": "Which experts of a layer serve the same tokens.",
    "compare": "How far two sets of prompts are routed differently, layer by layer, and which experts account for it.",
}


@in_line.drawn
def draw() -> None:
    """The whole page."""
    base.start_page("Routing")
    view = routing_state.HERE.begin()
    routing_sidebar.draw(view)
    routing_state.HERE.write()
    top = st.container()
    for problem in view.problems:
        st.warning(text.plain(problem))
    request = routing_state.request_of(view, view.a)
    result, fresh = (None, False) if request is None else answer(request, "routing")
    _title(top, result, fresh)
    if request is None:
        st.info(_nothing(view), icon=":material/info:")
    elif result is not None:
        _results(view, result)
    frame.foot()


def _nothing(view: RoutingView) -> str:
    if view.a.source == FACTS:
        return "There is no fact in this set in this form. Choose others in the sidebar."
    return "Paste prompts in the sidebar, one per line, or upload a text file."


def _title(place, result: DerivedResult | None, fresh: bool) -> None:  # noqa: ANN001 - a container
    """The page's name, where the answer came from, the link; report and script."""
    with place, st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        with st.container(horizontal=True, vertical_alignment="center", width="content"):
            st.subheader("Routing", anchor=False, width="content")
            if result is not None:
                frame.came_from(str(result.provenance["created"]), fresh)
        with st.container(horizontal=True, vertical_alignment="center", width="content"):
            script = functools.partial(present.of_set, fact_set=routing_state.HERE.value.a.facts)
            present.place("routing", "Routing of many prompts", script=script)
            with st.popover("Link", icon=":material/link:"):
                st.caption(
                    "Opens exactly this: model, prompts, settings, section, layer and expert. Long lists of pasted "
                    "prompts are in this machine's store, and the link names them by their content."
                )
                st.code(routing_state.address(), language=None, wrap_lines=True)


def _results(view: RoutingView, result: DerivedResult) -> None:
    view, problems = check(view, layers=result.values["layers"], n_experts=result.values["n_experts"])
    for problem in problems:
        st.warning(text.plain(problem))
    _left_out(result)
    key = address.key("routing section")
    st.segmented_control(
        "Section", SECTIONS, default=view.section, key=key, wrap=True, required=True, format_func=TITLES.__getitem__,
        on_change=address.callback(key, lambda: look(section=st.session_state[key] or SECTIONS[0])),
        label_visibility="collapsed",
    )  # fmt: skip
    corrupt = f" Corrupt runs: {corrupt_runs(view.trace(Fact('', '', '')))}." if result.request.facts else ""
    st.caption(EXPLAINED[view.section] + corrupt)
    # charts take most of a second to import: the head is on the screen by then
    from . import routing_compare, routing_sections, routing_shown

    shown = routing_shown.Shown.of(view, result)
    routing_shown.controls(shown, changes=view.section == "frequency")
    presented: DerivedResult = result
    if view.section == "compare":
        presented = routing_compare.draw(shown) or result
    else:
        routing_sections.SECTIONS[view.section](shown)
    present.say([f"{TITLES[view.section]}. {EXPLAINED[view.section]}{corrupt}", *presented.values["caption"]])
    with st.container(horizontal=True, vertical_alignment="center"):
        with st.expander("Where these numbers come from"):
            asked = {"model": view.model.name, "settings": result.request.get(), "facts": len(result.request.facts)}
            st.json({"request": asked, "provenance": result.provenance}, expanded=1)


def _left_out(result: DerivedResult) -> None:
    """The prompts that the model cannot take, counted and listed."""
    left_out = result.values["left_out"]
    if left_out:
        whole = len(left_out) + result.values["n_prompts"]
        with st.expander(f"{len(left_out)} of {whole} prompts left out: the model cannot take them"):
            listing.left_out(left_out, alt="Prompts left out and why")


