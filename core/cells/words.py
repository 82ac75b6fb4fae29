"""The answers about cells in sentences, Markdown without anything that a person typed. In protocol.md's words."""

from __future__ import annotations

import math

import pandas as pd

from ..formats import logit, logits, percent, restoration, typed
from . import tables
from .tables import LAYER, SUM, TOGETHER, Specificity

CLOSE = 0.1
"""A joint rescue within this share of the sum of the singles counts as their sum."""


def coalition(rows: pd.DataFrame, *, floor: float = 0.0) -> str:
    """What the ticked experts bring back together. `floor`: differences below it are rounding (logits)."""
    members = int((rows.role == tables.SINGLE).sum())
    whole = tables.rescue_of(rows, LAYER)
    if not members:
        return f"No expert is put back. The layer patch rescues {logits(whole)} logits."
    together, total = tables.rescue_of(rows, TOGETHER), tables.rescue_of(rows, SUM)
    restored = rows.loc[rows.role == TOGETHER, "restoration"].iloc[0]
    words = f"**{members} expert{'s' if members > 1 else ''} together**: rescue **{logits(together)}** logits"
    words += f", restoration {restoration(restored)}"
    if abs(whole) >= 0.01:
        words += f", {percent(together / whole)} of the layer patch ({logits(whole)})"
    if members == 1:
        return words + "."
    extra = together - total
    if abs(extra) <= max(CLOSE * abs(total), floor):
        how = "so they add up"
    else:
        how = f"so together they do {logit(abs(extra))} {'more' if extra > 0 else 'less'} than that"
    return f"{words}. Their single rescues sum to {logits(total)}: {how}."


def necessity(table: pd.DataFrame, *, clean_contrast: float, reroutable: bool) -> list[str]:
    """Which expert suffices most, which is needed most, and what the reroute says."""
    alone, together = table[table.expert.notna()], table[table.expert.isna()]
    if alone.empty:
        return ["No expert is clean-active here, so there is none to knock out."]
    said = []
    if alone.rescue.notna().any():
        enough = alone.loc[alone.rescue.idxmax()]
        said.append(
            f"Most sufficient: **{enough['name']}**, rescue {logits(enough.rescue)} logits alone in the corrupt run."
        )
    needed = alone.loc[alone.zero.idxmax()]
    said.append(
        f"Most needed: **{needed['name']}**, without it the clean contrast of {logits(clean_contrast)} loses "
        f"{logit(needed.zero)} logits."
    )
    out = [" ".join(said)]
    if len(together):
        out.append(
            f"Without all {len(alone)} clean-active experts it loses {logit(together.zero.iloc[0])}. Later layers "
            "make up for part of a loss, so a small cost does not show that an expert does nothing."
        )
    if not reroutable:
        out.append("This family's router cannot be driven to reroute, so only the zero knockout is shown.")
    return out


def controls(found: Specificity, name: str) -> list[str]:
    """The selected expert against its controls."""
    if not found.active:
        first = f"**{name}** is not clean-active here, so its rescue counts 0"
    else:
        first = f"**{name}**: rescue **{logits(found.selected)}** logits, rank {found.rank} of {found.of} clean-active"
    if math.isnan(found.controls):
        return [f"{first}. There is no other clean-active expert to compare it with."]
    sd = "" if math.isnan(found.specificity_sd) else f" (sd {logit(found.specificity_sd)} over draws)"
    out = [
        f"{first}; active-random controls {logits(found.controls)}. Specificity for this fact: "
        f"**{logits(found.specificity)}**{sd}."
    ]
    if not math.isnan(found.matched):
        out.append(
            f"The gate-matched control, nearest in router weight, rescues {logits(found.matched)}. With both updates "
            f"scaled to the smaller norm: {logits(found.equal_selected)} against {logits(found.equal_matched)}."
        )
    return out


def minimal(curve: pd.DataFrame, *, scope: str, target: float, reached: bool, candidates: int) -> str:
    """How many experts it takes, and how random sets of the same size do. `scope` is not escaped; `candidates`: how
    many there were to choose from."""
    if curve.empty:
        return f"No set was found in {scope}."
    last, n = curve.iloc[-1], len(curve)
    words = f"{n} experts of {scope} restore" if n > 1 else f"1 expert of {scope} restores"
    words += f" {restoration(last.restoration)} of the drop"
    words += f"{',' if reached else ';'} the target of {typed(target)} is {'' if reached else 'not '}reached"
    if n == candidates:
        words += ". That is every clean-active expert there, so no random set of as many is another one"
    elif last.random_sets:
        words += (
            f". {last.random_sets:.0f} random sets of {n}: {restoration(last.random_restoration)} on average, "
            f"{restoration(last.random_min)} to {restoration(last.random_max)}"
        )
    return words + "."
