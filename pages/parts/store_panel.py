"""The store's size at the foot of the sidebar: how full it is, its limit, forgetting."""

from __future__ import annotations

import streamlit as st

from core import formats
from core.errors import ExpertScopeError

from . import address, base, study_state, text

HEALTH = study_state.APP.parent / "pages" / "Health.py"
_MB = 10**6


def draw() -> None:
    """One line, and a popover with what can be done; and the way to the server's health."""
    _size()
    st.page_link(HEALTH, label="Health", icon=":material/monitor_heart:")


def _size() -> None:
    bench = base.workbench()
    status = bench.store_status()
    if status.error:
        st.caption(f"Nothing is stored: {text.plain(status.error)}")
        return
    with st.popover(
        f"Store: {formats.size(status.contents)} of {formats.size(status.limit)}", type="tertiary", width="stretch"
    ):
        st.caption(
            f"What was computed is kept, so that it appears at once when asked again. The file takes "
            f"{formats.size(status.size)}; beyond the limit the least recently used goes first."
        )
        limit = st.number_input("Limit (MB)", 10, 10**7, round(status.limit / _MB), 100, key="es_store_limit")
        sure = st.checkbox("Unlock what deletes", key="es_store_sure", help="What is deleted has to be computed again.")
        if limit * _MB != status.limit and abs(limit * _MB - status.limit) >= _MB:
            st.button(
                "Set limit", on_click=_do, args=("limit", int(limit) * _MB), key="es_set_limit",
                disabled=limit * _MB < status.contents and not sure,
            )  # fmt: skip
        for i, (model, size) in enumerate(status.models):
            st.button(
                f"Forget {text.plain(model.split(' ')[0])} ({formats.size(size)})", on_click=_do, args=("clear", model),
                key=f"es_forget_{i}", width="stretch", disabled=not sure,
            )  # fmt: skip
        st.button(
            "Forget everything", on_click=_do, args=("clear", None), key="es_forget_all", width="stretch",
            disabled=not (status.models and sure),
        )  # fmt: skip
        if problem := st.session_state.pop("es_store_problem", None):
            st.error(text.plain(problem))


def _do(what: str, value: int | str | None) -> None:
    address.touch()
    bench = base.workbench()
    try:
        if what == "limit":
            bench.set_store_limit(value)
        else:
            bench.clear_store(value)
    except ExpertScopeError as error:
        st.session_state["es_store_problem"] = text.on_page(str(error))
