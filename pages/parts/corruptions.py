"""Does the other corruption find the same sites? Noise lies off what the model was trained on, another subject does
not; where the two disagree the page warns (protocol.md, "More pitfalls")."""

from __future__ import annotations

import streamlit as st

from core.agreement import Agreement, agreement
from core.errors import ExpertScopeError
from core.links import View
from core.requests import CORRUPTIONS, TraceRequest
from core.results import MIN_DROP, TraceResult

from . import base, compare_state, pictures, state, text
from .answers import answer

NAMES = {"noise": "noise", "replace": "another subject"}
HELP = (
    "Traces the fact once more under the other corruption and says whether both find the same sites. A site that only "
    "one of them finds may be due to the corruption rather than to the fact."
)


def draw(result: TraceResult, view: View) -> None:
    """What is known of the other corruption's map, or a button that asks for it."""
    other = other_request(result.request)
    try:
        found = base.workbench().lookup(other)
    except ExpertScopeError:  # there is none, no other subject has as many tokens: said when it is asked for
        found = None
    if found is None and not view.check:
        st.button(
            f"Check with {NAMES[other.corruption]}", icon=":material/compare:", type="tertiary", help=HELP,
            key=state.key("check"), on_click=lambda: state.look(check=True),
        )  # fmt: skip
        return
    if found is None:
        found, _ = answer(other, "check")
    if found is not None:
        _say(result, found)


def other_request(request: TraceRequest) -> TraceRequest:
    """The same question under the other corruption."""
    (other,) = (kind for kind in CORRUPTIONS if kind != request.corruption)
    return request.replace(corruption=other, replacement=())


def _say(result: TraceResult, other: TraceResult) -> None:
    def compare(other: TraceResult, _: TraceRequest) -> Agreement | None:
        return agreement(*((result, other) if result.request.corruption == "noise" else (other, result)))

    compared = pictures.kept(compare, other, result.request)
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        if compared is None:
            st.caption(
                f"Noise and another subject cannot be compared here: one of the drops is below {MIN_DROP:g} logits, or "
                "nothing restores."
            )
        elif compared.agrees:
            st.caption(f":material/check: {text.plain(compared.sentence)}")
        else:
            st.warning(f"{text.plain(compared.sentence)} Read the maps with care.", width="stretch")
        query = compare_state.against(result.request, other.request, bundled=state.HERE.value.bundled)
        st.page_link(compare_state.PAGE, label="Side by side", icon=":material/compare_arrows:", query_params=query)

