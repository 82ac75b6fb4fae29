"""Sets of tokens of a collected routing (a run and a position class) and the tables that are counted from them.

Pure counting; knows no model, no store, no page.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from .results import expert_name
from .roles import ALL, CLASSES, class_of
from .routed import ALL_ROLES, RUNS
from .routing import RoutedTokens, co_activation, load_entropy


def classes_of(routed: RoutedTokens) -> np.ndarray:
    """The position class of every token (without `ALL`), as objects."""
    codes = np.array([class_of(role) for role in ALL_ROLES], dtype=object)
    return codes[routed.tokens.role.cat.codes.to_numpy()]


def mask_of(routed: RoutedTokens, run: str, position_class: str) -> np.ndarray:
    """The tokens of one run (all draws of a corrupt one) and position class."""
    mask = (routed.tokens.run == run).to_numpy()
    return mask if position_class == ALL else mask & (classes_of(routed) == position_class)


def parts_of(routed: RoutedTokens) -> list[tuple[str, str]]:
    """(run, position class) of every set of tokens that is not empty, in a fixed order."""
    return [(run, each) for run in RUNS for each in CLASSES if mask_of(routed, run, each).any()]


def frequency_table(routed: RoutedTokens) -> pd.DataFrame:
    """One row per run, position class, layer and expert: `count` of its tokens among `tokens`, `frequency`."""
    parts = []
    for run, position_class in parts_of(routed):
        index = routed.index[mask_of(routed, run, position_class)]
        every = [np.bincount(at.ravel(), minlength=routed.n_experts) for at in index.swapaxes(0, 1)]
        rows = expert_rows(run, position_class, routed.layers, routed.n_experts)
        counts = np.concatenate([each[: routed.n_experts] for each in every])
        parts.append(rows.assign(count=counts, tokens=len(index)))
    table = pd.concat(parts, ignore_index=True)
    return table.assign(frequency=table["count"] / table.tokens)


def wide_table(frequencies: pd.DataFrame, position_class: str) -> pd.DataFrame:
    """One row per layer and expert of one position class: `clean`, `corrupt` (frequencies, missing where there are no
    such runs), the counts and tokens behind each, and `change` = corrupt − clean."""
    mine = frequencies[frequencies.position_class == position_class]
    keys = ["layer", "expert", "name"]
    out = None
    for run in RUNS:
        part = mine.loc[mine.run == run, [*keys, "frequency", "count", "tokens"]]
        part = part.rename(columns={"frequency": run, "count": f"{run}_count", "tokens": f"{run}_tokens"})
        out = part if out is None else out.merge(part, on=keys, how="left")
    assert out is not None
    return out.assign(change=out.corrupt - out.clean).reset_index(drop=True)


def load_table(frequencies: pd.DataFrame) -> pd.DataFrame:
    """One row per run, position class and layer: `load_entropy` (1: all experts share alike), `unused` experts, how
    many, `unused_names`, the share of the load that the busiest expert takes, `tokens`."""
    n_experts = int(frequencies.expert.max()) + 1  # the table has every layer's experts in their order
    counts = frequencies["count"].to_numpy(dtype=float).reshape(-1, n_experts)
    names = frequencies["name"].to_numpy().reshape(-1, n_experts)
    busiest = np.arange(len(counts)), counts.argmax(1)
    out = frequencies.iloc[::n_experts][["run", "position_class", "layer"]].reset_index(drop=True)
    return out.assign(
        load_entropy=load_entropy(counts),
        unused=(counts == 0).sum(1),
        unused_names=[" ".join(some[each == 0]) for some, each in zip(names, counts, strict=True)],
        busiest=names[busiest],
        busiest_frequency=frequencies.frequency.to_numpy().reshape(-1, n_experts)[busiest],
        tokens=frequencies.tokens.to_numpy()[::n_experts],
    )


def expert_rows(run: str, position_class: str, layers: Sequence[int], n_experts: int) -> pd.DataFrame:
    """The columns that name the experts of some layers in the tables here: all of a layer's, one after the other."""
    return pd.DataFrame({
        "run": run, "position_class": position_class,
        "layer": np.repeat(np.array(layers, dtype=np.int64), n_experts),
        "expert": np.tile(np.arange(n_experts), len(layers)),
        "name": [expert_name(layer, expert) for layer in layers for expert in range(n_experts)],
    })  # fmt: skip


def co_activation_table(routed: RoutedTokens, run: str, position_class: str, layer: int) -> pd.DataFrame:
    """Pairs of experts of one layer (`core.routing.co_activation`) in one set of tokens, with their names, `tokens`,
    and what each of the two serves alone (`frequency`, `other_frequency`); most often together first."""
    mask = mask_of(routed, run, position_class)
    at = list(routed.layers).index(layer)
    one = RoutedTokens(routed.tokens[mask], routed.index[mask, at : at + 1], routed.weight[mask, at : at + 1], (layer,),
                       routed.n_experts)  # fmt: skip
    active = one.active()[:, 0]
    table = co_activation(active)
    names = np.array([expert_name(layer, e) for e in range(routed.n_experts)], dtype=object)
    each = active.mean(0) if len(active) else np.full(routed.n_experts, np.nan)
    table = table.assign(
        layer=layer, name=names[table.expert], other_name=names[table.other], tokens=len(active),
        frequency=each[table.expert], other_frequency=each[table.other],
    )  # fmt: skip
    return table.sort_values(["together", "expected"], ascending=False, kind="stable", ignore_index=True)


def random_lift(n_experts: int, top_k: int) -> float:
    """The lift of two experts if every token chose `top_k` of `n_experts` at random: (k−1)/k · n/(n−1). Below 1, as a
    token's choices exclude each other; NaN for one choice per token."""
    if top_k < 2 or n_experts < 2:
        return float("nan")
    return (top_k - 1) / top_k * n_experts / (n_experts - 1)


def expected_unused(n_experts: int, top_k: int, tokens: int) -> float:
    """How many experts of a layer no token would choose, on average, if each of `tokens` chose `top_k` at random."""
    return n_experts * (1 - top_k / n_experts) ** tokens


def relation_table(routed: RoutedTokens, run: str, position_class: str, layer: int) -> pd.DataFrame:
    """How often each expert of one layer is routed, by relation: one row per relation and expert with `count`,
    `tokens`, `frequency` and `facts`; prompts without a relation are left out."""
    mask = mask_of(routed, run, position_class) & routed.tokens.relation.notna().to_numpy()
    tokens = routed.tokens[mask]
    index = routed.index[mask, list(routed.layers).index(layer)]
    parts = []
    for relation in sorted(tokens.relation.astype(object).unique()):
        mine = (tokens.relation == relation).to_numpy()
        counts = np.bincount(index[mine].ravel(), minlength=routed.n_experts)[: routed.n_experts]
        rows = expert_rows(run, position_class, [layer], routed.n_experts)
        facts = int(tokens.fact[mine].nunique())
        parts.append(rows.assign(relation=relation, count=counts, tokens=int(mine.sum()), facts=facts))
    if not parts:
        columns = ["run", "position_class", "layer", "expert", "name", "relation", "count", "tokens", "facts"]
        return pd.DataFrame(columns=[*columns, "frequency"])
    table = pd.concat(parts, ignore_index=True)
    return table.assign(frequency=table["count"] / table.tokens)


def of_expert(routed: RoutedTokens, layer: int, expert: int) -> pd.DataFrame:
    """Every token that is routed to one expert: the rows of `routed.tokens` with its router weight and position class,
    in their order (the index is the row number there)."""
    at = list(routed.layers).index(layer)
    hit = routed.index[:, at] == expert
    rows = hit.any(1)
    weight = np.where(hit, routed.weight[:, at], 0).sum(1)
    found = routed.tokens[rows].copy()
    found["position_class"] = classes_of(routed)[rows]
    found["router_weight"] = weight[rows]
    return found
