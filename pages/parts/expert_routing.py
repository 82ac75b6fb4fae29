"""When the expert is routed: by position class and relation, at which tokens, in which prompts."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from core import expert_charts, expert_routing
from core.derived import DerivedResult
from core.expert_link import ExpertView
from core.requests import Fact
from core.routing_kinds import routed_of, routing_request

from . import pictures, text
from .answers import answer
from .expert_pieces import Column, Shown, figure, header, table

TOKENS: dict[str, Column] = {
    "token": ("token", None, "The decoded piece."),
    "token_id": ("id", "%d", "Its token id."),
    "routed": ("routed", "%d", "How often it is routed to this expert."),
    "occurrences": ("of", "%d", "How often it occurs."),
    "share": ("share", "percent", "Share of its occurrences that are routed here."),
    "mean_weight": ("w clean", "%.3f", "Mean router weight where it is routed here."),
}
BARS = "Clean runs. The dashed line is the share of each expert if all were chosen alike."
MOST_TOKENS = 200


def result_of(view: ExpertView, facts: Sequence[Fact]) -> DerivedResult | None:
    """Where all tokens of the facts are routed: the Routing page's own answer."""
    names = ("corruption", "noise", "draws", "seed", "special_tokens")
    request = routing_request(view.model, facts=facts, **{name: getattr(view, name) for name in names})
    return answer(request, "expert routing")[0]


def tokens_of(result: DerivedResult, layer: int, expert: int) -> pd.DataFrame:
    """Every token of the clean runs, and whether it is routed to the expert."""
    return expert_routing.routed_tokens(pictures.kept(routed_of, result), layer, expert)


def draw(shown: Shown) -> None:
    """The section."""
    view, result = shown.view, shown.routing
    if result is None:
        return
    tokens = pictures.kept(tokens_of, result, shown.layer, shown.expert)
    if not tokens.routed.any():
        st.info(f"No token of these facts is routed to {view.name}. Choose more facts, or others.")
        return
    expected = result.provenance["top_k"] / result.provenance["n_experts"]
    with st.grid(2, min_column_width=430, gap="medium"):
        with st.container():
            _bars(shown, tokens, "role", "By position class", expected)
            frequent = expert_routing.frequent_tokens(tokens)
            header("Most frequent tokens", "tokens", result, None, frequent, view)
            table(frequent.head(MOST_TOKENS), TOKENS, key=f"es_expert_tokens_{view.name}", alt="Most frequent tokens")
            if len(frequent) > MOST_TOKENS:
                st.caption(f"The first {MOST_TOKENS} of {len(frequent)}; the download has all.")
        with st.container():
            _bars(shown, tokens, "relation", "By relation", expected)
    prompts = expert_routing.top_prompts(tokens)
    header("Top prompts", "top_prompts", result, None, prompts, view)
    st.html(text.prompts_table(_rows(shown, prompts)))
    st.caption("The prompts with the largest router weight, at the marked token. “open” shows the trace there.")


def _bars(shown: Shown, tokens: pd.DataFrame, by: str, title: str, expected: float) -> None:
    shares = expert_routing.shares(tokens, [by])
    picture = expert_charts.routing_bars(shares, by, expected=expected, palette=pictures.theme())
    figure(title, f"routing_{by}", shown.routing, picture, shares, shown.view, caption=BARS)


def _rows(shown: Shown, prompts: pd.DataFrame) -> list[tuple[str, str, str, str, str, str]]:
    """(before, token, after, router weight, where, address) of each prompt."""
    rows = []
    for line in prompts.itertuples():
        fact = shown.by_key.get((line.case_id, line.subject))
        where = "" if fact is None else shown.trace_address(fact, int(line.pos))
        rows.append((line.before, line.token, line.after, f"{line.router_weight:.3f}", str(line.role), where))
    return rows
