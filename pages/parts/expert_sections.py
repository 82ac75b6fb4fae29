"""The sections of the Expert page, and the numbers that stand above all of them."""

from __future__ import annotations

from collections.abc import Callable
from math import isnan

import streamlit as st

from core.expert_tables import SHORT, Rescue
from core.formats import NONE, count, logits, mean_count, percent

from . import (
    expert_knockout,
    expert_neurons,
    expert_rescue,
    expert_routing,
    expert_size,
    expert_steering,
    expert_writes,
    text,
)
from .expert_pieces import Shown


def cards(shown: Shown) -> list[str]:
    """How often it is routed and clean-active, what it restores, and how specific that is; the same as sentences."""
    rows = []
    tokens = shown.tokens
    if tokens is not None:
        n, all_tokens = tokens.routed, tokens.n
        of_all = f"{count(n)} of {count(all_tokens)} tokens"
        rows.append(("routed", _percent(n, all_tokens), of_all, "Tokens of the clean runs."))
        for name, (active, of) in tokens.clean_active.items():
            words = "last position" if name == "last" else "last subject token"
            below = f"{active} of {of} facts"
            rows.append((f"clean-active, {words}", _percent(active, of), below, "Routed there in the clean run."))
    found = shown.found
    if found is not None:
        rows += [_estimate(found, name) for name in _SHOWN]
        values = found.values
        first = f"{values['first']} of {values['n_active']} times first" if values["n_active"] else "missing"
        rows.append(("mean rank among active", mean_count(values["mean_rank"]), first, "1: the highest rescue."))
    if rows:
        st.html(text.cards(rows))
    return [f"{name}: {value} ({below})" for name, value, below, _ in rows]


_SHOWN = ("expert_rescue", "expert_rescue_active_only", "specificity", "gate_matched_specificity")
_WHY = {
    "expert_rescue": "no facts",
    "expert_rescue_active_only": "never clean-active",
    "specificity": "no other active expert",
    "gate_matched_specificity": "never active with another",
}
"""Why an estimate is missing."""


def _estimate(found: Rescue, name: str) -> tuple[str, str, str, str]:
    words, row = SHORT[name], found.estimates.set_index("quantity").loc[name]
    if row.n == 0:
        return words, NONE, _WHY[name], row.meaning
    interval = "no interval" if isnan(row.ci_low) else f"[{logits(row.ci_low)}, {logits(row.ci_high)}]"
    ends = f"{interval} · n {row.n}"
    return words, logits(row["mean"]), ends, row.meaning


def _percent(part: int, whole: int) -> str:
    return percent(part / whole) if whole else NONE


SECTIONS: dict[str, Callable[[Shown], None]] = {
    "routing": expert_routing.draw,
    "rescue": expert_rescue.draw,
    "knockout": expert_knockout.draw,
    "writes": expert_writes.draw,
    "size": expert_size.draw,
    "neurons": expert_neurons.draw,
    "steering": expert_steering.draw,
}
