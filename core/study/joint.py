"""The joint search: every clean-active expert of every layer at once, and how much of the winner's rescue is left.

The two-stage choice looks at one layer and can miss a second locus. The search looks at all pairs on discovery, so the
winner's discovery number is the best of thousands and flatters; only its validation number is an estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..stats import Estimate
from . import controls, quantities, selection, values
from . import rows as table
from .options import Options


@dataclass(frozen=True)
class Joint:
    """`pairs`: one row per (layer, expert) clean-active in any discovery fact: layer, expert, n_active, recurrence,
    mean_all, mean_active (discovery), mean_validation, candidate; highest mean_all first. `layers`: searched.

    `winner`: the candidate with the highest mean_all, or None; `discovery`, `validation`: its all-case rescue on the
    half that it was chosen on and on the other, `specificity`: on validation.
    """

    pairs: pd.DataFrame
    layers: list[int]
    winner: tuple[int, int] | None
    discovery: Estimate | None
    validation: Estimate | None
    specificity: Estimate | None

    @property
    def n_pairs(self) -> int:
        """Pairs that were searched: clean-active in at least one discovery fact."""
        return len(self.pairs)

    @property
    def n_candidates(self) -> int:
        """Pairs that recur often enough to be chosen."""
        return int(self.pairs.candidate.sum())

    @property
    def shrinkage(self) -> float:
        """Discovery minus validation mean of the winner (logits); NaN without a winner."""
        return self.discovery.mean - self.validation.mean if self.discovery and self.validation else np.nan


def search(rows: pd.DataFrame, options: Options) -> Joint:
    """Search all layers at which experts were patched, with the study's recurrence threshold."""
    known = values.facts(rows)
    discovery, validation = (known.index[known.split == split] for split in table.SPLITS)
    measured = {
        int(layer): part
        for layer, part in rows[(rows.kind == table.EXPERT) & (rows.stage == table.MAIN)].groupby("layer")
    }
    layers, parts = list(measured), []
    for layer, part in measured.items():
        experts = values.expert_table(part, layer=layer, everyone=known.index)
        found = selection.select(experts, discovery, recurrence=options.recurrence).experts
        found.insert(0, "layer", layer)
        means = experts.rescue.loc[validation.intersection(experts.measured)].mean()
        found["mean_validation"] = means.reindex(found.expert).to_numpy(dtype=float)
        parts.append(found)
    columns = [
        "layer", "expert", "n_active", "recurrence", "mean_all", "mean_active", "mean_validation", "candidate",
    ]  # fmt: skip
    pairs = pd.concat(parts) if parts else pd.DataFrame({name: [] for name in columns}).astype({"candidate": bool})
    pairs = pairs[columns].sort_values(
        ["mean_all", "layer", "expert"], ascending=[False, True, True], ignore_index=True
    )
    candidates = pairs[pairs.candidate]
    if candidates.empty:
        return Joint(pairs, layers, None, None, None, None)
    layer, expert = int(candidates.layer.iloc[0]), int(candidates.expert.iloc[0])
    experts = values.expert_table(measured[layer], layer=layer, everyone=known.index)
    rescue = experts.rescue[expert]
    means = controls.random_control_means(experts, known.case_id[validation], expert, controls=options.controls)
    return Joint(
        pairs,
        layers,
        (layer, expert),
        quantities.estimate(rescue[discovery], known, options),
        quantities.estimate(rescue[validation], known, options),
        quantities.estimate(rescue[validation] - means, known, options),
    )
