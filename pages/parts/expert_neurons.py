"""The expert's neurons: signs of gate and input with examples, input–output cosines, writes to true − foil."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from core import expert_questions, expert_tables
from core import expert_write_charts as charts
from core.derived import DerivedResult
from core.formats import logits, percent, small
from core.named_rows import named_rows

from . import expert_state, pictures, present, text
from .answers import answer
from .expert_pieces import Shown, figure, header, table, traces
from .listing import Column

BARS = 12
NEURONS: dict[str, Column] = {
    "neuron": Column("neuron", "Index within the expert."),
    "write": Column("write", "Direct part on true − foil at the last position, mean over own facts (logits)."),
    "write_rank": Column("rank", "By its size; 1 writes most."),
    "in_out_cosine": Column("in–out cosine", "Above 0 enriching: it writes what it reads. Below 0 depleting."),
    "gate_pos_in_pos": Column("gate +, in +", "Share of the expert's tokens with these signs."),
    "gate_pos_in_neg": Column("gate +, in −", "The same."),
    "gate_neg_in_pos": Column("gate −, in +", "The same."),
    "gate_neg_in_neg": Column("gate −, in −", "The same."),
    "mean_size": Column("mean size", "Mean of |router weight × activation| × norm of its output column."),
    "size_rank": Column("size rank", "By that; 1 is the largest."),
    "mean_activation": Column("mean activation", "Over the expert's tokens."),
    "gate_out_cosine": Column("gate–out cosine"),
    "gate_in_cosine": Column("gate–in cosine"),
    "output_norm": Column("column norm", "Norm of its output column."),
}
WRITES: dict[str, Column] = {
    "subject": Column("subject"),
    "true_token": Column("true"),
    "foil_token": Column("foil"),
    "neuron": Column("neuron"),
    "rank": Column("rank", "By size of its write in this fact."),
    "write": Column("write", "Direct part on true − foil (logits)."),
    "direct": Column("whole expert", "Direct part of the expert's whole contribution there."),
    "case_id": Column("case_id"),
}
COMBINATIONS = ((1, 1), (1, -1), (-1, 1), (-1, -1))
MAP = (
    "One dot per neuron. Right of 0 it enriches the stream with what it finds there, left of 0 it depletes it. Click a "
    "neuron for its examples."
)


def draw(shown: Shown) -> None:
    """The section."""
    view = shown.view
    request = expert_questions.neurons(
        view.model, shown.facts, layer=shown.layer, expert=shown.expert, **view.settings
    )  # fmt: skip
    result, _ = answer(request, "expert neurons")
    if result is None:
        return
    if not result.values["available"]:
        st.info(text.plain(result.values["why"]))
        return
    if result.values["missing"]:
        present.intro(text.plain(result.values["missing"]))
    neurons, palette = result.tables["neurons"], pictures.theme()
    by = "size_rank" if neurons.write.isna().all() else "write_rank"
    neurons = neurons.sort_values(by, na_position="last", kind="stable").reset_index(drop=True)
    slot = pictures.slot("expert_neurons", (result.request, palette.name), view.neuron)

    def pick(mark: dict[str, int]) -> None:
        slot.picked = mark["neuron"]
        expert_state.look(neuron=mark["neuron"])

    picture = charts.neuron_map(neurons, neuron=slot.preset, palette=palette)
    figure(
        "Input–output cosine and write", "neurons", result, picture, neurons, view,
        caption=" ".join([MAP, *_carried(result, neurons)]), selection="neuron", on_pick=pick, key=slot.key,
        seen=pictures.as_seen(picture, slot, neuron=view.neuron),
    )  # fmt: skip
    table(
        neurons, NEURONS, key=f"es_expert_neurons_{view.name}", alt="Neurons of the expert",
        on_pick=lambda row: expert_state.look(neuron=int(neurons.neuron[row])),
    )  # fmt: skip
    strongest = neurons.head(BARS)
    if strongest.gate_pos_in_pos.notna().any():
        figure(
            "Signs of gate and input", "neuron_signs", result, charts.sign_bars(strongest, palette=palette), strongest,
            view, caption=f"The {len(strongest)} strongest neurons: how often their pre-activations have which signs.",
        )  # fmt: skip
    _examples(shown, result, neurons, int(strongest.neuron.iloc[0]) if view.neuron is None else view.neuron)
    writes = result.tables["writes"].sort_values(["fact", "rank"], ignore_index=True)
    if len(writes):
        header("The neurons that write most, fact by fact", "neuron_writes", result, None, writes, view)
        table(
            shown.with_traces(writes), WRITES, key=f"es_expert_neuron_writes_{view.name}",
            alt="Writes of neurons, fact by fact", more=traces(),
        )  # fmt: skip


def _carried(result: DerivedResult, neurons: pd.DataFrame) -> list[str]:
    """A sentence about how the expert's write spreads over its neurons; none where it is missing."""
    direct, n = result.values["direct"], result.values["active_facts"]
    few = expert_tables.carriers(neurons.write.dropna())
    if direct is None or not few:
        return []
    return [
        f"The whole expert writes {logits(direct)} logits to true − foil (direct part, mean over {n} own "
        f"fact{'' if n == 1 else 's'}); of what its neurons write, all taken as positive, {few} of {len(neurons)} "
        f"write{'s' if few == 1 else ''} half."
    ]


def _examples(shown: Shown, result: DerivedResult, neurons: pd.DataFrame, neuron: int) -> None:
    """Each combination of signs: how often it occurs, and the tokens at which the neuron is then most active."""
    examples, its = result.tables["examples"], neurons[neurons.neuron == neuron]
    if its.empty:
        present.caption(f"{shown.view.name} has no neuron {neuron}: tick or click one of them.")
        return
    mine = examples[examples.neuron == neuron]
    header(f"Neuron {neuron}: tokens of each combination", "neuron_examples", result, None, examples, shown.view)
    if mine.empty:
        present.caption("Examples are kept of the strongest neurons only: tick or click one of them.")
        return
    with st.grid(2, min_column_width=430, gap="medium"):
        for gate, inner in COMBINATIONS:
            with st.container():
                rows = mine[(mine.gate_sign == gate) & (mine.in_sign == inner)].sort_values("rank")
                share = float(its[f"gate_{_word(gate)}_in_{_word(inner)}"].iloc[0])
                st.markdown(f"**gate {_sign(gate)}, in {_sign(inner)}** · {percent(share)} of the expert's tokens")
                if rows.empty:
                    st.caption("At no token.")
                else:
                    st.html(text.prompts_table(_rows(shown, rows)))


def _word(value: int) -> str:
    return "pos" if value > 0 else "neg"


def _sign(value: int) -> str:
    return "+" if value > 0 else "−"


def _rows(shown: Shown, rows: pd.DataFrame) -> list[tuple[str, str, str, str, str, str]]:
    pieces = {} if shown.tokens is None else shown.tokens.pieces
    out = []
    for row in named_rows(rows):
        known = pieces.get((row.case_id, row.subject))
        before, after = ("", "") if known is None else ("".join(known[: row.pos]), "".join(known[row.pos + 1 :]))
        fact = shown.by_key.get((row.case_id, row.subject))
        link = "" if fact is None else shown.trace_address(fact, int(row.pos))
        out.append((before, row.token, after, small(row.activation), "", link))
    return out
