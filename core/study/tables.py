"""All tables of a study: what the figures draw, the report shows and the downloads hold. Pandas in, pandas out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from .. import stats
from ..results import expert_name
from . import controls, published, quantities, values
from . import rows as table
from .analysis import Analysis
from .quantities import BESIDE, QUANTITIES, UNITS

TITLES = {
    "estimates": "Estimates on the validation facts",
    "funnel": "Funnel",
    "layers": "Layer patches: mean rescue at the last position",
    "experts": "Experts of the selected layer",
    "controls": "The selected expert and its controls",
    "coalitions": "Coalitions against the layer patch",
    "coalition_search": "Search for the minimal coalition on discovery",
    "stability": "Stability grid: expert selection over split seeds and recurrence thresholds",
    "held_out_relations": "Relation-held-out selection",
    "relations": "Per relation, validation facts",
    "noise": "Noise sensitivity, layer and expert fixed",
    "fresh_draw": "The same estimates on a fresh noise draw",
    "joint_search": "Joint search over all layers",
    "published": "Published numbers beside ours",
    "facts": "One row per fact",
}
"""Name → title of every table, in the order of the report."""


def tables(analysis: Analysis, summary: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Every table of `TITLES`; some are empty where that part was not measured. Logits, unless a name says otherwise.

    The report's order; intervals are the study's bootstrap intervals.
    """
    a = analysis
    layers = layer_curves(a)
    return {
        "estimates": _estimates(a),
        "funnel": funnel(summary["funnel"]),
        "layers": layers,
        "experts": experts(a),
        "controls": _controls(a),
        "coalitions": _coalitions(a),
        "coalition_search": a.coalition.curve if a.coalition else pd.DataFrame(),
        "stability": _named(a.grid, a.layer),
        "held_out_relations": _named(a.folds, a.layer),
        "relations": a.relations,
        "noise": a.noise,
        "fresh_draw": a.fresh,
        "joint_search": pairs(a),
        "published": published.beside(summary, layers, a.noise),
        "facts": facts(a),
    }


def funnel(counts: Mapping[str, Any]) -> pd.DataFrame:
    """step, meaning, facts: the numbers of the funnel, in their order."""
    from .scan import FUNNEL

    steps = [(name, FUNNEL.get(name, name), value) for name, value in counts.items() if isinstance(value, int)]
    return pd.DataFrame(steps, columns=["step", "meaning", "facts"])


def layer_curves(a: Analysis) -> pd.DataFrame:
    """layer, split, mean, ci_low, ci_high, n, selected: the layer sweep on both halves, with bootstrap bands."""
    parts = []
    for split in table.SPLITS:
        matrix = values.layer_matrix(a.rows, split=split)
        if matrix.empty:
            continue
        mean, low, high, n = _bands(a, matrix)
        parts.append(
            pd.DataFrame(
                {
                    "layer": matrix.columns.astype(int),
                    "split": split,
                    "mean": mean,
                    "ci_low": low,
                    "ci_high": high,
                    "n": n,
                }
            )
        )
    out = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["layer", "split", *UNITS[:3], "n"])
    return out.assign(selected=out.layer == (-1 if a.layer is None else a.layer))


def experts(a: Analysis) -> pd.DataFrame:
    """The experts of the selected layer, best all-case mean first: expert, name, selected, candidate; on discovery
    n_active, recurrence, mean_all, mean_active; on validation (`v_…`) the same, with intervals of the all-case mean
    and of the specificity, and its n."""
    if a.layer is None or a.choice is None:
        return pd.DataFrame()
    found = a.choice.experts.copy()
    every = values.expert_table(a.rows, layer=a.layer)
    validation = values.of_split(a.rows, table.VALIDATION)
    rescue, active = every.rescue.reindex(validation), every.active.reindex(validation, fill_value=False)
    rescue, active = rescue[found.expert], active[found.expert]
    found.insert(1, "name", [expert_name(a.layer, int(e)) for e in found.expert])
    found.insert(2, "selected", found.expert == (-1 if a.expert is None else a.expert))
    found["v_n_active"] = active.sum().to_numpy(dtype=int)
    measured = len(validation.intersection(every.measured))
    found["v_recurrence"] = found.v_n_active / measured if measured else np.nan
    found["v_mean_all"], found["v_mean_all_low"], found["v_mean_all_high"], _ = _bands(a, rescue)
    found["v_mean_active"] = rescue.where(active).mean().to_numpy(dtype=float)
    case_ids = a.known.case_id[validation]
    against = pd.DataFrame(
        {
            e: rescue[e] - controls.random_control_means(every, case_ids, int(e), controls=a.options.controls)
            for e in found.expert
        },
        index=validation,
    )
    bands = _bands(a, against)
    for name, column in zip(
        ("v_specificity", "v_specificity_low", "v_specificity_high", "v_specificity_n"), bands, strict=True
    ):
        found[name] = column
    return found


def pairs(a: Analysis) -> pd.DataFrame:
    """The pairs of the joint search with their names; `winner`, `two_stage`: the two selections."""
    found = a.joint.pairs.copy()
    found.insert(2, "name", [expert_name(int(la), int(e)) for la, e in zip(found.layer, found.expert, strict=True)])
    chosen = list(zip(found.layer, found.expert, strict=True))
    found["winner"] = [pair == a.joint.winner for pair in chosen]
    found["two_stage"] = [pair == (a.layer, a.expert) for pair in chosen]
    return found


def facts(a: Analysis) -> pd.DataFrame:
    """One row per fact: scan_index, case_id, relation, subject, split, clean_contrast, drop, and of the validation
    facts every quantity."""
    main = a.rows[(a.rows.stage == table.MAIN) & (a.rows.kind == table.LAYER)]
    out = a.known.assign(
        clean_contrast=main.groupby("scan_index").clean_contrast.mean().reindex(a.known.index),
        drop=values.drops(a.rows).reindex(a.known.index),
    )
    return out.join(a.of_fact.drop(columns="drop")).reset_index()


def _estimates(a: Analysis) -> pd.DataFrame:
    return _lines(a, {**QUANTITIES, **BESIDE})


def _controls(a: Analysis) -> pd.DataFrame:
    """What the figure compares: rescues of the expert and its controls, then the differences."""
    names = {
        "expert_rescue": "selected expert, all facts",
        "control_random": "active-random controls, all facts",
        "expert_rescue_active_only": "selected expert, where active",
        "control_gate_matched": "gate-matched control, where active",
        "equal_norm_selected": "selected expert, equal norm",
        "equal_norm_control": "gate-matched control, equal norm",
        "specificity": "specificity, all facts",
        "specificity_active_only": "specificity, where active",
        "gate_matched_specificity": "gate-matched specificity",
        "equal_norm_specificity": "equal-norm specificity",
    }
    return _lines(a, names) if a.expert is not None else pd.DataFrame()


def _coalitions(a: Analysis) -> pd.DataFrame:
    names = {
        "layer_rescue": "layer patch",
        "routing_union": "routing union",
        "clean_topk": "clean top-k",
        "minimal_coalition": f"minimal coalition ({a.coalition.size})" if a.coalition else "minimal coalition",
        "random_coalition": "random coalitions of that size",
        "expert_rescue": "selected expert",
    }
    found = _lines(a, names)
    drop = a.estimates["drop"].mean
    whole = a.estimates["layer_rescue"].mean
    found["share_of_layer_patch"] = found["mean"] / whole if whole > 0 else np.nan
    found["restoration"] = [quantities.restoration(mean, drop) for mean in found["mean"]]
    return found


def _lines(a: Analysis, meanings: Mapping[str, str]) -> pd.DataFrame:
    lines = [
        [name, meaning, *(getattr(a.estimates[name], unit) for unit in UNITS)] for name, meaning in meanings.items()
    ]
    return pd.DataFrame(lines, columns=["quantity", "meaning", *UNITS])


def _bands(a: Analysis, matrix: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    subjects = a.known.subject.reindex(matrix.index)
    return stats.bands(
        matrix.to_numpy(dtype=float),
        units=[values.subject_key(s) for s in subjects] if a.options.by_subject else None,
        resamples=a.options.resamples,
        confidence=a.options.confidence,
        seed=a.options.stats_seed,
    )


def _named(found: pd.DataFrame, layer: int | None) -> pd.DataFrame:
    """With the expert's name beside its index; "–" where there is none."""
    if found.empty or layer is None:
        return found
    names = ["–" if pd.isna(e) else expert_name(layer, int(e)) for e in found.expert]
    return found.assign(name=names)
