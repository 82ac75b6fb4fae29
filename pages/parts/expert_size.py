"""The expert's size: its output's norm and how far it turns the block output, against its layer's other experts."""

from __future__ import annotations

import streamlit as st

from core import expert_questions
from core import expert_write_charts as charts
from core.expert_link import MEASURES
from core.tooltips import number

from . import address, expert_state, pictures, present
from .answers import answer
from .expert_pieces import TRACE, Column, Shown, figure, header, table

HELP = (
    "y is the block output, c the expert's contribution. Output norm: ‖c‖ ÷ router weight. Magnitude ratio: "
    "‖y‖ ÷ ‖y − c‖. Angle and cosine: between y and y − c. At every token of the clean runs."
)
TOKENS: dict[str, Column] = {
    "token": ("token", None, ""),
    "subject": ("subject", None, "Of the prompt."),
    "role": ("position class", None, ""),
    "output_norm": ("output norm", "%.3f", "‖c‖ ÷ router weight."),
    "contribution_norm": ("‖c‖", "%.3f", "Norm of its contribution."),
    "magnitude_ratio": ("magnitude ratio", "%.3f", "‖y‖ ÷ ‖y − c‖: above 1 it makes the block output longer."),
    "angle": ("angle", "%.1f°", "Between the block output with and without it."),
    "cosine": ("cosine", "%.3f", "The same as a cosine."),
    "router_weight": ("w clean", "%.3f", "Router weight."),
    "pos": ("pos", "%d", ""),
    "case_id": ("case_id", "%d", ""),
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
        "Measure", MEASURES, default=view.measure, key=key, required=True, help=HELP,
        format_func=lambda m: m.replace("_", " "),
        on_change=address.callback(key, lambda: expert_state.look(measure=st.session_state[key] or MEASURES[0])),
    )  # fmt: skip
    row = sizes[(sizes.measure == view.measure) & (sizes.expert == shown.expert)].iloc[0]
    rank, of = ranks[view.measure]
    said = (
        f"Median of {view.name} {number(row['median'])}, rank {rank} of {of} experts of its layer, over {row.tokens} "
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
        present.caption(f"The first {MOST_TOKENS} of {len(ordered):,}; the download has all.")
    table(
        shown.with_traces(ordered.head(MOST_TOKENS)), TOKENS, key=f"es_expert_size_{view.name}",
        alt="Sizes token by token", more={"trace": TRACE},
    )  # fmt: skip
