"""When the expert is routed: by position class and relation, at which tokens, in which prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import streamlit as st

from core import expert_charts
from core import expert_routing as counting
from core.derived import DerivedResult
from core.expert_link import ExpertView
from core.formats import weight
from core.named_rows import named_rows
from core.requests import Fact
from core.routing_kinds import routed_of, routing_request

from . import numbers, pictures, present, text
from .answers import answer
from .expert_pieces import Shown, figure, header, table
from .listing import Column

TOKENS: dict[str, Column] = {
    "token": Column("token", "The decoded piece."),
    "token_id": Column("id", "Its token id."),
    "routed": Column("routed", "How often it is routed to this expert."),
    "occurrences": Column("of", "How often it occurs."),
    "share": Column("share", "Share of its occurrences that are routed here."),
    "mean_weight": Column("w clean", "Mean router weight where it is routed here."),
}
BARS = "Clean runs. The dashed line is the share of each expert if all were chosen alike."
MOST_TOKENS = 200


def result_of(view: ExpertView, facts: Sequence[Fact]) -> DerivedResult | None:
    """Where all tokens of the facts are routed: the Routing page's own answer."""
    names = ("corruption", "noise", "draws", "seed", "special_tokens")
    request = routing_request(view.model, facts=facts, **{name: getattr(view, name) for name in names})
    return answer(request, "expert routing")[0]


@dataclass(frozen=True)
class Counted:
    """What the tokens of the clean runs say of one expert. `n` tokens, `routed` of them to it; `clean_active`: see
    `core.expert_routing.clean_active`; `by`: shares by `role` and by `relation`; `frequent` tokens, top `prompts`;
    `pieces` of every prompt."""

    n: int
    routed: int
    clean_active: dict[str, tuple[int, int]]
    by: dict[str, pd.DataFrame]
    frequent: pd.DataFrame
    prompts: pd.DataFrame
    pieces: dict[tuple[int, str], list[str]]


def count(result: DerivedResult, layer: int, expert: int) -> Counted:
    """The numbers of one expert."""
    tokens = counting.routed_tokens(pictures.kept(routed_of, result), layer, expert)
    return Counted(
        n=len(tokens), routed=int(tokens.routed.sum()), clean_active=counting.clean_active(tokens),
        by={by: counting.shares(tokens, [by]) for by in ("role", "relation")},
        frequent=counting.frequent_tokens(tokens), prompts=counting.top_prompts(tokens),
        pieces=counting.pieces(tokens),
    )  # fmt: skip


def counted(result: DerivedResult, view: ExpertView) -> Counted | None:
    """The same, counted once for a result; None while it is counted."""
    return numbers.of(f"the routing of {view.name}", count, result, view.layer, view.expert)


def draw(shown: Shown) -> None:
    """The section."""
    view, result = shown.view, shown.routing
    if result is None:
        return
    found = shown.tokens
    if found is None:
        return
    if not found.routed:
        st.info(f"No token of these facts is routed to {view.name}. Choose more facts, or others.")
        return
    expected = result.provenance["top_k"] / result.provenance["n_experts"]
    with st.grid(2, min_column_width=430, gap="medium"):
        with st.container():
            _bars(shown, found, "role", "By position class", expected)
            frequent = found.frequent
            header("Most frequent tokens", "tokens", result, None, frequent, view)
            table(frequent.head(MOST_TOKENS), TOKENS, key=f"es_expert_tokens_{view.name}", alt="Most frequent tokens")
            if len(frequent) > MOST_TOKENS:
                present.caption(f"The first {MOST_TOKENS} of {len(frequent)}; the download has all.")
        with st.container():
            _bars(shown, found, "relation", "By relation", expected)
    prompts = found.prompts
    header("Top prompts", "top_prompts", result, None, prompts, view)
    st.html(text.prompts_table(_rows(shown, prompts)))
    present.caption("The prompts with the largest router weight, at the marked token. “open” shows the trace there.")


def _bars(shown: Shown, found: Counted, by: str, title: str, expected: float) -> None:
    shares = found.by[by]
    picture = expert_charts.routing_bars(shares, by, expected=expected, palette=pictures.theme())
    figure(title, f"routing_{by}", shown.routing, picture, shares, shown.view, caption=BARS)


def _rows(shown: Shown, prompts: pd.DataFrame) -> list[tuple[str, str, str, str, str, str]]:
    """(before, token, after, router weight, where, address) of each prompt."""
    rows = []
    for line in named_rows(prompts):
        fact = shown.by_key.get((line.case_id, line.subject))
        where = "" if fact is None else shown.trace_address(fact, int(line.pos))
        rows.append((line.before, line.token, line.after, weight(line.router_weight), str(line.role), where))
    return rows
