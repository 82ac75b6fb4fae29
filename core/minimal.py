"""The minimal set: which few expert updates, added together in the corrupt run, restore a fact; found greedily.

Candidates are the clean-active experts (layer, pos, expert) of a layer, of a position, of one cell or of the whole
model; the shared expert is none. Every step runs the set so far with each remaining candidate, in one sweep, and keeps
the best. Knows sweeps and their budget, no files and no pages.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from .asking import prepare_for
from .base import Run
from .budget import Budget
from .errors import InputError
from .fact_runs import runs_of, with_best_foil
from .moe import MoeModel
from .parts import sweep_in_parts
from .patches import Patch, Step, Updates
from .progress import SILENT, Progress, Share
from .prompts import PreparedFact
from .provenance import provenance_of
from .requests import TraceRequest
from .results import MIN_DROP, Provenance, expert_name
from .sweep import listed, sweep

MAX_STEPS = 16
LIMIT = 64
"""Beyond so many candidates only those with the largest single rescue are tried."""
TIE = 1e-5
"""Mean rescues (logits) that differ by no more count as equal (for the choice of `LIMIT`: rounded to this), so that
rounding does not choose."""

CURVE_COLUMNS = [
    "case_id", "size", "layer", "pos", "token", "expert", "name", "contrast", "rescue", "rescue_sd", "restoration",
    "random_rescue", "random_restoration", "random_sd", "random_min", "random_max", "random_sets",
]  # fmt: skip
"""Columns of `MinimalResult.curve`: one row per step, with the expert that joined. `contrast`, `rescue`,
`restoration`: of the set so far, means over draws (restoration: mean rescue ÷ mean drop); `rescue_sd`: over draws,
missing for one. `random_*`: of `random_sets` random sets of the same size (`random_sd`, `random_min`, `random_max`:
over the sets' restorations)."""

CANDIDATE_COLUMNS = ["case_id", "layer", "pos", "token", "expert", "name", "rescue", "restoration", "considered"]
"""Columns of `MinimalResult.candidates`: every candidate with the rescue of its update alone, mean over draws."""


class Candidate(NamedTuple):
    """One expert at one place; candidates are ordered by layer, then position, then expert."""

    layer: int
    pos: int
    expert: int


@dataclass(frozen=True)
class MinimalResult:
    """The answer for one fact. `scope`: what was searched, in words; `drop`: mean over draws; `reached`: whether the
    set restores `target`; `notes`: sentences that belong beside the figures."""

    request: TraceRequest
    provenance: Provenance
    scope: str
    target: float
    drop: float
    reached: bool
    curve: pd.DataFrame
    candidates: pd.DataFrame
    notes: tuple[str, ...] = ()

    @property
    def frame(self) -> pd.DataFrame:
        """The curve with what was asked, for export: columns `scope`, `target` and `reached` added."""
        return self.curve.assign(scope=self.scope, target=self.target, reached=self.reached)


@dataclass(frozen=True)
class Search:
    """What to search and how far. `layer`, `pos`: None for all; `pos` may be `last`, `last_subject` or a token index.
    `random_sets`: per size; `limit`: most candidates tried at each step."""

    layer: int | None = None
    pos: int | str | None = None
    target: float = 0.8
    max_steps: int = MAX_STEPS
    random_sets: int = 20
    limit: int = LIMIT

    def __post_init__(self) -> None:
        if not (0 < self.target <= 100):  # a NaN is not
            raise InputError(
                f"The target is {self.target}.", "Give the restoration to reach, such as 0.8.", field="target"
            )
        for name, least in (("max_steps", 1), ("random_sets", 0), ("limit", 1)):
            value = getattr(self, name)
            if not least <= value <= 1000:
                raise InputError(f"{name} is {value}.", f"Give a whole number from {least} to 1000.", field=name)

    def check(self, model: MoeModel, fact: PreparedFact) -> None:
        """Raise `InputError` where there can be no candidate."""
        if self.layer is not None and self.layer not in model.moe_layers:
            listed_ = f"MoE layers are {', '.join(map(str, model.moe_layers))}"
            raise InputError(f"Layer {self.layer} has no experts.", f"The {listed_}.", field="layer")
        pos, last = self.position(fact), len(fact.input_ids) - 1
        if pos is None:
            return
        if not 0 <= pos <= last:
            raise InputError(f"There is no position {pos}.", f"The prompt has positions 0 to {last}.", field="pos")
        if pos < fact.subject_positions[0]:
            raise InputError(
                f"Position {pos} lies left of the subject, where both runs are the same.",
                f"Choose one from {fact.subject_positions[0]} to {last}.",
                field="pos",
            )
        if self.layer is not None and model.structure.first_to_matter(self.layer, 0, last + 1) > pos:
            raise InputError(
                f"In the last layer nothing at position {pos} reaches the last position.",
                f"Choose position {last}, or a lower layer.",
                field="pos",
            )

    def position(self, fact: PreparedFact) -> int | None:
        """The token index that is meant, None for all."""
        if self.pos == "last":
            return len(fact.input_ids) - 1
        return fact.subject_positions[-1] if self.pos == "last_subject" else self.pos  # type: ignore[return-value]


def minimal_many(
    model: MoeModel, requests: Sequence[TraceRequest], search: Search, *, progress: Progress = SILENT
) -> list[MinimalResult]:
    """A minimal set for every request's fact, in the order of the requests. Raises `InputError` for wrong input."""
    facts = [prepare_for(model, request) for request in requests]
    for fact in facts:
        search.check(model, fact)
    n = len(requests)
    return [
        minimal_set(model, request, fact, search, progress=Share(progress, i, 1, n))
        for i, (request, fact) in enumerate(zip(requests, facts, strict=True))
    ]


def minimal_set(
    model: MoeModel, request: TraceRequest, fact: PreparedFact, search: Search, *, progress: Progress = SILENT
) -> MinimalResult:
    """The minimal set of one fact that is token ids already.

    Each step adds the candidate that makes the mean rescue over draws largest; of equal ones (see `TIE`) the first by
    layer, position, expert. Random sets are drawn from all candidates by `random.Random(seed + case_id)`, sizes
    ascending.
    """
    search.check(model, fact)
    trial = _Trial(model, request, fact, Share(progress, 0, 1, search.max_steps + 3, "unpatched runs"))
    found = trial.candidates(search)
    singles = trial.rescues([(c,) for c in found], Share(progress, 1, 1, search.max_steps + 3, "single experts"))
    ranked = sorted(range(len(found)), key=lambda i: (-round(singles[i].mean() / TIE), found[i]))
    considered = sorted(found[i] for i in ranked[: search.limit])
    steps = trial.greedy(considered, dict(zip(found, singles, strict=True)), search, progress)
    rng = random.Random(request.seed + request.fact.case_id)
    sets = [tuple(sorted(rng.sample(found, n + 1))) for n in range(len(steps)) for _ in range(search.random_sets)]
    drawn = trial.rescues(sets, Share(progress, search.max_steps + 2, 1, search.max_steps + 3, "random sets"))
    drawn = drawn.mean(1).reshape(len(steps), search.random_sets)
    curve = trial.curve(steps, drawn)
    notes = []
    if len(considered) < len(found):
        most = f"the {search.limit} with the largest single rescue"
        notes.append(f"Of {len(found)} clean-active experts {most} are tried.")
    if trial.drop < MIN_DROP:
        notes.append(f"The drop is below {MIN_DROP:g}: there is nothing to restore.")
    return MinimalResult(
        request=request,
        provenance=provenance_of(model, trial.fact, trial.sigma),
        scope=_scope(search, trial.fact),
        target=search.target,
        drop=trial.drop,
        reached=bool(len(curve) and curve.restoration.iloc[-1] >= search.target),
        curve=curve,
        candidates=trial.single_table(found, singles, set(considered)),
        notes=tuple(notes),
    )


class _Trial:
    """One fact's runs, computed once, and any sets of candidates tried on all its draws."""

    def __init__(self, model: MoeModel, request: TraceRequest, fact: PreparedFact, progress: Progress) -> None:
        self.model, self.request = model, request
        self._budget = Budget.measure(model)
        runs, self.sigma = runs_of(model, request, fact)
        self._runs: list[Run] = []
        outcome = sweep(
            model, model.structure, runs, listed(()), objects=[(fact.true_id, fact.foil_id or 0)] * len(runs),
            chunk_tokens=self._budget.chunk_tokens, progress=progress,
        )  # fmt: skip
        for i, run in enumerate(runs):
            self._runs.append(dataclasses.replace(run, known=outcome.activations[i]))
        logits = outcome.runs
        if fact.foil_id is None:
            fact = with_best_foil(model, fact, outcome.final[:1])
            logits = self._logits_of_runs(fact)
        self.fact = fact
        contrast = (logits[:, 0] - logits[:, 1]).double().numpy()
        self._corrupt = contrast[1:]  # [draws]
        self.drop = float(contrast[0] - self._corrupt.mean())

    def _logits_of_runs(self, fact: PreparedFact):  # noqa: ANN202 - a tensor [runs, 2]
        objects = [(fact.true_id, fact.foil_id)] * len(self._runs)
        chunk = self._budget.chunk_tokens
        return sweep(
            self.model, self.model.structure, self._runs, listed(()), objects=objects, chunk_tokens=chunk, keep=False
        ).runs

    def candidates(self, search: Search) -> list[Candidate]:
        """All clean-active experts of the scope that can matter, in order."""
        known, last = self._runs[0].known, len(self.fact.input_ids) - 1
        assert known is not None
        pos = search.position(self.fact)
        found = set()
        for at, layer in enumerate(self.model.moe_layers):
            if search.layer not in (None, layer):
                continue
            first = self.model.structure.first_to_matter(layer, self.fact.subject_positions[0], last + 1)
            for t in range(first, last + 1):
                if pos in (None, t):
                    routed = known.index[at, t].tolist()
                    found |= {Candidate(layer, t, e) for e in routed if e < self.model.n_experts}
        return sorted(found)

    def rescues(self, sets: Sequence[tuple[Candidate, ...]], progress: Progress) -> np.ndarray:
        """Rescue of each set on each draw, [sets, draws], logits. One sweep, or as many as the memory needs."""
        draws = len(self._corrupt)
        out = np.zeros((len(sets), draws))
        length = len(self.fact.input_ids)
        item = self.model.hidden * self.model.dtype.itemsize * draws
        sizes = [(length - min(c.pos for c in some)) * item for some in sets]
        batches = list(self._budget.batches(sizes))
        for i, batch in enumerate(batches):
            progress.pause()
            patches = {(b, j): _patch(sets[b], corrupt=j + 1) for b in batch for j in range(draws)}
            outcome = sweep_in_parts(
                self.model, self._runs, list(dict.fromkeys(patches.values())),
                objects=[(self.fact.true_id, self.fact.foil_id)] * len(self._runs),  # type: ignore[list-item]
                chunk_tokens=self._budget.chunk_tokens, keep=False, progress=Share(progress, i, 1, len(batches)),
            )  # fmt: skip
            contrast = (outcome.patched[:, 0] - outcome.patched[:, 1]).double().tolist()
            by_patch = dict(zip(outcome.patches, contrast, strict=True))
            for (b, j), patch in patches.items():
                out[b, j] = by_patch[patch] - self._corrupt[j]
        return out

    def greedy(
        self, candidates: list[Candidate], singles: dict[Candidate, np.ndarray], search: Search, progress: Progress
    ) -> list[tuple[Candidate, np.ndarray]]:
        """[(who joined, rescue of the set so far on each draw)], until the target, the last step or candidate."""
        chosen: list[Candidate] = []
        steps: list[tuple[Candidate, np.ndarray]] = []
        while self.drop >= MIN_DROP and len(steps) < search.max_steps and len(chosen) < len(candidates):
            left = [c for c in candidates if c not in chosen]
            if chosen:
                share = Share(progress, 1 + len(steps), 1, search.max_steps + 3, f"step {len(steps) + 1}")
                tried = self.rescues([tuple(sorted([*chosen, c])) for c in left], share)
            else:
                tried = np.stack([singles[c] for c in left])
            means = tried.mean(1)
            best = int(np.argmax(means >= means.max() - TIE))  # the first of the equal ones
            chosen.append(left[best])
            steps.append((left[best], tried[best]))
            if means[best] / self.drop >= search.target:
                break
        return steps

    # ---- tables

    def _restored(self, rescue: np.ndarray | float) -> np.ndarray:
        return np.asarray(rescue) / (self.drop if self.drop >= MIN_DROP else np.nan)

    def _who(self, candidates: Sequence[Candidate]) -> dict[str, object]:
        return {
            "case_id": self.request.fact.case_id,
            "layer": [c.layer for c in candidates],
            "pos": [c.pos for c in candidates],
            "token": [self.fact.tokens[c.pos] for c in candidates],
            "expert": [c.expert for c in candidates],
            "name": [expert_name(c.layer, c.expert) for c in candidates],
        }

    def curve(self, steps: list[tuple[Candidate, np.ndarray]], drawn: np.ndarray) -> pd.DataFrame:
        """The curve. `drawn` [steps, sets]: mean rescues of the random sets."""
        rescue = np.array([values.mean() for _, values in steps])
        several = len(self._corrupt) > 1
        sets = self._restored(drawn)
        rows = {
            **self._who([c for c, _ in steps]),
            "size": np.arange(1, len(steps) + 1),
            "contrast": rescue + self._corrupt.mean(),
            "rescue": rescue,
            "rescue_sd": [values.std(ddof=1) if several else np.nan for _, values in steps],
            "restoration": self._restored(rescue),
            "random_sets": drawn.shape[1],
        }
        over_sets = {"random_rescue": drawn.mean, "random_restoration": sets.mean, "random_min": sets.min,
                     "random_max": sets.max}  # fmt: skip
        for name, over in over_sets.items():
            rows[name] = over(axis=1) if drawn.size else np.full(len(steps), np.nan)
        rows["random_sd"] = sets.std(1, ddof=1) if drawn.shape[1] > 1 else np.full(len(steps), np.nan)
        return pd.DataFrame(rows)[CURVE_COLUMNS]

    def single_table(self, found: list[Candidate], singles: np.ndarray, considered: set[Candidate]) -> pd.DataFrame:
        """Every candidate, largest single rescue first."""
        mean = singles.mean(1) if len(found) else np.zeros(0)
        rows = {**self._who(found), "rescue": mean, "restoration": self._restored(mean)}
        rows["considered"] = [c in considered for c in found]
        table = pd.DataFrame(rows)[CANDIDATE_COLUMNS]
        return table.sort_values("rescue", ascending=False, kind="stable", ignore_index=True)


def _patch(members: Sequence[Candidate], *, corrupt: int) -> Patch:
    """The updates of all members, added in the corrupt run `corrupt` (the clean run is run 0)."""
    places: dict[tuple[int, int], list[int]] = {}
    for layer, pos, expert in sorted(members):
        places.setdefault((layer, pos), []).append(expert)
    steps = [
        Step("moe", layer, (pos,), "add", Updates(tuple(experts), 0, corrupt))
        for (layer, pos), experts in places.items()
    ]
    return Patch(corrupt, tuple(steps))


def _scope(search: Search, fact: PreparedFact) -> str:
    pos = search.position(fact)
    layer = "every layer" if search.layer is None else f"layer {search.layer}"
    where = "every position" if pos is None else f"position {pos} ({fact.tokens[pos]!r})"
    return "the whole model" if pos is None and search.layer is None else f"{layer}, {where}"
