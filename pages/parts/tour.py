"""The guided tour on the Trace page: one panel, five steps, each of which shows what it speaks of."""

from __future__ import annotations

import streamlit as st

from core import tour
from core.links import Link, View
from core.requests import TraceRequest
from core.results import TraceResult

from . import address, base, state, study_state, text

_STEP, _OFFER, _PANEL = "es_tour", "es_tour_offer", "es_tour_panel"
# a container's own box lies in another one of its height, which is what has to stick
_STYLE = f"""<style>
[data-testid="stLayoutWrapper"]:has(> .st-key-{_PANEL}) {{ position: sticky; bottom: 1rem; z-index: 50; }}
.st-key-{_PANEL} {{ background: %s; box-shadow: 0 2px 14px rgba(0, 0, 0, .35); }}
</style>"""
PARAMETER = "tour"
"""A link with it begins the tour."""


def begin() -> None:
    """Before the page reads its address: a link may begin the tour; who comes without any link is offered it."""
    params = st.query_params
    if PARAMETER in params:
        del params[PARAMETER]
        st.session_state[_STEP] = 0
    elif _OFFER not in st.session_state:
        st.session_state[_OFFER] = not params.to_dict()


def link() -> None:
    """The way to the tour from another page."""
    st.page_link(study_state.APP, label="Guided tour", icon=":material/tour:", query_params={PARAMETER: "1"})


def offer() -> None:
    """At the page's head: the offer, to who came without any link."""
    if st.session_state.get(_STEP) is not None or not st.session_state.get(_OFFER):
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown("New here? Five steps show what this page says.", width="content")
        st.button("Take the tour", key="es_tour_start", icon=":material/tour:", on_click=_start)
        st.button("No, thanks", key="es_tour_no", type="tertiary", on_click=_leave)


def draw(result: TraceResult) -> None:
    """At the page's end: the panel, if the tour is on. It stays in sight wherever on the page one looks."""
    step = st.session_state.get(_STEP)
    if step is None:
        return
    stops = tour.stops(result)
    stop = stops[min(step, len(stops) - 1)]
    from .pictures import theme  # at the page's end charts are imported: its head does not wait for them

    st.html(_STYLE % theme().background)
    with st.container(border=True, key=_PANEL):
        st.markdown(f":material/tour: **{step + 1} of {len(stops)}: {text.plain(stop.title)}**")
        st.markdown(text.plain(stop.words))
        with st.container(horizontal=True):
            if step > 0:
                st.button("Step back", key="es_tour_back", on_click=_go, args=(step - 1, stops[step - 1].view))
            if step + 1 < len(stops):
                view = stops[step + 1].view
                st.button("Next step", key="es_tour_next", type="primary", on_click=_go, args=(step + 1, view))
            st.button("End the tour", key="es_tour_end", type="tertiary", on_click=_leave)


def _start() -> None:
    """From the beginning, on the default fact and the demo model."""
    st.session_state[_STEP], st.session_state[_OFFER] = 0, False
    state.HERE.change(Link(TraceRequest(fact=base.default_fact()), View(), True))


def _go(step: int, view: View) -> None:
    st.session_state[_STEP] = step
    state.look(pos=view.pos, layer=view.layer, expert=view.expert, strip=None)


def _leave() -> None:
    address.touch()
    st.session_state.pop(_STEP, None)
    st.session_state[_OFFER] = False
