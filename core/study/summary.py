"""summary.json: what a study found, computed from its rows, settings and funnel alone, so that anyone can recompute it.

The first part of the dict is a format that others read; its names do not change. Everything else stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ..named_rows import named_rows
from . import coalitions, values
from . import rows as table
from .analysis import Analysis, analyse, json_number, n_active
from .quantities import BESIDE, QUANTITIES, restoration


def expert_id(layer: int, expert: int | None) -> str | None:
    """L06E005: layer padded to two digits, expert to three, as summary.json has it; None without an expert."""
    return None if expert is None else f"L{layer:02d}E{expert:03d}"


def summarise(
    rows: pd.DataFrame, settings: Mapping[str, Any], funnel: Mapping[str, Any], *, analysis: Analysis | None = None
) -> dict[str, Any]:
    """The summary, JSON values only (undefined numbers: None).

    `layer`, `expert`, the estimates of `QUANTITIES` on the validation facts, `recurrence` (share of the discovery
    facts in which the expert is clean-active), `funnel`, `settings`, `verdict` (one of the four labels). Beside them:
    `verdict_words`, `cautions`, `n_facts`, `missing` (facts without a value, by quantity), `beside` (`BESIDE`),
    `restoration` (mean rescue ÷ mean drop), `activity`, `rank`, `runner_up`, `coalition`, `joint_search`,
    `stability`, `held_out`.

    `analysis`: that of these rows and settings, where it is at hand.
    """
    a = analyse(rows, settings) if analysis is None else analysis
    drop = a.estimates["drop"].mean
    measured = a.known.split.value_counts()
    return {
        "layer": a.layer,
        "expert": None if a.layer is None else expert_id(a.layer, a.expert),
        **{name: a.estimates[name].to_dict() for name in QUANTITIES},
        "recurrence": json_number(n_active(a.choice) / a.choice.n) if a.expert is not None else None,
        "funnel": dict(funnel),
        "settings": dict(settings),
        "verdict": a.verdict.label,
        "verdict_words": a.verdict.words,
        "cautions": a.verdict.cautions,
        "n_facts": {split: int(measured.get(split, 0)) for split in table.SPLITS},
        "missing": {name: found.n_missing for name, found in a.estimates.items()},
        "beside": {name: a.estimates[name].to_dict() for name in BESIDE},
        "restoration": {
            name: json_number(restoration(a.estimates[name].mean, drop))
            for name in ("layer_rescue", "expert_rescue", "clean_topk", "routing_union", "minimal_coalition")
        },
        "activity": _activity(a),
        "rank": {
            "first": int((a.ranks == 1).sum()),
            "of": int(a.ranks.notna().sum()),
            "mean": json_number(float(a.ranks.mean())),
        },
        "runner_up": a.runner_up
        and {"expert": expert_id(a.layer or 0, a.runner_up[0]), "difference": a.runner_up[1].to_dict()},
        "coalition": a.coalition
        and {
            "rule": a.coalition.rule,
            "size": a.coalition.size,
            "reached": a.coalition.reached,
            "share": a.coalition.share,
            "members": [
                {"expert": expert_id(a.layer or 0, int(row.expert)), "n": int(row.n), "of": int(row.of)}
                for row in named_rows(coalitions.members(a.rows, layer=a.layer or 0))
            ],
        },
        "joint_search": _joint(a),
        "stability": _agreement(a.grid),
        "held_out": _agreement(a.folds),
    }


def _activity(a: Analysis) -> dict[str, Any] | None:
    if a.choice is None or a.layer is None:
        return None
    experts = values.expert_table(a.rows, layer=a.layer)
    out: dict[str, Any] = {
        "needed": a.choice.needed,
        "best_recurrence": json_number(float(a.choice.experts.recurrence.max())),
    }
    for split in table.SPLITS:
        facts = values.of_split(a.rows, split).intersection(experts.measured)
        here = a.expert is not None and a.expert in experts.active
        out[split] = {"active": int(experts.active.loc[facts, a.expert].sum()) if here else 0, "of": len(facts)}
    return out


def _joint(a: Analysis) -> dict[str, Any]:
    found = a.joint
    return {
        "pairs": found.n_pairs,
        "candidates": found.n_candidates,
        "layers": len(found.layers),
        "expert": expert_id(*found.winner) if found.winner else None,
        "discovery": found.discovery and found.discovery.to_dict(),
        "validation": found.validation and found.validation.to_dict(),
        "specificity": found.specificity and found.specificity.to_dict(),
        "shrinkage": json_number(found.shrinkage),
        "same_as_two_stage": found.winner is not None and found.winner == (a.layer, a.expert),
    }


def _agreement(found: pd.DataFrame) -> dict[str, int] | None:
    """How many other selections find the same expert; None where nothing was selected."""
    return None if found.empty else {"same": int(found.same.sum()), "of": len(found)}
