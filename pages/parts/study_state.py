"""What this browser tab looks at on the Study page: a `core.study.link.StudyView`, in step with the address bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import streamlit as st

from core.errors import ExpertScopeError
from core.links import Link, with_query
from core.study.link import StudyView, from_query, to_query

from .address import Address

APP = Path(__file__).resolve().parent.parent.parent / "app.py"
HERE: Address[StudyView] = Address("study", read=from_query, write=to_query)


def look(**changes: Any) -> None:
    """Look at something else of the same study, or (`study=`) at another one from its beginning."""
    current = StudyView() if "study" in changes else replace(HERE.value, problems=())
    HERE.change(replace(current, **changes))


def address() -> str:
    """The link to what is shown."""
    return with_query(st.context.url or "http://localhost:8501/Study", to_query(HERE.value))


def trace_address(link: Link) -> str:
    """The address of the Trace page with this question and view."""
    parts = urlsplit(st.context.url or "http://localhost:8501/Study")
    root = urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/").rpartition("/")[0] + "/", "", ""))
    return with_query(root, link.to_query())


def doing(work: Callable[[], Any]) -> Any:
    """`work()` in a callback: what is wrong is said at the top of the page that is drawn next, and None returned."""
    try:
        return work()
    except ExpertScopeError as error:
        st.session_state["es_study_said"] = str(error)
        return None


def renamed(new: str) -> StudyView:
    """The same view of the study under its new name."""
    return replace(HERE.value, study=new)


def trace_link(link: Link) -> None:
    """The way to the Trace page in this tab; the back button comes back."""
    st.page_link(APP, label="Open on the Trace page", icon=":material/biotech:", query_params=link.to_query())
