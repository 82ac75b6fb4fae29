"""Rows and settings → everything that a study found, computed once: the summary, the tables and the figures show it.

Works on the rows of an unfinished study too: what is not there yet is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pandas as pd

from ..named_rows import named_rows
from ..results import expert_name
from ..stats import Estimate
from . import coalitions, joint, quantities, robustness, selection, values
from . import rows as table
from .coalitions import Coalition
from .joint import Joint
from .options import Options
from .selection import Choice
from .verdict import SPECIFIC_EXPERT, Evidence, Verdict, decide, interval


@dataclass(frozen=True)
class Analysis:
    """`known`: the facts by scan_index; `of_fact`: `quantities.of_validation`; `estimates`: of each of its columns;
    `ranks`: of the selected expert among the active ones of each validation fact where it is active.

    `runner_up`: the candidate that came second, and the selected expert's rescue minus its on validation (all-case);
    None where there is no second. `layer`, `choice`, `coalition` are None where nothing was measured that would give
    them.
    """

    rows: pd.DataFrame
    options: Options
    known: pd.DataFrame
    layer: int | None
    choice: Choice | None
    of_fact: pd.DataFrame
    estimates: dict[str, Estimate]
    coalition: Coalition | None
    joint: Joint
    ranks: pd.Series
    runner_up: tuple[int, Estimate] | None
    verdict: Verdict

    @property
    def expert(self) -> int | None:
        """The selected expert."""
        return None if self.choice is None else self.choice.expert

    @cached_property
    def grid(self) -> pd.DataFrame:
        """`robustness.stability_grid`; empty where nothing was selected from."""
        return self._fixed(robustness.stability_grid)

    @cached_property
    def folds(self) -> pd.DataFrame:
        """`robustness.held_out_relations`."""
        return self._fixed(robustness.held_out_relations)

    @cached_property
    def relations(self) -> pd.DataFrame:
        """`robustness.per_relation`."""
        return self._fixed(robustness.per_relation)

    @cached_property
    def noise(self) -> pd.DataFrame:
        """`robustness.noise_sensitivity`."""
        return self._fixed(robustness.noise_sensitivity)

    @cached_property
    def fresh(self) -> pd.DataFrame:
        """`robustness.fresh_draw`."""
        return self._fixed(robustness.fresh_draw)

    def _fixed(self, part: Callable[..., pd.DataFrame]) -> pd.DataFrame:
        """A part of the robustness checks, at the selected layer and expert."""
        if self.layer is None or self.choice is None:
            return pd.DataFrame()
        return part(self.rows, self.options, layer=self.layer, expert=self.expert)


def analyse(rows: pd.DataFrame, settings: Mapping[str, Any]) -> Analysis:
    """Everything that the rows of a study say under its settings. Deterministic."""
    options = Options.of(settings)
    # these columns are compared again and again; as categories a million rows take milliseconds
    rows = rows.astype({"stage": "category", "kind": "category"})
    known = values.facts(rows)
    layer = selection.best_layer(rows)
    choice = coalition = expert = None
    ranks, runner_up = pd.Series(dtype=float), None
    if layer is not None:
        found = selection.choose_expert(rows, layer=layer, recurrence=options.recurrence)
        choice, expert = (found, found.expert) if found.n else (None, None)
        coalition = coalitions.choose(rows, layer=layer, share=options.coalition_share)
    if expert is not None:
        experts = values.expert_table(rows, layer=layer)
        validation = values.of_split(rows, table.VALIDATION)
        ranks = selection.ranks(experts, validation, expert)
        others = found.experts[found.experts.candidate & (found.experts.expert != expert)]
        if len(others):
            second = int(others.expert.iloc[0])
            gap = (experts.rescue[expert] - experts.rescue[second])[validation]
            runner_up = (second, quantities.estimate(gap, known, options))
    of_fact = quantities.of_validation(rows, options, layer=layer, expert=expert)
    estimates = {str(name): quantities.estimate(of_fact[name], known, options) for name in of_fact}
    evidence = Evidence(
        layer=layer,
        expert=expert,
        n_active=n_active(choice),
        n_discovery=choice.n if choice else 0,
        needed=choice.needed if choice else 0,
        layer_rescue=estimates["layer_rescue"],
        drop=estimates["drop"].mean,
        expert_rescue=estimates["expert_rescue"],
        specificity=estimates["specificity"],
        gate_matched=estimates["gate_matched_specificity"],
        coalition_size=coalition.size if coalition else 0,
        coalition_rule=coalitions.RULE_NAMES[coalition.rule] if coalition else "",
        coalition_share=options.coalition_share,
        reached=bool(coalition and coalition.reached),
        minimal=estimates["minimal_coalition"],
        minimal_minus_target=estimates["minimal_minus_target"],
        minimal_minus_random=estimates["minimal_minus_random"],
        coalition_members=() if layer is None else _members(rows, layer),
    )
    searched = joint.search(rows, options)
    verdict = decide(evidence)
    more = _cautions(verdict.label, layer, expert, runner_up, searched)
    verdict = replace(verdict, cautions=verdict.cautions + more)
    return Analysis(
        rows, options, known, layer, choice, of_fact, estimates, coalition, searched, ranks, runner_up, verdict
    )


def n_active(choice: Choice | None) -> int:
    """In how many of the facts that it was chosen on the chosen expert is clean-active."""
    if choice is None or choice.expert is None:
        return 0
    return int(choice.experts.set_index("expert").n_active[choice.expert])


def _cautions(
    label: str, layer: int | None, expert: int | None, runner_up: tuple[int, Estimate] | None, searched: Joint
) -> list[str]:
    """What the verdict's intervals do not see: an equal beside the selected expert, a stronger one elsewhere."""
    out = []
    if label == SPECIFIC_EXPERT and runner_up is not None and not runner_up[1].above_zero:
        out.append(
            f"{expert_name(layer, runner_up[0])} does as much: {expert_name(layer, expert)} minus it is "
            f"{interval(runner_up[1])}. Specificity compares with the average active expert."
        )
    if searched.winner not in (None, (layer, expert)) and searched.validation.above_zero:
        out.append(
            f"The joint search over {searched.n_pairs} pairs finds {expert_name(*searched.winner)} instead: "
            f"{interval(searched.validation)} on validation."
        )
    return out


def _members(rows: pd.DataFrame, layer: int) -> tuple[tuple[int, int], ...]:
    """(expert, facts) of the minimal coalitions on validation, most frequent first."""
    return tuple((int(row.expert), int(row.n)) for row in named_rows(coalitions.members(rows, layer=layer)))


def json_number(value: float) -> float | None:
    """A number as JSON takes it: None where undefined."""
    return float(value) if math.isfinite(value) else None
