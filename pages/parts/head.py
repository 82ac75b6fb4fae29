"""The head of the Trace page: the fact, its contrasts, the next tokens, the settings, warnings, the link."""

from __future__ import annotations

from typing import Any

import streamlit as st

from core import views
from core.errors import InputError
from core.formats import bound, logits, probability, rough, typed
from core.prompts import subject_span
from core.requests import Fact
from core.results import MIN_DROP, TraceResult

from . import compare_state, display, frame, present, state, text
from .compare_state import PAGE as COMPARE


def title(result: TraceResult | None, fresh: bool) -> None:
    """The first line: the page's name, where the answer came from, the link."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        with st.container(horizontal=True, vertical_alignment="center", width="content"):
            st.subheader("Trace", anchor=False, width="content")
            if result is not None:
                frame.came_from(result.provenance.created, fresh)
        with st.container(horizontal=True, vertical_alignment="center", width="content"):
            query = compare_state.beside(state.HERE.value)
            fact = state.HERE.value.request.fact
            present.place("trace", f"{fact.text.strip()} → {fact.true.strip()}")
            st.page_link(COMPARE, label="Compare with …", icon=":material/compare_arrows:", query_params=query)
            with st.popover("Link", icon=":material/link:"):
                st.caption("Opens exactly this: model, fact, settings, cell and expert.")
                st.code(state.address(), language=None, wrap_lines=True)


def fact_line(fact: Fact, true: str, foil: str, first_token: bool) -> None:
    """The prompt with its subject marked, the true object and the foil."""
    try:
        span = subject_span(fact)
    except InputError:
        span = None
    st.html(text.head(text.marked_prompt(fact.text, span), true, foil, first_token))


def draw(result: TraceResult) -> Any:
    """Everything above the maps; the place for the menu of `next_tokens`."""
    request, prov = result.request, result.provenance
    fact_line(
        request.fact,
        prov.true_token.strip() or prov.true_token,
        prov.foil_token.strip() or prov.foil_token,
        request.first_token,
    )
    clean, corrupt = views.p_true(result)
    with st.grid(4, min_column_width=display.pixels(210), gap="small"):
        st.metric("clean contrast", logits(result.clean_contrast), help=CONTRAST, border=True)
        st.metric("corrupt contrast", logits(result.corrupt_contrast), help=CORRUPT, border=True)
        st.metric("drop", logits(result.drop), help=DROP, border=True)
        st.metric("P(true)", f"{probability(clean)} → {probability(corrupt)}", help=P_TRUE, border=True)
    left, right = st.columns([9, 1], gap=None)
    left.caption(UNITS)
    place = right.container(horizontal=True, horizontal_alignment="right")
    tops = views.next_tokens(result)
    options = {"true": prov.true_token, "foil": prov.foil_token}
    mean = "" if request.draws == 1 else f", mean of {request.draws} draws"
    with st.grid(3, min_column_width=display.pixels(215), gap="medium"):
        st.html(text.next_tokens("next token, clean run", tops["clean"], **options))
        st.html(text.next_tokens(f"next token, corrupt run{mean}", tops["corrupt"], **options))
        st.html(text.pairs(_settings(result)))
    _warnings(result)
    return place


def next_tokens(place: Any, result: TraceResult) -> None:
    """The download menu of the most probable next tokens, where `draw` left room for it."""
    from . import downloads  # its imports take most of a second

    with place:
        downloads.menu("next-tokens", "Most probable next tokens", result, None, result.next_tokens)


def _settings(result: TraceResult) -> list[tuple[str, ...]]:
    request, prov = result.request, result.provenance
    rows = [
        ("draws", str(request.draws)),
        ("noise level", f"{typed(request.noise)} (σ = {rough(prov.noise_sigma)})"),
        ("seed + case_id", f"{request.seed} + {request.fact.case_id}"),
        ("tokens", f"special {request.special_tokens}, objects {request.object_tokens}"),
        ("model", f"{prov.model.split('/')[-1]}, {prov.dtype} on {prov.device}"),
    ]
    if request.corruption == "replace":
        rows[0:3] = [("draws", str(request.draws)), ("corruption", views.corruption(result))]
        if not request.replacement:
            rows.insert(2, ("seed + case_id", f"{request.seed} + {request.fact.case_id}"))
    if request.first_token:
        rows = [(name, f"{value}, first token only" if name == "tokens" else value) for name, value in rows]
    if prov.quantisation:
        rows.append(("weights", prov.quantisation))
    if prov.noise_floor is not None:
        floor = f"{bound(prov.noise_floor)} logits"
        rows.append(("noise floor", floor, f"{NOISE_FLOOR} Here {views.rounding(prov)}."))
    return rows


def _warnings(result: TraceResult) -> None:
    said = []
    if problems := views.filter_problems(result):
        said.append(
            f"This fact would not pass the paper's filter: {' and '.join(problems)} logits. Read its maps with care."
        )
    if result.drop < MIN_DROP:
        what = "takes nothing away" if result.drop <= 0 else f"takes away less than {MIN_DROP:g} logits"
        said.append(
            f"The corruption {what}, so restoration is undefined and shown as missing. Rescue in logits is still "
            "defined: switch below."
        )
    if said:
        st.warning("  \n".join(said))
    if abs(result.drop) < (result.provenance.noise_floor or 0):
        st.warning("The drop is within rounding of this model and dtype: its maps say nothing about this fact.")
    for note in result.provenance.notes:
        st.caption(text.plain(note))


UNITS = (
    "Contrasts and drop in logits. Contrast: logit(true object) − logit(foil) at the last token; drop: what there is "
    "to restore. Below: the most probable next tokens with their probabilities."
)
CONTRAST = "logit(true object) − logit(foil) at the last position of the prompt as it is."
CORRUPT = "The same with noise on the subject's input embeddings, or with another subject; mean over the draws."
DROP = "Clean minus corrupt contrast: what there is to restore."
NOISE_FLOOR = "Rescues below it are within rounding: patches were run twice, in other batches and rounded anew."
P_TRUE = "Probability of the true object's token: in the clean run → in the corrupt run (mean over the draws)."
