"""One expert over a set of facts: what its patch restores and against which controls, what knocking it out costs.

Made from the answers of `core.expert_rescue` and `core.expert_knockout` with the study's control rules and
`core.stats`. Plain tables in and out: no model, no charts, no page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from . import stats
from .named_rows import named_rows
from .results import MIN_DROP, expert_name
from .study import controls
from .study.values import ExpertTable, subject_key

Tables = Mapping[str, pd.DataFrame]
NO_RELATION = "(no relation)"
MAX_CONTROLS = 3
"""Active-random controls per fact (protocol.md, step 5)."""

QUANTITIES = {
    "expert_rescue": "rescue of the expert patch, all facts (0 where it is not clean-active)",
    "expert_rescue_active_only": "rescue, only facts where it is clean-active",
    "specificity": "rescue minus the mean of its active-random controls, all facts",
    "specificity_active_only": "specificity, only facts where it is clean-active",
    "gate_matched_specificity": "rescue minus that of its gate-matched control, where it is clean-active",
    "control_random": "mean rescue of the active-random controls",
    "control_gate_matched": "rescue of the gate-matched control",
}
"""The estimates of an expert (logits), in protocol.md's names, and what they mean."""
SHORT = {
    "expert_rescue": "rescue, all facts",
    "expert_rescue_active_only": "rescue where active",
    "specificity": "specificity, all facts",
    "specificity_active_only": "specificity where active",
    "gate_matched_specificity": "gate-matched specificity",
    "control_random": "active-random controls",
    "control_gate_matched": "gate-matched control",
}
"""The same in few words, for axes and cards."""


@dataclass(frozen=True)
class Rescue:
    """What the expert patches of one expert say. `facts`: one row per fact; `estimates`: one row per quantity of
    `QUANTITIES`; `relations`: one row per relation, highest mean first, those where it is never active last; `values`:
    single numbers (see `rescue`)."""

    facts: pd.DataFrame
    estimates: pd.DataFrame
    relations: pd.DataFrame
    values: dict[str, Any]


@dataclass(frozen=True)
class Knockout:
    """What knocking it out costs. `facts`: the rows of the answer, own facts marked; `estimates`: one row per mode,
    place and group of facts; `relations`: one row per mode, place and relation."""

    facts: pd.DataFrame
    estimates: pd.DataFrame
    relations: pd.DataFrame


OWN, OTHERS = "own facts", "other facts"
"""Facts where the expert is clean-active at the last position, and those where it is not."""


# -- rescue ------------------------------------------------------------------------------------------------------------


def every_expert(tables: Tables) -> pd.DataFrame:
    """All experts that are clean-active at some fact's last position, highest all-case mean rescue first.

    `n_active` of `n` facts, `recurrence` their share, `mean_all` (0 where not active), `mean_active`, mean router
    weight where active.
    """
    n = len(tables["facts"])
    grouped = tables["patches"].groupby(["layer", "expert"])
    out = grouped.agg(n_active=("rescue", "size"), mean_active=("rescue", "mean"), total=("rescue", "sum"),
                      mean_weight=("router_weight", "mean")).reset_index()  # fmt: skip
    out["n"], out["recurrence"], out["mean_all"] = n, out.n_active / max(n, 1), out.total / max(n, 1)
    out = out.astype({"layer": int, "expert": int})
    out["name"] = [expert_name(layer, expert) for layer, expert in zip(out.layer, out.expert, strict=True)]
    columns = ["name", "layer", "expert", "mean_all", "mean_active", "n_active", "n", "recurrence", "mean_weight"]
    return out[columns].sort_values("mean_all", ascending=False, ignore_index=True, kind="stable")


def rescue(tables: Tables, layer: int, expert: int) -> Rescue:
    """The rescue of one expert over the facts, its controls, and their estimates.

    With two clean-active experts in a layer one active-random control is drawn. Means are over facts with a 95 %
    bootstrap interval in which all facts of a subject are resampled together. `values`: n, n_active, median_rank and
    first (facts in which its rescue is the highest of the active experts), mean_drop and restoration.
    """
    per_fact = _per_fact(tables, layer, expert)
    active = per_fact.clean_active
    columns = pd.DataFrame({
        "expert_rescue": per_fact.rescue,
        "expert_rescue_active_only": per_fact.rescue.where(active),
        "specificity": per_fact.specificity,
        "specificity_active_only": per_fact.specificity.where(active),
        "gate_matched_specificity": per_fact.gate_matched_specificity,
        "control_random": per_fact.control_random,
        "control_gate_matched": per_fact.control_gate_matched,
    })  # fmt: skip
    units = [subject_key(subject) for subject in per_fact.subject]
    estimates = _estimates(columns, units).assign(meaning=list(QUANTITIES.values()))
    drop, mean = per_fact["drop"].mean(), per_fact.rescue.mean()
    values = {
        "n": len(per_fact), "n_active": int(active.sum()),
        "first": int((per_fact["rank"] == 1).sum()),
        "mean_rank": float(per_fact["rank"].mean()),
        "mean_active_experts": float(per_fact.n_active[active].mean()),
        "mean_drop": float(drop),
        "restoration": float(mean / drop) if drop >= MIN_DROP else float("nan"),
    }  # fmt: skip
    parts = []
    for relation, rows in per_fact.groupby("relation"):
        mine = columns.loc[rows.index, ["expert_rescue", "expert_rescue_active_only", "specificity"]]
        wide = {"relation": relation, "n": len(rows), "n_active": int(rows.clean_active.sum())}
        for line in named_rows(_bands(mine, [units[i] for i in rows.index])):
            name = line.quantity
            wide |= {name: line.mean, f"{name}_low": line.ci_low, f"{name}_high": line.ci_high}
        parts.append(wide)
    relations = pd.DataFrame(parts).sort_values("expert_rescue", ascending=False, kind="stable")
    relations = relations.sort_values("n_active", key=lambda n: n == 0, ignore_index=True, kind="stable")
    return Rescue(per_fact, estimates, relations, values)


def _per_fact(tables: Tables, layer: int, expert: int) -> pd.DataFrame:
    """One row per fact: its rescue, rank, controls and differences; NaN where something is not defined."""
    known = tables["facts"].reset_index(drop=True)
    at = tables["patches"][tables["patches"].layer == layer]
    table = _expert_table(at, layer, known.fact)
    out = known[["fact", "case_id", "relation", "subject", "prompt", "true", "foil", "clean_contrast", "drop"]].copy()
    out["relation"] = _named(out.relation)
    mine = at[at.expert == expert].set_index("fact")
    out["clean_active"] = out.fact.isin(mine.index)
    out["router_weight"] = out.fact.map(mine.router_weight).fillna(0.0)
    out["rescue"] = out.fact.map(mine.rescue).fillna(0.0)
    out["rescue_sd"] = out.fact.map(mine.rescue_sd)
    ranks = at.assign(rank=at.groupby("fact").rescue.rank(ascending=False, method="min"))
    out["rank"] = out.fact.map(ranks[ranks.expert == expert].set_index("fact")["rank"])
    out["n_active"] = out.fact.map(at.groupby("fact").size()).fillna(0).astype(int)
    case_ids = known.set_index("fact").case_id
    means = controls.random_control_means(table, case_ids, expert, controls=MAX_CONTROLS)
    out["control_random"] = out.fact.map(means).astype(float)
    out["specificity"] = out.rescue - out.control_random
    matched = {
        fact: controls.gate_matched({e: table.weight.at[fact, e] for e in table.active_of[fact]}, expert)
        for fact in out.fact[out.clean_active]
    }
    out["gate_matched"] = out.fact.map({f: np.nan if e is None else e for f, e in matched.items()}).astype("Int64")
    rescues = {fact: table.rescue.at[fact, e] for fact, e in matched.items() if e is not None}
    out["control_gate_matched"] = out.fact.map(rescues).astype(float)
    out["gate_matched_specificity"] = out.rescue - out.control_gate_matched
    return out


def _expert_table(at: pd.DataFrame, layer: int, facts: pd.Series) -> ExpertTable:
    """The clean-active experts of one layer as the study's control rules read them."""

    def matrix(name: str) -> pd.DataFrame:
        return at.pivot(index="fact", columns="expert", values=name).reindex(facts)

    weight = matrix("router_weight")
    return ExpertTable(layer, matrix("rescue").fillna(0.0), weight.notna(), weight)


# -- knockout ----------------------------------------------------------------------------------------------------------


def knockout(table: pd.DataFrame) -> Knockout:
    """Costs and side effects, from the answer's table `knockouts`: mean change of the clean contrast (logits)."""
    facts = table.assign(
        relation=_named(table.relation), group=np.where(table.clean_active, OWN, OTHERS)
    )  # fmt: skip
    lines, by_relation = [], []
    for (mode, place), rows in facts.groupby(["mode", "place"]):
        for group in (OWN, OTHERS):
            mine = rows[rows.group == group]
            units = [subject_key(s) for s in mine.subject]
            line = _estimates(mine[["change"]], units).drop(columns="quantity").to_dict("records")[0]
            touched = int((mine.positions > 0).sum())
            lines.append({"mode": mode, "place": place, "group": group, **line, "touched": touched})
        for relation, mine in rows.groupby("relation"):
            units = [subject_key(s) for s in mine.subject]
            line = _bands(mine[["change"]], units).drop(columns="quantity").to_dict("records")[0]
            own = int(mine.clean_active.sum())
            by_relation.append({"mode": mode, "place": place, "relation": relation, "n_own": own, **line})
    return Knockout(facts, pd.DataFrame(lines), pd.DataFrame(by_relation))


# -- neurons -----------------------------------------------------------------------------------------------------------


def carriers(write: pd.Series) -> int:
    """How few neurons carry half of what all write in size: of the sum of |`write`| (logits). 0 where none writes."""
    sizes = write.abs().sort_values(ascending=False).cumsum()
    return int((sizes < sizes.iloc[-1] / 2).sum()) + 1 if len(sizes) and sizes.iloc[-1] > 0 else 0


# -- means -------------------------------------------------------------------------------------------------------------


def _estimates(columns: pd.DataFrame, units: list[str]) -> pd.DataFrame:
    """One row per column: everything of `core.stats.estimate`."""
    rows = []
    for name in columns:
        found = stats.estimate(columns[name].to_numpy(dtype=float), units=units)
        rows.append({
            "quantity": name, "mean": found.mean, "ci_low": found.ci_low, "ci_high": found.ci_high,
            "positive_fraction": found.positive_fraction, "p_sign_flip": found.p_sign_flip, "n": found.n,
            "n_missing": found.n_missing,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _bands(columns: pd.DataFrame, units: list[str]) -> pd.DataFrame:
    """One row per column: mean, interval and n."""
    mean, low, high, n = stats.bands(columns.to_numpy(dtype=float), units=units)
    return pd.DataFrame({"quantity": list(columns), "mean": mean, "ci_low": low, "ci_high": high, "n": n.astype(int)})


def _named(relations: pd.Series) -> pd.Series:
    return relations.fillna(NO_RELATION)
