"""From every fact's values to averages: which facts count, means with intervals per role and layer or per expert, and
the facts behind each of them.

Several tokens of one role in one fact are averaged first, then the facts; a fact without a token of the role is
missing there and counted. Restoration is mean rescue ÷ mean drop, never a mean of ratios. Intervals: percentile
bootstrap in which subjects are resampled, so that the facts of a subject stay together. Knows no model and no page.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..derived import DerivedResult
from ..results import MIN_DROP, expert_name, is_defined
from ..roles import BEFORE, ROLES
from ..stats import bands, ratio_bands
from ..views import PAPER_DROP, SHARED_INDEX

DEFAULT_DROP = PAPER_DROP
"""Facts with a smaller drop are left out unless another threshold is asked for (the paper's filter), logits."""

ROLE_COLUMNS = [
    "layer", "role", "rescue", "rescue_low", "rescue_high", "restoration", "restoration_low", "restoration_high",
    "mean_drop", "positive_fraction", "n", "n_missing", "n_tokens",
]  # fmt: skip
"""Columns of `role_table`. rescue, mean_drop in logits; `n`: facts that have the role, `n_missing`: facts that do not,
`n_tokens`: tokens of the role in all of them."""

EXPERT_COLUMNS = [
    "layer", "expert", "name", "rescue", "rescue_low", "rescue_high", "restoration", "restoration_low",
    "restoration_high", "rescue_active", "n_active", "recurrence", "router_weight", "mean_drop", "n", "n_missing",
]  # fmt: skip
"""Columns of `expert_table`. `rescue`: over all facts that have the role, 0 where the expert is not clean-active;
`rescue_active`: over the `n_active` facts in which it is clean-active at a token of the role, with `router_weight`;
`recurrence`: n_active ÷ n."""


@dataclass(frozen=True)
class Counted:
    """What became of the facts that were chosen: `cannot`: the model cannot take them; `small_drop`: their drop is
    below the threshold; `kept`: the averages are over them."""

    chosen: int
    cannot: int
    small_drop: int
    kept: int


def kept_facts(result: DerivedResult, *, min_drop: float | None = DEFAULT_DROP) -> pd.DataFrame:
    """The facts that count (columns as in `core.averages.measure`), indexed by their number. None: all measured."""
    facts = result.tables["facts"].set_index("fact", drop=False)
    return facts if min_drop is None else facts[facts["drop"] >= min_drop]


def count(result: DerivedResult, *, min_drop: float | None = DEFAULT_DROP) -> Counted:
    """How many facts were chosen, and why how many of them do not count."""
    cannot, measured = len(result.values["left_out"]), len(result.tables["facts"])
    kept = len(kept_facts(result, min_drop=min_drop))
    return Counted(cannot + measured, cannot, measured - kept, kept)


def left_out(result: DerivedResult, *, min_drop: float | None = DEFAULT_DROP) -> pd.DataFrame:
    """The facts that do not count: case_id, subject, why."""
    facts = result.tables["facts"]
    small = facts if min_drop is None else facts[~(facts["drop"] >= min_drop)]
    small = small if min_drop is not None else small.iloc[:0]
    why = [f"the drop, {drop:.3g} logits, is below {min_drop:g}" for drop in small["drop"]]
    rows = pd.DataFrame({"case_id": small.case_id, "subject": small.subject, "why": why})
    cannot = pd.DataFrame(result.values["left_out"], columns=["case_id", "subject", "why"])
    return pd.concat([cannot, rows], ignore_index=True) if len(rows) else cannot


def facts_in_words(counted: Counted, *, min_drop: float | None = DEFAULT_DROP) -> str:
    """How many facts the averages are over, and why others are not among them."""
    said = f"{counted.kept} of {counted.chosen} fact{'s' if counted.chosen != 1 else ''}"
    reasons = []
    if counted.cannot:
        reasons.append(f"{counted.cannot} cannot be traced by this model")
    if counted.small_drop:
        one = "has a drop" if counted.small_drop == 1 else "have drops"
        reasons.append(f"{counted.small_drop} {one} below {min_drop:g} logits")
    return said + (f"; left out: {' and '.join(reasons)}." if reasons else "; none is left out.")


# ---- sites -------------------------------------------------------------------------------------------------------


def role_table(result: DerivedResult, *, min_drop: float | None = DEFAULT_DROP) -> pd.DataFrame:
    """Averages of an answer of kind `averages`: one row per layer and role (`ROLE_COLUMNS`), all layers that have the
    site, in the order of `core.roles.ROLES`. What stands before the subject is there only where something comes of
    it."""
    facts, cells = kept_facts(result, min_drop=min_drop), result.tables["cells"]
    cells = cells[cells.fact.isin(facts.index)]
    layers = sorted(int(layer) for layer in result.tables["cells"].layer.unique())
    before = cells[cells.role == BEFORE]
    roles = [role for role in ROLES if role != BEFORE or (before.rescue != 0).any()]
    values = _per_fact(cells, facts, layers, roles)
    tokens = cells[cells.layer == layers[0]].groupby("role").size() if layers else pd.Series(dtype=int)
    table = _averages(values.reshape(len(facts), len(layers) * len(roles)), facts)
    table.insert(0, "layer", np.repeat(layers, len(roles)))
    table.insert(1, "role", np.tile(np.array(roles, dtype=object), len(layers)))
    table["n_tokens"] = table.role.map(tokens).fillna(0).astype(int)
    return table[ROLE_COLUMNS]


def behind_cell(result: DerivedResult, layer: int, role: str, *, min_drop: float | None = DEFAULT_DROP) -> pd.DataFrame:
    """The facts behind one average of `role_table`: the columns of `facts`, `rescue` (mean over the fact's tokens of
    the role; missing where it has none), `restoration` (that ÷ the fact's own drop), `tokens` and `pos`: the token with
    the largest rescue by amount. Largest rescue first."""
    facts, cells = kept_facts(result, min_drop=min_drop), result.tables["cells"]
    cells = cells[(cells.layer == layer) & (cells.role == role) & cells.fact.isin(facts.index)]
    return _behind(facts, cells, cells.rescue.abs())


def _per_fact(cells: pd.DataFrame, facts: pd.DataFrame, layers: list[int], roles: list[str]) -> np.ndarray:
    """Mean rescue over the tokens of each role, [facts, layers, roles]; missing where a fact has none."""
    means = cells.groupby(["fact", "layer", "role"], observed=True).rescue.mean()
    wanted = pd.MultiIndex.from_product([facts.index, layers, roles])
    return means.reindex(wanted).to_numpy(dtype=float).reshape(len(facts), len(layers), len(roles))


def _averages(values: np.ndarray, facts: pd.DataFrame) -> pd.DataFrame:
    """Rescue and restoration of every column of `values` [facts, m], with intervals and counts."""
    units, drop = list(facts.subject), facts["drop"].to_numpy(dtype=float)
    mean, low, high, n = bands(values, units=units)
    ratio, ratio_low, ratio_high = ratio_bands(values, drop, least=MIN_DROP, units=units)
    there = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        of = np.where(n > 0, n, np.nan)
        drops, positive = (there * drop[:, None]).sum(axis=0) / of, (values > 0).sum(axis=0) / of
    return pd.DataFrame({
        "rescue": mean, "rescue_low": low, "rescue_high": high, "restoration": ratio, "restoration_low": ratio_low,
        "restoration_high": ratio_high, "mean_drop": drops, "positive_fraction": positive, "n": n.astype(int),
        "n_missing": (len(facts) - n).astype(int),
    })  # fmt: skip


def _behind(facts: pd.DataFrame, rows: pd.DataFrame, strength: pd.Series) -> pd.DataFrame:
    """`facts` with what `rows` (fact, pos, token, rescue) say of each; `pos` is where `strength` is largest."""
    out = facts.reset_index(drop=True)
    grouped = rows.groupby("fact")
    out["rescue"] = grouped.rescue.mean().reindex(out.fact).to_numpy(dtype=float)
    drop = out["drop"].to_numpy(dtype=float)
    out["restoration"] = out.rescue / np.where(is_defined(drop), drop, np.nan)
    out["tokens"] = grouped.token.agg("".join).reindex(out.fact).to_numpy(dtype=object)
    out["n_tokens"] = grouped.size().reindex(out.fact, fill_value=0).to_numpy(dtype=int)
    strongest = rows.loc[strength.groupby(rows.fact).idxmax()].set_index("fact").pos
    out["pos"] = pd.array(strongest.reindex(out.fact), dtype="Int64")
    return out.sort_values(["rescue", "fact"], ascending=[False, True], na_position="last", ignore_index=True)


# ---- experts -----------------------------------------------------------------------------------------------------


def expert_table(result: DerivedResult, *, min_drop: float | None = DEFAULT_DROP) -> pd.DataFrame:
    """Averages of an answer of kind `expert_averages`: one row per layer and expert that is clean-active in any fact
    (`EXPERT_COLUMNS`), highest mean rescue first. An expert without a row has 0 in every fact."""
    facts, pairs, values, active, weights = _expert_values(result, min_drop)
    table = _averages(values, facts)
    table.insert(0, "layer", [layer for layer, _ in pairs])
    table.insert(1, "expert", [expert for _, expert in pairs])
    table.insert(2, "name", [_name(layer, expert) for layer, expert in pairs])
    n_active = (~np.isnan(active)).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        table["rescue_active"] = np.nansum(active, axis=0) / np.where(n_active > 0, n_active, np.nan)
        table["router_weight"] = np.nansum(weights, axis=0) / np.where(n_active > 0, n_active, np.nan)
        table["recurrence"] = n_active / table.n.where(table.n > 0)
    table.loc[table.expert == SHARED_INDEX, "router_weight"] = np.nan
    table["n_active"] = n_active
    order = ["rescue", "layer", "expert"]
    return table[EXPERT_COLUMNS].sort_values(order, ascending=[False, True, True], ignore_index=True)


def behind_expert(
    result: DerivedResult, layer: int, expert: int, *, min_drop: float | None = DEFAULT_DROP
) -> pd.DataFrame:
    """As `behind_cell`, for one row of `expert_table`: `rescue` is 0 where the expert is not clean-active; with
    `clean_active`, `router_weight` (mean over the tokens at which it is), and `layer_rescue`: of the layer patch at the
    role."""
    facts, cells = kept_facts(result, min_drop=min_drop), result.tables["cells"]
    cells = cells[(cells.layer == layer) & cells.fact.isin(facts.index)]
    rows = result.tables["experts"]
    rows = rows[(rows.layer == layer) & (rows.expert == expert) & rows.fact.isin(facts.index)]
    merged = cells.rename(columns={"rescue": "layer_rescue"}).merge(
        rows[["fact", "pos", "router_weight", "rescue"]].assign(active=1.0), on=["fact", "pos"], how="left"
    )
    merged = merged.fillna({"rescue": 0.0, "active": 0.0})
    out = _behind(facts, merged, merged.active + merged.rescue.abs())
    grouped = merged.groupby("fact")
    missing = out.n_tokens == 0
    out["clean_active"] = (grouped.active.max().reindex(out.fact).to_numpy() > 0).astype(object)
    out["clean_active"] = out.clean_active.astype("boolean").mask(missing)
    out["router_weight"] = grouped.router_weight.mean().reindex(out.fact).to_numpy(dtype=float)
    out["layer_rescue"] = grouped.layer_rescue.mean().reindex(out.fact).to_numpy(dtype=float)
    return out


def _expert_values(
    result: DerivedResult, min_drop: float | None
) -> tuple[pd.DataFrame, list[tuple[int, int]], np.ndarray, np.ndarray, np.ndarray]:
    """The facts that count, the (layer, expert) pairs, and for each fact and pair [facts, pairs]: the mean rescue over
    the role's tokens (0 where not clean-active; missing without the role), the mean over the tokens at which it is
    clean-active, and the router weight there (both missing where there is none)."""
    facts, rows = kept_facts(result, min_drop=min_drop), result.tables["experts"]
    rows = rows[rows.fact.isin(facts.index)]
    cells = result.tables["cells"]
    tokens = cells.groupby("fact").pos.nunique().reindex(facts.index).to_numpy(dtype=float)
    grouped = rows.groupby(["fact", "layer", "expert"])
    found = grouped.agg(total=("rescue", "sum"), rescue=("rescue", "mean"), weight=("router_weight", "mean"))
    pairs = sorted({(int(layer), int(expert)) for _, layer, expert in found.index})
    column, row = {pair: i for i, pair in enumerate(pairs)}, {fact: i for i, fact in enumerate(facts.index)}
    values = np.zeros((len(facts), len(pairs)))
    active, weights = np.full(values.shape, np.nan), np.full(values.shape, np.nan)
    at = ([row[fact] for fact, _, _ in found.index], [column[int(la), int(e)] for _, la, e in found.index])
    values[at] = found.total.to_numpy(dtype=float)
    with np.errstate(invalid="ignore"):
        values = values / tokens[:, None]
    active[at], weights[at] = found.rescue.to_numpy(dtype=float), found.weight.to_numpy(dtype=float)
    return facts, pairs, values, active, weights


def _name(layer: int, expert: int) -> str:
    return expert_name(layer, None if expert == SHARED_INDEX else expert)
