"""The Method page: formulas, one fact's own numbers in them, the study's steps, and what to keep in mind."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import streamlit as st

from core import method
from core.links import Link, View, from_query
from core.results import TraceResult

from . import base, frame, head, in_line, navigation, present, study_state, text, tour
from .address import Address
from .answers import answer

HERE: Address[Link] = Address(
    "method",
    read=lambda params: from_query(params, bundled=base.bundled().get, default=base.default_fact()),
    write=lambda current: replace(current, view=View()).to_query(),
)
"""Which question the worked example is about: the Trace page's parameters."""


@in_line.drawn
def draw() -> None:
    """The whole page."""
    base.start_page("Method")
    link = HERE.begin()
    with st.sidebar:
        navigation.draw()
    HERE.write()
    frame.problems(link.problems)
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.subheader("Method", anchor=False, width="content")
        present.place("method", f"Method: {link.request.fact.text.strip()} → {link.request.fact.true.strip()}")
    st.markdown(
        "Expert-aware causal tracing asks which routed experts of a sparse mixture-of-experts model carry a fact "
        f"([Lu, Modarressi, Liu and Schütze]({method.PAPER})). Noise on the subject takes the model's preference for "
        "the true answer away; then clean pieces of the computation are put back, one at a time, and what each brings "
        "back is measured. What goes beyond the paper is marked (X)."
    )
    result = _example(link)
    with st.grid(2, min_column_width=430, gap="medium"):
        with st.container():
            st.markdown("#### Quantities")
            st.table(_table(method.QUANTITIES, "name", "what it is"))
        with st.container():
            st.markdown("#### Interventions")
            st.table(_table(method.INTERVENTIONS, "name", "in the run", "what is done"))
    st.markdown("#### From one fact to a claim: the study")
    st.markdown("\n".join(f"{number}. {text.plain(step)}" for number, step in enumerate(method.STUDY, 1)))
    st.markdown("#### Keep in mind")
    st.markdown("\n".join(f"- {text.plain(point)}" for point in method.CARE))
    if result is not None:
        _note(result)
    frame.foot()


def _note(result: TraceResult) -> None:
    """What is on the page, for its report."""
    for number, step in enumerate(method.worked_example(result), 1):
        present.note(f"method-{number}", f"{number}. {step.title}", None, None, result, caption=step.text)
    tables = {
        "Quantities": pd.DataFrame(method.QUANTITIES, columns=["name", "what it is"]),
        "Interventions": pd.DataFrame(method.INTERVENTIONS, columns=["name", "in the run", "what is done"]),
        "From one fact to a claim: the study": pd.DataFrame({"step": method.STUDY}),
        "Keep in mind": pd.DataFrame({"point": method.CARE}),
    }
    for title, table in tables.items():
        present.note(f"method-{title}", title, None, table, result)


def _example(link: Link) -> TraceResult | None:
    """The worked example, its numbers live; gives what they are from, once it is there."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown("#### A worked example", width="content")
        with st.container(horizontal=True, width="content"):
            study_state.trace_link(link)
            tour.link()
    result, _ = answer(link.request, "method")
    if result is None:
        return None
    prov = result.provenance
    head.fact_line(
        link.request.fact, prov.true_token.strip() or prov.true_token, prov.foil_token.strip() or prov.foil_token,
        link.request.first_token,
    )  # fmt: skip
    st.caption(
        f"Computed by {text.plain(prov.model)} ({prov.dtype}); the numbers are those of the Trace page. Its link, with "
        "/Method in it, shows another fact's here."
    )
    for number, step in enumerate(method.worked_example(result), 1):
        with st.container(border=True):
            st.markdown(f"**{number}. {text.plain(step.title)}**  \n{text.plain(step.words)}")
            for line in (*step.formula, *step.worked):
                st.latex(line)
    return result


def _table(rows: tuple[tuple[str, ...], ...], *names: str) -> list[dict[str, str]]:
    return [dict(zip(names, map(text.plain, row), strict=True)) for row in rows]
