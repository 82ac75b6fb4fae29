"""What each stage of a study measures: the items of every fact, from the settings and the rows so far.

The stages follow protocol.md, "The study", 3 to 9. Knows facts and selection; runs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from ..moe import MoeModel
from ..named_rows import named_rows
from ..prompts import PreparedFact
from ..requests import Fact
from . import coalitions, controls, data, selection, values
from . import rows as table
from .measure import Draws, Item, Want
from .plan import Plan, cost_of
from .scan import splits
from .settings import StudySettings

Groups = list[list[Item]]
"""The items of one fact each."""


@dataclass(frozen=True)
class Work:
    """The kept facts of a study, in their order, and how the model's tokenizer sees them."""

    model: MoeModel
    settings: StudySettings
    plan: Plan
    kept: Sequence[Fact]
    facts: Sequence[PreparedFact]

    def draws(self, stage: str = table.MAIN, noise: float | None = None, seed: int | None = None) -> Draws:
        """The study's draws, or those of another stage."""
        settings = self.settings
        level = settings.noise if noise is None else noise
        return Draws(stage, level, settings.seed if seed is None else seed, settings.draws)

    def survey(self) -> Groups:
        """Every layer's patch on every fact, and with the joint search every clean-active expert of every layer."""
        layers = tuple(self.model.moe_layers)
        experts = layers if self.settings.joint_search else ()
        return [[Item(i, fact, self.draws(), layers, experts)] for i, fact in enumerate(self.facts)]

    def experts(self, layer: int) -> Groups:
        """Every clean-active expert of one layer on every fact."""
        return [[Item(i, fact, self.draws(), experts_of=(layer,))] for i, fact in enumerate(self.facts)]

    def coalitions(self, rows: pd.DataFrame, layer: int) -> Groups:
        """On the discovery facts: the coalitions from which rule and size are chosen."""
        groups: dict[int, list[Want]] = {}
        for row in named_rows(coalitions.search_plan(rows, layer=layer)):
            want = Want(table.MINIMAL, layer, experts=coalitions.parse(row.experts))
            groups.setdefault(int(row.scan_index), []).append(want)
        draws = self.draws(table.COALITION_SEARCH)
        return [[Item(i, self.facts[i], draws, wants=tuple(wants))] for i, wants in sorted(groups.items())]

    def validation(self, rows: pd.DataFrame, layer: int) -> Groups:
        """On the validation facts, at the selected layer: coalitions and the equal-norm pair; the fresh draw; the other
        noise levels."""
        expert = selection.choose_expert(rows, layer=layer, recurrence=self.settings.recurrence).expert
        patched = values.expert_table(rows, layer=layer)
        chosen = coalitions.choose(rows, layer=layer, share=self.settings.coalition_share)
        wanted: dict[int, list[Want]] = {}
        if chosen is not None:
            n_random = self.settings.random_coalitions
            for row in named_rows(coalitions.plan(rows, chosen, layer=layer, n_random=n_random)):
                want = Want(row.kind, layer, experts=coalitions.parse(row.experts))
                wanted.setdefault(int(row.scan_index), []).append(want)
        groups = []
        for i in values.of_split(rows, table.VALIDATION).astype(int):
            active = set(patched.active_of.get(i, ()))
            wants = [*wanted.get(i, ()), Want(table.ROUTING_UNION, layer)]
            one = None
            if expert is not None and expert in active:
                one = Want(table.EXPERT, layer, expert)
                weights = {e: float(patched.weight.at[i, e]) for e in sorted(active)}
                matched = controls.gate_matched(weights, expert)
                if matched is not None:
                    wants.append(Want(table.EQUAL_NORM_SELECTED, layer, expert, equal_norm_with=matched))
                    wants.append(Want(table.EQUAL_NORM_CONTROL, layer, matched, equal_norm_with=expert))
            groups.append(self._on_validation(i, layer, tuple(wants), one))
        return groups

    def _on_validation(self, i: int, layer: int, wants: tuple[Want, ...], one: Want | None) -> list[Item]:
        settings, fact = self.settings, self.facts[i]
        items = [Item(i, fact, self.draws(), wants=wants)]
        if settings.fresh_draw:
            fresh = self.draws(table.FRESH_DRAW, seed=self.plan.fresh_seed)
            items.append(Item(i, fact, fresh, layers=(layer,), experts_of=(layer,)))
        for level in self._levels():
            other = self.draws(table.noise_stage(level), noise=level)
            items.append(Item(i, fact, other, layers=(layer,), wants=() if one is None else (one,)))
        return items

    def _levels(self) -> list[float]:
        """Noise levels other than the study's own."""
        return [level for level in self.settings.noise_levels if level != self.settings.noise]

    def estimates(self) -> dict[str, float]:
        """About what each stage costs (tokens × layers), before it is known what it measures."""
        half = splits(self.kept, self.settings)
        ends = [cost_of(self.model, Item(i, fact, self.draws())) for i, fact in enumerate(self.facts)]
        discovery = sum(cost for cost, where in zip(ends, half, strict=True) if where == table.DISCOVERY)
        sets = 1 + self.settings.fresh_draw + len(self._levels())
        out = {
            data.SURVEY: sum(cost_of(self.model, item) for group in self.survey() for item in group),
            data.COALITIONS: discovery,
            data.VALIDATION: (sum(ends) - discovery) * sets,
        }
        if not self.settings.joint_search:
            out[data.EXPERTS] = sum(ends)
        return out
