"""Controls of the selected expert: other clean-active experts of the same layer and fact, drawn or matched.

Their rescue was measured with everybody's: a control row repeats the row of the expert that was drawn. Knows the
protocol's draws, no statistics.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from . import rows as table
from . import values
from .values import ExpertTable


def n_controls(top_k: int, *, wanted: int = 3) -> int:
    """Active-random controls per fact: 3, or as many others as a fact has, so 1 for a top-2 model and 0 for top-1."""
    return max(0, min(wanted, top_k - 1))


def random_controls(case_id: int, active: Sequence[int], selected: int, n: int) -> list[int]:
    """`n` of the other clean-active experts: `random.Random(1000 + case_id).sample` from them in rising order.

    Also where `selected` is not among `active`; fewer than `n` where there are fewer.
    """
    others = sorted(set(active) - {selected})
    return random.Random(1000 + case_id).sample(others, min(n, len(others)))


def gate_matched(weights: Mapping[int, float], selected: int) -> int | None:
    """The other clean-active expert with the router weight nearest to that of `selected`; of equals the lowest index.

    `weights`: clean router weight of every clean-active expert. None where `selected` is not active or alone.
    """
    if selected not in weights:
        return None
    others = sorted(set(weights) - {selected})
    return min(others, key=lambda e: abs(weights[e] - weights[selected]), default=None)


def control_rows(
    rows: pd.DataFrame, *, layer: int, expert: int | None, controls: int = 3, stage: str = table.MAIN
) -> pd.DataFrame:
    """All `control_random` and `control_gate_matched` rows of a stage, for the validation facts, one per draw.

    Made from the stage's expert rows at `layer`; empty without an expert.
    """
    known = values.facts(rows)
    of_layer = rows[(rows.kind == table.EXPERT) & (rows.layer == layer) & (rows.stage == stage)]
    of_layer = of_layer[of_layer.clean_active.fillna(False).astype(bool)]
    if expert is None or of_layer.empty:
        return table.table([])
    n = n_controls(values.expert_table(rows, layer=layer).top_k, wanted=controls)
    parts = []
    for fact, mine in of_layer[of_layer.split == table.VALIDATION].groupby("scan_index"):
        first = mine[mine.draw == mine.draw.min()]
        weights = dict(zip(first.expert.astype(int), first.router_weight_clean, strict=True))
        drawn = [
            (table.CONTROL_RANDOM, e) for e in random_controls(int(known.case_id[fact]), list(weights), expert, n)
        ]
        matched = gate_matched(weights, expert)
        drawn += [] if matched is None else [(table.CONTROL_GATE_MATCHED, matched)]
        parts += [mine[mine.expert == e].assign(kind=kind) for kind, e in drawn]
    return table.table(pd.concat(parts, ignore_index=True)) if parts else table.table([])


def random_control_means(experts: ExpertTable, case_ids: pd.Series, expert: int, *, controls: int = 3) -> pd.Series:
    """Mean rescue of the active-random controls that go with `expert`, by fact (index of `case_ids`); NaN without."""
    n = n_controls(experts.top_k, wanted=controls)
    column = {e: i for i, e in enumerate(experts.rescue.columns)}
    lines = experts.rescue.loc[case_ids.index].to_numpy(dtype=float)
    out = []
    for (fact, case_id), line in zip(case_ids.items(), lines, strict=True):
        drawn = random_controls(int(case_id), experts.active_of[fact], expert, n)
        out.append(np.mean([line[column[e]] for e in drawn]) if drawn else np.nan)
    return pd.Series(out, index=case_ids.index, dtype=float)
