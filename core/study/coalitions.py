"""Coalitions of clean-active experts: which ones to try on discovery, which rule and size to take, what to run then.

The experts of a fact are put in an order by a rule, and the coalition grows greedily along it, one expert at a time,
until the mean rescue over the discovery facts reaches the wanted share of the layer patch. Rule and size are then
fixed, and validation facts get the first experts of their own order. Knows rows, no model.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from . import rows as table
from . import selection, values

BY_WEIGHT, BY_RESCUE = "router_weight", "discovery_rescue"
RULES = {
    BY_WEIGHT: "the largest clean router weights of the fact",
    BY_RESCUE: "the fact's clean-active experts with the highest all-case mean rescue on discovery",
}
"""Rule → what comes first. Neither looks at the fact's own rescues."""
RULE_NAMES = {BY_WEIGHT: "router weight", BY_RESCUE: "mean rescue on discovery"}


@dataclass(frozen=True)
class Coalition:
    """The chosen rule and size. `reached`: it has the wanted share of the layer patch on discovery; where no size
    does, the size is that of all clean-active experts. `curve`: rule, size, mean_rescue, share, n of every try."""

    rule: str
    size: int
    reached: bool
    share: float
    curve: pd.DataFrame


def orders(rows: pd.DataFrame, *, layer: int) -> dict[str, dict[int, list[int]]]:
    """Rule → fact (scan_index) → its clean-active experts in the rule's order; of equals the lowest index first."""
    experts = values.expert_table(rows, layer=layer)
    score = selection.score(experts, values.of_split(rows, table.DISCOVERY)).set_index("expert").mean_all
    out: dict[str, dict[int, list[int]]] = {rule: {} for rule in RULES}
    for fact in experts.measured:
        active, weight = experts.active_of[fact], experts.weight.loc[fact]
        out[BY_WEIGHT][int(fact)] = sorted(active, key=lambda e: (-weight[e], e))
        # an expert that discovery has not seen comes last, by router weight
        unseen = -np.inf
        out[BY_RESCUE][int(fact)] = sorted(active, key=lambda e: (-score.get(e, unseen), -weight[e], e))
    return out


def search_plan(rows: pd.DataFrame, *, layer: int) -> pd.DataFrame:
    """The coalitions to run on the discovery facts: scan_index, experts (comma-joined), each one once.

    They are the first 1, 2, … of each rule's order, up to all clean-active experts.
    """
    discovery = set(values.of_split(rows, table.DISCOVERY))
    wanted = [
        (fact, table.members(order[:size]))
        for by_fact in orders(rows, layer=layer).values()
        for fact, order in by_fact.items()
        if fact in discovery
        for size in range(1, len(order) + 1)
    ]
    plan = pd.DataFrame(wanted, columns=["scan_index", "experts"]).drop_duplicates()
    return plan.sort_values(["scan_index", "experts"], ignore_index=True)


def choose(rows: pd.DataFrame, *, layer: int, share: float = 0.8) -> Coalition | None:
    """The smallest size at which a rule's mean rescue on discovery is at least `share` of the layer patch's; of two
    rules of that size the one with the higher mean. None without rows of the search.

    A fact with fewer clean-active experts than the size takes part with all of them.
    """
    searched = rows[(rows.stage == table.COALITION_SEARCH) & (rows.kind == table.MINIMAL) & (rows.layer == layer)]
    if searched.empty:
        return None
    rescue = searched.groupby(["scan_index", "experts"]).rescue.mean(skipna=False).to_dict()
    whole = values.per_fact(rows, table.LAYER, layer=layer)
    discovery = values.of_split(rows, table.DISCOVERY)
    tries = []
    for rule, by_fact in orders(rows, layer=layer).items():
        mine = {fact: order for fact, order in by_fact.items() if fact in discovery}
        for size in range(1, max(map(len, mine.values()), default=0) + 1):
            found = pd.Series(
                {fact: rescue.get((fact, table.members(order[:size])), np.nan) for fact, order in mine.items()}
            ).dropna()
            target = whole.reindex(found.index).mean()
            tries.append((rule, size, found.mean(), found.mean() / target if target > 0 else np.nan, len(found)))
    curve = pd.DataFrame(tries, columns=["rule", "size", "mean_rescue", "share", "n"])
    enough = curve[curve.share >= share]
    reached = not enough.empty
    pool = enough[enough["size"] == enough["size"].min()] if reached else curve[curve["size"] == curve["size"].max()]
    best = pool.loc[pool.mean_rescue.fillna(-np.inf).idxmax()]
    return Coalition(str(best.rule), int(best["size"]), reached, share, curve)


def plan(rows: pd.DataFrame, coalition: Coalition, *, layer: int, n_random: int = 3) -> pd.DataFrame:
    """The coalitions to run on the validation facts: scan_index, kind, experts (comma-joined).

    All clean-active experts, the minimal coalition, and `n_random` random ones of the same size.
    """
    known = values.facts(rows)
    validation = set(values.of_split(rows, table.VALIDATION))
    out = []
    for fact, order in orders(rows, layer=layer)[coalition.rule].items():
        if fact not in validation:
            continue
        mine = order[: coalition.size]
        out += [(fact, table.CLEAN_TOPK, table.members(order)), (fact, table.MINIMAL, table.members(mine))]
        drawn = random_coalitions(int(known.case_id[fact]), order, len(mine), n_random)
        out += [(fact, table.RANDOM, table.members(experts)) for experts in drawn]
    return pd.DataFrame(out, columns=["scan_index", "kind", "experts"])


def members(rows: pd.DataFrame, *, layer: int) -> pd.DataFrame:
    """Who the minimal coalitions of the validation facts are made of: expert, n (facts), of (facts with a coalition);
    most frequent first, of equals the lowest index first."""
    found = rows[(rows.stage == table.MAIN) & (rows.kind == table.MINIMAL) & (rows.layer == layer)]
    found = found.drop_duplicates("scan_index")
    counts = pd.Series([e for text in found.experts for e in parse(text)], dtype="int64").value_counts()
    out = pd.DataFrame({"expert": counts.index.astype("int64"), "n": counts.to_numpy(), "of": len(found)})
    return out.sort_values(["n", "expert"], ascending=[False, True], ignore_index=True)


def random_coalitions(case_id: int, active: Sequence[int], size: int, n: int) -> list[list[int]]:
    """`n` random coalitions of `size` of the clean-active experts, drawn one after the other with
    `random.Random(2000 + case_id).sample` from them in rising order; they may repeat, or be the minimal one."""
    rng = random.Random(2000 + case_id)
    pool = sorted(active)
    return [sorted(rng.sample(pool, min(size, len(pool)))) for _ in range(n)]


def parse(experts: str | None) -> tuple[int, ...]:
    """The members of a coalition from its `experts` column."""
    return tuple(int(e) for e in experts.split(",")) if experts else ()
