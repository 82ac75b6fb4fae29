"""The comparison on the Routing page: a second set beside the first, the divergence by layer, who accounts for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import streamlit as st

from core import routing_charts as charts
from core.derived import DerivedResult
from core.formats import bits, p_value
from core.picture import Picture
from core.prompt_forms import CONTEXT, DIRECT, PARAPHRASED
from core.routing_kinds import PERMUTATIONS, comparison_request
from core.routing_link import FACTS, PROMPTS, PromptSet

from . import address, listing, pictures, present, routing_sidebar, routing_state, text
from .answers import answer
from .listing import Column
from .routing_shown import CLASS_WORDS, Shown, chosen_expert, divergence_words, header
from .routing_state import choose


def draw(shown: Shown) -> DerivedResult | None:
    """The second set's panel, and what differs; the comparison, where there is one."""
    view = shown.view
    _sets(shown)
    if view.b is None:
        return None
    other = routing_state.request_of(view, view.b)
    if other is None:
        st.info("The second set is empty: choose facts, or paste prompts.", icon=":material/info:")
        return None
    result, _ = answer(comparison_request(shown.result.request, other), "routing comparison")
    if result is None:
        return None
    names = (f"A: {routing_state.name_of(view.a)}", f"B: {routing_state.name_of(view.b)}")
    _left_out(result)
    if other == shown.result.request:
        st.info("Both sets are the same prompts, so nothing can differ.", icon=":material/info:")
    _differences(shown, result, names)
    if view.expert is not None:
        chosen_expert(replace(shown, which="a"))
        second, _ = answer(other, "routing b")  # in the store by now
        if second is not None:
            chosen_expert(replace(shown, which="b", result=second))
    return result


def _sets(shown: Shown) -> None:
    view = shown.view
    with st.grid(2, min_column_width=330, gap="medium"):
        with st.container(border=True):
            st.markdown("**Set A**")
            st.markdown(text.plain(routing_state.name_of(view.a)))
            st.caption(f"{text.amount(shown.result.values['n_prompts'], 'prompt')}, chosen in the sidebar.")
        with st.container(border=True):
            if view.b is None:
                st.markdown("**Set B**")
                st.caption("Compare set A with …")
                _ways(view.a)
            else:
                routing_sidebar.prompt_set("b", view.b, title="Set B")
                st.button("Remove set B", key=address.key("routing no b"), on_click=choose, args=("b", None))


def _ways(a: PromptSet) -> None:
    """Second sets at a click."""
    ways: list[tuple[str, PromptSet]] = []
    if a.source == FACTS:
        if a.form == DIRECT:
            ways.append(("the same facts, paraphrased", replace(a, form=PARAPHRASED)))
            ways.append(("the same facts, stated before", replace(a, form=CONTEXT)))
        else:
            ways.append(("the same facts as they are", replace(a, form=DIRECT)))
    ways.append(("other facts (another relation, say)", PromptSet()))
    ways.append(("plain prompts (another language, say)", PromptSet(source=PROMPTS)))
    for label, chosen in ways:
        st.button(label, key=address.key(f"routing b {label}"), on_click=choose, args=("b", chosen))


def _left_out(result: DerivedResult) -> None:
    for name in "ab":
        if missing := result.values[f"left_out_{name}"]:
            with st.expander(f"Set {name.upper()}: {len(missing)} prompts left out: the model cannot take them"):
                listing.left_out(missing, alt="Prompts left out and why")


def _layer_table(result: DerivedResult, run: str, position_class: str) -> pd.DataFrame:
    table = result.tables["layers"]
    return table[(table.run == run) & (table.position_class == position_class)].reset_index(drop=True)


def _part_table(result: DerivedResult, run: str, position_class: str, layer: int) -> pd.DataFrame:
    table = result.tables["experts"]
    mine = (table.run == run) & (table.position_class == position_class) & (table.layer == layer)
    return table[mine].sort_values("part", ascending=False, kind="stable", ignore_index=True)


def _set_divergence(result: DerivedResult, run: str, position_class: str, **options: Any) -> Picture:
    return charts.divergence_layers(_layer_table(result, run, position_class), **options)


def _set_parts(result: DerivedResult, run: str, position_class: str, layer: int, **options: Any) -> Picture:
    return charts.divergence_parts(_part_table(result, run, position_class, layer), **options)


def _differences(shown: Shown, result: DerivedResult, names: tuple[str, str]) -> None:
    view = shown.view
    layers = pictures.kept(_layer_table, result, view.run, view.position_class)
    where = f"{CLASS_WORDS[view.position_class]}, {view.run} runs"
    if layers.empty:
        said = f"One of the sets has no such tokens ({where}). Choose other positions or runs."
        st.info(said, icon=":material/info:")
        return
    row = layers.iloc[0]
    sizes = ((row.tokens_a, row.prompts_a), (row.tokens_b, row.prompts_b))
    lines = [
        f"**{text.plain(name)}**: {text.amount(tokens, 'token')} of {text.amount(prompts, 'prompt')}."
        for name, (tokens, prompts) in zip(names, sizes, strict=True)
    ]
    st.markdown("  \n".join([*lines, _verdict(layers)]))
    header(f"Divergence by layer: {where}", "routing-divergence", shown, "layer", _set_divergence, view.run,
           view.position_class, table=layers, expert=None, result=result)  # fmt: skip
    present.caption(
        divergence_words(
            f"if the prompts were dealt to the two sets at random ({PERMUTATIONS} times; a fact that is there in two "
            "forms trades places with itself, and as many prompts as now are in both sets)"
        )
    )
    parts = pictures.kept(_part_table, result, view.run, view.position_class, shown.layer)
    header(f"Experts that account for it: layer {shown.layer}, {where}", "routing-parts", shown, "expert", _set_parts,
           view.run, view.position_class, shown.layer, table=parts, expert=view.expert, result=result, framed=False,
           names=names)  # fmt: skip
    present.caption(
        "The layer's divergence is the sum of its experts' parts"
        + (f"; the {charts.MOST_PARTS} largest are drawn" if len(parts) > charts.MOST_PARTS else "")
        + ". The tick is what chance gives the expert. Click a bar to see the tokens of both sets behind it."
    )
    columns = {
        "name": Column("expert"),
        "part": Column("part (bits)"),
        "part_baseline": Column("by chance"),
        "share_a": Column("share of A's load"),
        "share_b": Column("share of B's load"),
    }
    listing.show(parts, columns, most=250, alt="Parts of the divergence by expert")


def _verdict(layers: pd.DataFrame) -> str:
    """What the bars say, in a sentence."""
    beyond = layers[layers.divergence > layers.high]
    if beyond.empty:
        return "In no layer does the divergence go beyond the 95th percentile of chance."
    top = layers.loc[layers.above_baseline.idxmax()]
    return (
        f"The divergence goes beyond the 95th percentile of chance in {len(beyond)} of {len(layers)} layers; most in "
        f"layer {top.layer}: **{bits(top.divergence)}** bits, by chance {bits(top.baseline)} (p {p_value(top.p)})."
    )
