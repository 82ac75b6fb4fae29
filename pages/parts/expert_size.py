"""The expert's size: its output's norm and how far it turns the block output, against its layer's other experts."""

from __future__ import annotations

import streamlit as st

from core import expert_questions
from core import expert_write_charts as charts
from core.expert_link import MEASURES
from core.formats import count, norm

from . import address, expert_state, pictures, present
from .answers import answer
from .expert_pieces import Shown, figure, header, table, traces
from .listing import Column

HELP = (
    "y is the block output, c the expert's contribution. Output norm: ‖c‖ ÷ router weight. Magnitude ratio: "
    "‖y‖ ÷ ‖y − c‖. Angle and cosine: between y and y − c. At every token of the clean runs."
)
TOKENS: dict[str, Column] = {
    "token": Column("token"),
    "subject": Column("subject", "Of the prompt."),
    "role": Column("position class"),
    "output_norm": Column("output norm", "‖c‖ ÷ router weight."),
    "contribution_norm": Column("‖c‖", "Norm of its contribution."),
    "magnitude_ratio": Column("magnitude ratio", "‖y‖ ÷ ‖y − c‖: above 1 it makes the block output longer."),
    "angle": Column("angle", "Between the block output with and without it."),
    "cosine": Column("cosine", "The same as a cosine."),
    "router_weight": Column("w clean", "Router weight."),
    "pos": Column("pos"),
    "case_id": Column("case_id"),
}
MOST_TOKENS = 500
"""Listed on the page; the download has all."""


def draw(shown: Shown) -> None:
    """The section."""
    view = shown.view
    request = expert_questions.size(view.model, shown.facts, layer=shown.layer, expert=shown.expert, **view.settings)
    result, _ = answer(request, "expert size")
    if result is None:
        return
    ranks, sizes, tokens = result.values["ranks"], result.tables["sizes"], result.tables["tokens"]
    if not ranks:
        st.info(f"No token of these facts is routed to {view.name}. Choose more facts, or others.")
        return
    key = address.key("expert measure")
    st.segmented_control(
        "Measure", MEASURES, default=view.measure, key=key, wrap=True, required=True, help=HELP,
        format_func=lambda m: m.replace("_", " "),
        on_change=address.callback(key, lambda: expert_state.look(measure=st.session_state[key] or MEASURES[0])),
    )  # fmt: skip
    row = sizes[(sizes.measure == view.measure) & (sizes.expert == shown.expert)].iloc[0]
    rank, of = ranks[view.measure]
    said = (
        f"Median of {view.name} {norm(row['median'])}, rank {rank} of {of} experts of its layer, over {row.tokens} "
        "tokens. Thin line 5–95 %, bar the middle half, tick the median. Click an expert to open its page."
    )

    def pick(mark: dict[str, int]) -> None:
        expert_state.look(expert=mark["expert"])

    picture = charts.sizes(sizes, view.measure, layer=shown.layer, expert=shown.expert, palette=pictures.theme())
    figure(
        f"Its {charts.MEASURE_NAMES[view.measure]} beside its layer's other experts", f"size_{view.measure}", result,
        picture, sizes, view, caption=said, selection="expert", on_pick=pick,
    )  # fmt: skip
    header("Token by token", "size_tokens", result, None, tokens, view)
    ordered = tokens.sort_values(view.measure, ascending=view.measure == "cosine")
    if len(ordered) > MOST_TOKENS:
        present.caption(f"The first {MOST_TOKENS} of {count(len(ordered))}; the download has all.")
    table(
        shown.with_traces(ordered.head(MOST_TOKENS)), TOKENS, key=f"es_expert_size_{view.name}",
        alt="Sizes token by token", more=traces(),
    )  # fmt: skip
