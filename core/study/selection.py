"""Selection on one half: the layer by mean rescue, the expert by recurrence first and mean rescue second.

Knows facts × layers and facts × experts tables; whoever calls says which facts may be looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from . import values
from .rows import DISCOVERY
from .values import ExpertTable


@dataclass(frozen=True)
class Choice:
    """What recurrence-first selection found. `expert`: None where no expert is active in enough facts.

    `experts`: one row per expert that is clean-active in any of the `n` facts: expert, n_active, recurrence,
    mean_all (facts where it is not active count as 0), mean_active (active facts only), candidate; highest mean_all
    first. `needed`: so many active facts make a candidate.
    """

    layer: int
    expert: int | None
    experts: pd.DataFrame
    n: int
    needed: int


def best_layer(rows: pd.DataFrame) -> int | None:
    """The layer with the highest mean rescue of layer patches on the discovery facts; of equals the lowest.

    None where no discovery fact has a layer patch.
    """
    means = values.layer_matrix(rows, split=DISCOVERY).mean()
    return None if means.isna().all() else int(means.index[int(np.nanargmax(means.to_numpy()))])


def choose_expert(rows: pd.DataFrame, *, layer: int, recurrence: float) -> Choice:
    """Recurrence-first selection at `layer` on the discovery facts."""
    return select(values.expert_table(rows, layer=layer), values.of_split(rows, DISCOVERY), recurrence=recurrence)


def select(experts: ExpertTable, facts: pd.Index, *, recurrence: float) -> Choice:
    """Recurrence-first selection among `facts`: candidates are clean-active in at least `recurrence` × n of them, the
    selected one has the highest mean rescue over all of them; of equals the lowest index."""
    table = score(experts, facts)
    n = len(facts.intersection(experts.measured))
    needed = max(1, int(np.ceil(recurrence * n - 1e-9)))
    table["candidate"] = table.n_active >= needed
    chosen = table[table.candidate]
    return Choice(experts.layer, int(chosen.expert.iloc[0]) if len(chosen) else None, table, n, needed)


def score(experts: ExpertTable, facts: pd.Index) -> pd.DataFrame:
    """expert, n_active, recurrence, mean_all, mean_active among `facts`: highest mean_all first, of equals the lowest
    index. Facts that were not measured at this layer are left out of all of them."""
    facts = facts.intersection(experts.measured)
    rescue, active = experts.rescue.loc[facts], experts.active.loc[facts]
    table = pd.DataFrame(
        {
            "expert": np.asarray(active.columns, dtype=int),
            "n_active": active.sum().to_numpy(dtype=int),
            "recurrence": active.mean().to_numpy(dtype=float),
            "mean_all": rescue.mean().to_numpy(dtype=float),
            "mean_active": rescue.where(active).mean().to_numpy(dtype=float),
        }
    )
    table = table[table.n_active > 0]
    return table.sort_values(["mean_all", "expert"], ascending=[False, True], ignore_index=True)


def ranks(experts: ExpertTable, facts: pd.Index, expert: int) -> pd.Series:
    """The rank of `expert`'s rescue among each fact's clean-active experts (1 is the highest, of equals the better
    rank), for those of `facts` where it is active."""
    facts = facts.intersection(experts.measured)
    if expert not in experts.active.columns:
        return pd.Series(dtype=float)
    mine = facts[experts.active.loc[facts, expert].to_numpy()]
    among = experts.rescue.loc[mine].where(experts.active.loc[mine])
    higher = among.gt(among[expert], axis=0).sum(axis=1)
    return (higher + 1).where(among[expert].notna()).astype(float)
