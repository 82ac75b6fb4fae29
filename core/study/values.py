"""From rows to one value per fact: means over draws, matrices of facts × layers and of facts × experts. Pandas only.

All results start here, so that "not active counts as 0" and "not measured is missing" are decided in one place.
Knows the row table, no selection and no statistics.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from . import rows as table


@dataclass(frozen=True)
class ExpertTable:
    """Expert patches at one layer; frames of facts (by scan_index) × experts (rising, those clean-active somewhere).

    `rescue` (logits, mean over draws): 0 where the expert is not clean-active, NaN where the fact was not measured at
    this layer; `active`: clean-active; `weight`: clean router weight, NaN where not active.
    """

    layer: int
    rescue: pd.DataFrame
    active: pd.DataFrame
    weight: pd.DataFrame

    @property
    def top_k(self) -> int:
        """Clean-active experts of a fact at this layer (the largest number, where it varies)."""
        return int(self.active.sum(axis=1).max()) if self.active.size else 0

    @property
    def measured(self) -> pd.Index:
        """The facts that have expert patches at this layer."""
        return self.active.index[self.active.any(axis=1)]

    @cached_property
    def active_of(self) -> dict[int, list[int]]:
        """Each fact's clean-active experts in rising order."""
        columns = self.active.columns.to_numpy(dtype=int)
        lines = self.active.to_numpy(dtype=bool)
        return {int(f): columns[line].tolist() for f, line in zip(self.active.index, lines, strict=True)}


def facts(rows: pd.DataFrame) -> pd.DataFrame:
    """The facts of a study, by scan_index in rising order: case_id, relation, subject, split."""
    first = rows.drop_duplicates("scan_index").set_index("scan_index").sort_index()
    return first[["case_id", "relation", "subject", "split"]]


def of_split(rows: pd.DataFrame, split: str) -> pd.Index:
    """scan_index of the facts of a half, rising."""
    known = facts(rows)
    return known.index[known.split == split]


def per_fact(
    rows: pd.DataFrame, kind: str, *, layer: int, stage: str = table.MAIN, expert: int | None = None
) -> pd.Series:
    """Rescue of one kind of patch at a layer, mean over draws (and over a fact's controls or random coalitions).

    By scan_index, only facts that have such rows; NaN where any of them is missing.
    """
    found = rows[(rows.kind == kind) & (rows.layer == layer) & (rows.stage == stage)]
    if expert is not None:
        found = found[found.expert == expert]
    return _in_order(found).groupby("scan_index").rescue.mean(skipna=False)


def layer_matrix(rows: pd.DataFrame, *, split: str | None = None, stage: str = table.MAIN) -> pd.DataFrame:
    """Rescue of layer patches, mean over draws: facts (all of the split, or of the study) × layers, rising."""
    found = rows[(rows.kind == table.LAYER) & (rows.stage == stage)]
    means = _in_order(found).groupby(["scan_index", "layer"]).rescue.mean(skipna=False)
    matrix = means.unstack("layer").sort_index(axis=1)
    return matrix.reindex(facts(rows).index if split is None else of_split(rows, split))


def expert_table(
    rows: pd.DataFrame, *, layer: int, stage: str = table.MAIN, everyone: pd.Index | None = None
) -> ExpertTable:
    """The expert patches of a stage at one layer, for every fact of the study (`everyone`, where `rows` are a part)."""
    found = rows[(rows.kind == table.EXPERT) & (rows.layer == layer) & (rows.stage == stage)]
    found = found[found.clean_active.fillna(False).astype(bool)]
    grouped = _in_order(found).astype({"expert": int}).groupby(["scan_index", "expert"])
    everyone = facts(rows).index if everyone is None else everyone

    def matrix(values: pd.Series) -> pd.DataFrame:
        return values.unstack("expert").sort_index(axis=1).reindex(everyone)

    active = matrix(grouped.size()).notna()
    rescue = matrix(grouped.rescue.mean(skipna=False))
    # a missing value stays missing where the expert is active, and the whole fact where nothing was measured
    rescue = rescue.mask(~active & active.any(axis=1).to_numpy()[:, None], 0.0)
    return ExpertTable(layer, rescue, active, matrix(grouped.router_weight_clean.mean()))


def drops(rows: pd.DataFrame, *, stage: str = table.MAIN) -> pd.Series:
    """Clean minus corrupt contrast by scan_index, mean over draws."""
    found = rows[(rows.stage == stage) & (rows.kind == table.LAYER)].drop_duplicates(["scan_index", "draw"])
    found = _in_order(found)
    return (found.clean_contrast - found.corrupt_contrast).groupby(found.scan_index).mean()


def subject_key(subject: str | None) -> str:
    """What makes two subjects the same one: their text without regard to case and spacing."""
    return " ".join((subject or "").split()).casefold()


def _in_order(found: pd.DataFrame) -> pd.DataFrame:
    """Rows in an order of their own, so that a sum has the same last bit however the table was put together."""
    return found.sort_values(["scan_index", "layer", "draw", "expert", "experts"], kind="stable")
