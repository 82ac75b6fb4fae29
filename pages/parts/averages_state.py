"""What this browser tab looks at on the Averages page: a `core.averages.link.AveragesView`, in step with the address
bar."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import streamlit as st

from core.averages.link import AveragesView, from_query, to_query
from core.links import with_query
from core.requests import TraceRequest

from . import study_state
from .address import Address

PAGE = study_state.APP.parent / "pages" / "Averages.py"
HERE: Address[AveragesView] = Address("averages", read=from_query, write=to_query)


def look(**changes: Any) -> None:
    """Look at something else. Of another model or at another layer no expert is chosen yet."""
    current = HERE.value
    if "layer" in changes and "expert" not in changes:
        changes["expert"] = None
    HERE.change(replace(current, problems=(), **changes))


def ask(request: TraceRequest, *, bundled: bool | None = None, listed: str = "") -> None:
    """Another model or other settings of every fact's trace."""
    same = request.model.name == HERE.value.asked.model.name
    look(asked=request, **({} if same else {"layer": None, "expert": None}))


def address() -> str:
    """The link to what is shown."""
    return with_query(st.context.url or "http://localhost:8501/Averages", to_query(HERE.value))
