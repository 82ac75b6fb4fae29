"""What a batch of a study measures: facts, noise draws and patches at the last position in, rows out; one sweep.

A batch depends on nothing but its items and the plan's sizes, so that the same batch gives the same numbers wherever
and whenever it runs. Knows runs and patches; nothing of splits, selection or the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from ..base import BaseLayer, Run
from ..corruption import draw_noise
from ..moe import MoeModel
from ..patches import ROUTING_UNION, Patch, Step, Updates, expert_patch, layer_patch
from ..progress import SILENT, Progress
from ..prompts import PreparedFact
from ..structure import Structure
from ..sweep import listed, sweep
from . import rows as table
from .data import MEASURED_COLUMNS as COLUMNS


@dataclass(frozen=True)
class Draws:
    """Noise draws that belong together: their stage (`core.study.rows`), noise level, seed (+ case id) and number."""

    stage: str
    noise: float
    seed: int
    n: int


@dataclass(frozen=True)
class Want:
    """One patch at `layer`. Layer patch: neither `expert` nor `experts`; `expert`: that one's update (with
    `equal_norm_with`, both scaled to the smaller norm); `experts`: a coalition, or None in it for the routing union."""

    kind: str
    layer: int
    expert: int | None = None
    experts: tuple[int, ...] | None = None
    equal_norm_with: int | None = None


@dataclass(frozen=True)
class Item:
    """One fact, one set of draws, and what to patch in each: layer patches at `layers`, every clean-active expert at
    `experts_of`, and single patches. `index`: the fact's `scan_index`."""

    index: int
    fact: PreparedFact
    draws: Draws
    layers: tuple[int, ...] = ()
    experts_of: tuple[int, ...] = ()
    wants: tuple[Want, ...] = ()


@dataclass(frozen=True)
class Contrasts:
    """Of one fact: the clean contrast and that of each draw's corrupt run, in logits."""

    clean: float
    corrupt: tuple[float, ...]

    @property
    def drop(self) -> float:
        """Clean minus corrupt contrast, mean over the draws."""
        return self.clean - float(np.mean(self.corrupt))


def contrasts(
    model: MoeModel,
    structure: Structure,
    facts: Sequence[PreparedFact],
    draws: Draws,
    *,
    chunk_tokens: int,
    progress: Progress = SILENT,
) -> list[Contrasts]:
    """Clean and corrupt contrasts of many facts, without any patch: what the filters of the funnel need."""
    runs = _Runs(model)
    ends = [runs.ends(i, fact, draws) for i, fact in enumerate(facts)]
    outcome = sweep(
        model, structure, runs.runs, listed(()), objects=runs.objects, chunk_tokens=chunk_tokens, keep=False,
        progress=progress,
    )  # fmt: skip
    both = outcome.runs.double().numpy()
    values = both[:, 0] - both[:, 1]
    return [Contrasts(float(values[clean]), tuple(float(values[c]) for c in corrupt)) for clean, corrupt in ends]


def measure(
    model: MoeModel,
    structure: Structure,
    items: Sequence[Item],
    *,
    chunk_tokens: int,
    progress: Progress = SILENT,
) -> pd.DataFrame:
    """The rows of all items (`data.MEASURED_COLUMNS`), from one sweep; the items of a fact share a clean run."""
    runs = _Runs(model)
    collector = _Collector(model, [(item, *runs.ends(item.index, item.fact, item.draws)) for item in items])
    outcome = sweep(
        model, structure, runs.runs, collector.plan, objects=runs.objects, chunk_tokens=chunk_tokens, keep=False,
        progress=progress,
    )  # fmt: skip
    return collector.frame(_contrast(outcome.patched.double().numpy()), _contrast(outcome.runs.double().numpy()))


def _contrast(logits: np.ndarray) -> np.ndarray:
    return logits[:, 0] - logits[:, 1]


@dataclass
class _Runs:
    """The unpatched runs of a sweep and the ids of their objects; the clean run of a fact is there once."""

    model: MoeModel
    runs: list[Run] = field(default_factory=list)
    objects: list[tuple[int, int]] = field(default_factory=list)
    clean: dict[int, int] = field(default_factory=dict)

    def ends(self, index: int, fact: PreparedFact, draws: Draws) -> tuple[int, list[int]]:
        """Run numbers of a fact's clean run and of the corrupt run of each draw."""
        if index not in self.clean:
            self.clean[index] = self._add(fact, Run(fact.input_ids))
        noise = draw_noise(
            seed=draws.seed, case_id=fact.fact.case_id, draws=draws.n, n_subject=len(fact.subject_positions),
            hidden=self.model.hidden, sigma=draws.noise * self.model.embedding_std,
        )  # fmt: skip
        return self.clean[index], [self._add(fact, Run(fact.input_ids, one, fact.subject_positions)) for one in noise]

    def _add(self, fact: PreparedFact, run: Run) -> int:
        assert fact.foil_id is not None
        self.runs.append(run)
        self.objects.append((fact.true_id, fact.foil_id))
        return len(self.runs) - 1


class _Collector:
    """Turns items into patches layer by layer, and the patches' contrasts into rows."""

    def __init__(self, model: MoeModel, items: Sequence[tuple[Item, int, list[int]]]) -> None:
        self._model, self._items = model, items
        self._rows: list[tuple] = []
        self._numbers: dict[Patch, int] = {}
        self._wants: list[dict[int, list[Want]]] = []
        for item, _, _ in items:
            by_layer: dict[int, list[Want]] = {}
            for want in item.wants:
                by_layer.setdefault(want.layer, []).append(want)
            self._wants.append(by_layer)

    def plan(self, base: BaseLayer) -> list[Patch]:
        """The patches of all items at one layer, each once (see `core.sweep.Plan`)."""
        layer = base.layer
        if layer not in self._model.blocks:
            return []
        before = len(self._numbers)
        for (item, clean, corrupts), wants in zip(self._items, self._wants, strict=True):
            if not (layer in item.layers or layer in item.experts_of or layer in wants):
                continue
            pos = len(item.fact.input_ids) - 1
            routed = base.routed(clean, pos)
            for draw, corrupt in enumerate(corrupts):
                asked = [Want(table.LAYER, layer)] if layer in item.layers else []
                if layer in item.experts_of:
                    asked += [Want(table.EXPERT, layer, expert) for expert in sorted(routed)]
                for want in (*asked, *wants.get(layer, ())):
                    self._add(item, draw, want, base, (clean, corrupt), pos, routed)
        return list(self._numbers)[before:]

    def _add(
        self, item: Item, draw: int, want: Want, base: BaseLayer, ends: tuple[int, int], pos: int, routed: dict
    ) -> None:
        clean, corrupt = ends
        place = {"clean": clean, "corrupt": corrupt, "layer": want.layer, "pos": pos}
        experts = want.experts
        if want.kind == table.ROUTING_UNION:
            experts = tuple(sorted(routed.keys() | base.routed(corrupt, pos).keys()))
            patch = _updates((ROUTING_UNION,), **place)
        elif experts is not None:
            patch = _updates(experts, **place)
        elif want.equal_norm_with is not None:
            patch = _updates((want.expert,), equal_norm_with=(want.equal_norm_with,), **place)
        elif want.expert is not None:
            patch = expert_patch(expert=want.expert, **place)
        else:
            patch = layer_patch(**place)
        number = self._numbers.setdefault(patch, len(self._numbers))
        one = want.expert
        self._rows.append((
            item.index, draw, item.draws.noise, item.draws.stage, want.kind, want.layer, pos,
            pd.NA if one is None else one, None if experts is None else table.members(experts),
            pd.NA if one is None else one in routed, np.nan if one is None else routed.get(one, 0.0),
            clean, corrupt, number,
        ))  # fmt: skip

    def frame(self, patched: np.ndarray, runs: np.ndarray) -> pd.DataFrame:
        """All rows. `patched`, `runs`: contrasts of the patches and of the unpatched runs."""
        frame = pd.DataFrame(self._rows, columns=[*COLUMNS[:-3], "clean", "corrupt", "patch"])
        frame = frame.astype({name: table.COLUMNS[name] for name in COLUMNS[:-3]})
        frame["clean_contrast"], frame["corrupt_contrast"] = runs[frame.clean], runs[frame.corrupt]
        frame["rescue"] = patched[frame.patch] - runs[frame.corrupt]
        return frame[COLUMNS]


def _updates(
    experts: tuple[int | str, ...],
    *,
    clean: int,
    corrupt: int,
    layer: int,
    pos: int,
    equal_norm_with: tuple[int, ...] = (),
) -> Patch:
    """y[l,t] := y_corrupt[l,t] + Σ δ (protocol.md, "coalition patch", "equal-norm pair")."""
    return Patch(corrupt, (Step("moe", layer, (pos,), "add", Updates(experts, clean, corrupt, equal_norm_with)),))
