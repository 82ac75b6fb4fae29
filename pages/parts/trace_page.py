"""The Trace page: one fact, from the question in the sidebar to the experts that carry it."""

from __future__ import annotations

import dataclasses

import streamlit as st

from core.links import check_view
from core.results import TraceResult

from . import base, frame, head, in_line, neighbours, sidebar, state, tour
from .answers import answer


@in_line.drawn
def draw() -> None:
    """The whole page."""
    base.start_page("Trace")
    result = _draw()
    frame.foot(() if result is None else result.provenance.notes)


def _draw() -> TraceResult | None:
    """Everything but the foot; the trace that is shown, if it is there."""
    tour.begin()
    link = state.begin()
    sidebar.draw()
    state.write()
    top = st.container()
    frame.problems(link.problems)
    result, fresh = answer(link.request, "trace")
    with top:
        head.title(result, fresh)
        neighbours.draw(None if result is None else len(result.provenance.tokens) - 1)
        tour.offer()
    if result is None:
        fact = link.request.fact
        head.fact_line(fact, fact.true, fact.foil or "(automatic)", link.request.first_token)
        return None
    prov = result.provenance
    view, problems = check_view(
        link.view,
        n_tokens=len(prov.tokens),
        moe_layers=prov.moe_layers,
        n_layers=prov.n_layers,
        n_experts=prov.n_experts,
        shared=prov.has_shared,
    )
    frame.problems(problems)
    place = head.draw(result)
    from . import maps  # charts take most of a second to import: the head is on the screen by then

    head.next_tokens(place, result)
    maps.draw(result, view)
    _provenance(result)
    tour.draw(result)
    return result


def _provenance(result: TraceResult) -> None:
    from . import downloads

    with st.container(horizontal=True, vertical_alignment="center"):
        with st.expander("Where these numbers come from"):
            prov = dataclasses.asdict(result.provenance)
            st.json({"request": result.request.to_dict(), "provenance": prov}, expanded=1)
        downloads.menu("trace", "All rows of this trace", result, None, result.frame)
