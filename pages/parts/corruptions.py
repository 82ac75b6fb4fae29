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
    found = _known(result.request)
    if found is None and not view.check:
        other = others(result.request)[-1]
        st.button(
            f"Check with {NAMES[other.corruption]}", icon=":material/compare:", type="tertiary", help=HELP,
            key=state.key("check"), on_click=lambda: state.look(check=True),
        )  # fmt: skip
        return
    if found is None:
        found, _ = answer(others(result.request)[-1], "check")
    if found is not None:
        _say(result, found)


def others(request: TraceRequest) -> list[TraceRequest]:
    """The same question under the other corruption: with as many draws, and as it is asked here. Another subject is
    asked for in one draw, for many prompts have no more subjects of the same length."""
    (kind,) = (kind for kind in CORRUPTIONS if kind != request.corruption)
    other = request.replace(corruption=kind, replacement=())
    return list(dict.fromkeys([other, other.replace(draws=1)])) if kind == "replace" else [other]


def _known(request: TraceRequest) -> TraceResult | None:
    for other in others(request):
        try:
            found = base.workbench().lookup(other)
        except ExpertScopeError:  # said when it is asked for
            continue
        if found is not None:
            return found
    return None


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

