"""What this browser tab looks at on the Expert page: a `core.expert_link.ExpertView`, in step with the address bar."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import streamlit as st

from core.expert_link import ExpertView, from_query, of_trace, to_query
from core.links import with_query
from core.requests import TraceRequest

from . import study_state
from .address import Address

_SAME = {"model", "layer", "expert", "facts"}
PAGE = study_state.APP.parent / "pages" / "Expert.py"
HERE: Address[ExpertView] = Address("expert", read=from_query, write=to_query)


def look(**changes: Any) -> None:
    """Look at something else. Another expert, model or set of facts lets go of the ticked fact and neuron."""
    current = HERE.value
    if not _SAME.isdisjoint(changes):
        changes = {"fact": None, "neuron": None} | changes
    HERE.change(replace(current, problems=(), **changes))


def address() -> str:
    """The link to what is shown."""
    return with_query(st.context.url or "http://localhost:8501/Expert", to_query(HERE.value))


def link_from_trace(request: TraceRequest, layer: int, expert: int | str | None) -> None:
    """The way from an expert of a trace; none for the shared one."""
    if isinstance(expert, int):
        page_link(of_trace(request, layer=layer, expert=expert))


def page_link(view: ExpertView) -> None:
    """The way to an expert's page in this tab; the back button comes back."""
    st.page_link(PAGE, label=f"Open {view.name} on its page", icon=":material/hub:", query_params=to_query(view))
