"""Does the selection hold: other splits and thresholds, held-out relations, other noise, another draw, each relation.

The layer is fixed at the main selection throughout. Tables out; knows rows and options.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from . import controls, quantities, selection, split, values
from . import rows as table
from .options import Options
from .quantities import UNITS


def stability_grid(rows: pd.DataFrame, options: Options, *, layer: int, expert: int | None) -> pd.DataFrame:
    """Expert selection for every split seed × recurrence threshold, one row each.

    split_seed, recurrence, expert (missing: no candidate), same (as the main selection's), n_active and n of the
    selecting half, candidates, and on the other half expert_rescue (all-case mean) and specificity (means).
    """
    experts = values.expert_table(rows, layer=layer)
    known = values.facts(rows)
    specificity = _Specificity(experts, known, options)
    out = []
    for seed in options.grid_seeds:
        half = np.array(split.halves(list(known.subject), split_seed=seed, by_subject=options.by_subject))
        discovery, validation = known.index[half == table.DISCOVERY], known.index[half == table.VALIDATION]
        for threshold in options.grid_recurrence:
            choice = selection.select(experts, discovery, recurrence=threshold)
            out.append(
                {"split_seed": seed, "recurrence": threshold, "same": choice.expert == expert}
                | _evaluated(choice, experts, validation, specificity)
            )
    return pd.DataFrame(out, columns=["split_seed", "recurrence", "same", *_EVALUATED]).astype({"expert": "Int64"})


def held_out_relations(rows: pd.DataFrame, options: Options, *, layer: int, expert: int | None) -> pd.DataFrame:
    """Selection on the relations of four folds, evaluation on the fifth, over all kept facts: one row per fold.

    fold, relations (comma-joined, held out), held_out (facts), same, and the columns of the stability grid.
    """
    experts = values.expert_table(rows, layer=layer)
    known = values.facts(rows)
    specificity = _Specificity(experts, known, options)
    relation = known.relation.fillna("")
    out = []
    for fold, names in enumerate(split.relation_folds(list(relation), folds=options.folds)):
        held = relation.isin(names).to_numpy()
        choice = selection.select(experts, known.index[~held], recurrence=options.recurrence)
        out.append(
            {
                "fold": fold,
                "relations": ", ".join(sorted(names)),
                "held_out": int(held.sum()),
                "same": choice.expert == expert,
            }
            | _evaluated(choice, experts, known.index[held], specificity)
        )
    return pd.DataFrame(out, columns=["fold", "relations", "held_out", "same", *_EVALUATED]).astype({"expert": "Int64"})


def per_relation(rows: pd.DataFrame, options: Options, *, layer: int, expert: int | None) -> pd.DataFrame:
    """One row per relation of the validation facts, most facts first: relation, n, n_active, drop (mean), and for
    layer_rescue, expert_rescue and specificity the mean under its own name, `…_low`, `…_high` and `…_n`."""
    of_fact = quantities.of_validation(rows, options, layer=layer, expert=expert)
    known = values.facts(rows).loc[of_fact.index]
    active = of_fact.expert_rescue_active_only.notna()
    out = []
    for relation, facts in of_fact.groupby(known.relation.fillna("").to_numpy()):
        row = {"relation": relation, "n": len(facts), "n_active": int(active[facts.index].sum())}
        row["drop"] = facts["drop"].mean()
        for name in ("layer_rescue", "expert_rescue", "specificity"):
            found = quantities.estimate(facts[name], known, options)
            row |= {name: found.mean, f"{name}_low": found.ci_low, f"{name}_high": found.ci_high, f"{name}_n": found.n}
        out.append(row)
    columns = ["relation", "n", "n_active", "drop"]
    for name in ("layer_rescue", "expert_rescue", "specificity"):
        columns += [name, f"{name}_low", f"{name}_high", f"{name}_n"]
    return pd.DataFrame(out, columns=columns).sort_values(["n", "relation"], ascending=[False, True], ignore_index=True)


def noise_sensitivity(rows: pd.DataFrame, options: Options, *, layer: int, expert: int | None) -> pd.DataFrame:
    """One row per noise level and quantity on validation, layer and expert fixed: noise, stage, quantity (drop,
    layer_rescue, expert_rescue), mean, ci_low, ci_high, n, n_missing, and restoration (mean ÷ mean drop)."""
    main = rows[rows.stage == table.MAIN].noise
    if main.empty:
        return pd.DataFrame(columns=["noise", "stage", "quantity", *UNITS, "restoration"])
    stages = {float(main.iloc[0]): table.MAIN}
    for stage, level in rows[rows.stage.str.startswith("noise_")].groupby("stage").noise.first().items():
        stages[float(level)] = stage
    known, out = values.facts(rows), []
    for level, stage in sorted(stages.items()):
        of_fact = quantities.of_validation(rows, options, layer=layer, expert=expert, stage=stage)
        drop = of_fact["drop"].mean()
        for name in ("drop", "layer_rescue", "expert_rescue"):
            found = quantities.estimate(of_fact[name], known, options)
            out.append(
                {"noise": level, "stage": stage, "quantity": name}
                | {column: getattr(found, column) for column in UNITS}
                | {"restoration": quantities.restoration(found.mean, drop)}
            )
    return pd.DataFrame(out, columns=["noise", "stage", "quantity", *UNITS, "restoration"])


def fresh_draw(rows: pd.DataFrame, options: Options, *, layer: int, expert: int | None) -> pd.DataFrame:
    """The validation estimates on the draw that the filter used and on a fresh one: one row per quantity and draw.

    quantity, draw ("same", "fresh"), mean, ci_low, ci_high, positive_fraction, p_sign_flip, n, n_missing.
    """
    known, out = values.facts(rows), []
    for draw, stage in (("same", table.MAIN), ("fresh", table.FRESH_DRAW)):
        if not (rows.stage == stage).any():
            continue
        of_fact = quantities.of_validation(rows, options, layer=layer, expert=expert, stage=stage)
        for name in ("drop", *quantities.ESTIMATED_TWICE):
            found = quantities.estimate(of_fact[name], known, options)
            out.append({"quantity": name, "draw": draw} | {column: getattr(found, column) for column in UNITS})
    return pd.DataFrame(out, columns=["quantity", "draw", *UNITS])


_EVALUATED = ["expert", "n_active", "n", "needed", "candidates", "expert_rescue", "specificity", "n_validation"]


class _Specificity:
    """Specificity per fact of any expert, computed once for each."""

    def __init__(self, experts: values.ExpertTable, known: pd.DataFrame, options: Options) -> None:
        self._experts, self._known, self._options = experts, known, options
        self._found: dict[int, pd.Series] = {}

    def of(self, expert: int, facts: pd.Index) -> pd.Series:
        if expert not in self._found:
            means = controls.random_control_means(
                self._experts, self._known.case_id, expert, controls=self._options.controls
            )
            self._found[expert] = self._experts.rescue[expert] - means
        return self._found[expert].loc[facts]


def _evaluated(
    choice: selection.Choice, experts: values.ExpertTable, facts: pd.Index, specificity: _Specificity
) -> dict[str, object]:
    facts = facts.intersection(experts.measured)
    common = {
        "n": choice.n,
        "needed": choice.needed,
        "candidates": int(choice.experts.candidate.sum()),
        "n_validation": len(facts),
    }
    if choice.expert is None:
        return {"expert": pd.NA, "n_active": 0, "expert_rescue": np.nan, "specificity": np.nan, **common}
    return {
        "expert": choice.expert,
        "n_active": int(choice.experts.set_index("expert").n_active[choice.expert]),
        "expert_rescue": float(experts.rescue.loc[facts, choice.expert].mean()),
        "specificity": float(specificity.of(choice.expert, facts).mean()),
        **common,
    }
