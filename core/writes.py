"""What one expert writes, over a set of facts: its mean contribution and its mean update as tokens that they promote
and suppress, and direct logit attribution fact by fact. The kind `expert_writes`.

Tables:

`vectors`, one row per mean: `what` (contribution: c of the clean runs; update: δ = c_clean − c_corrupt), `where` (all:
every position of the prompts; last_subject; last), `tokens` (over how many the mean is), `norm` (of the mean vector),
`mean_norm` (mean of the tokens' norms; the mean vector is as long as that only where all tokens' point the same way).
A mean runs over the tokens that the expert is routed at in the clean run; one of the update over those and all draws.

`tokens`, one row per mean and token of the vocabulary, the first 20 of each sense: `what`, `where`, `sense` (promoted,
suppressed), `rank` (from 1), `token_id`, `token`, `effect` (logits). Empty where the effects are missing.

`facts`, one row per fact: `fact` (its number in the request), `case_id`, `relation`, `subject`, `true_token`,
`foil_token`, `clean_contrast`, and of the last position: `clean_active`, `router_weight` (of the clean run),
`contribution_norm`, `direct` (direct part of c on the clean contrast), `update_norm`, `direct_update` (that of δ on the
corrupt contrast: the trace's `direct`; both are means over draws). Where the expert is not routed, 0.

Effects and direct parts are protocol.md's direct logit attribution: the vector times the residual multipliers behind
it, through the final norm with its scale frozen, logit scale and unembedding, a soft-cap linearised. The state whose
scale is frozen is the run's own at the last position: the clean run's for a contribution, the corrupt run's for an
update. An effect on a token is the mean over the set's facts (the first 1024; of the corrupt runs draw 0).

Values: `reference` (that, in words), `missing` (why there are no direct parts, or None), `left_out`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from .base import BaseLayer
from .budget import Budget
from .derived import DerivedRequest
from .direct import NO_FACTOR, NO_FROZEN_SCALE, contrast_directions, reach
from .expert_questions import read, trace_settings
from .fact_batches import in_batches, questions_of
from .fact_runs import Objects, runs_of
from .lens import vocabulary_effects
from .missing import Question
from .moe import MoeModel
from .one_layer import Slots, check_expert, contributed, in_pieces, look_at, slots_of
from .progress import SILENT, Progress
from .prompts import PreparedFact
from .results import expert_name

TOP = 20
MOST_STATES = 1024
CONTRIBUTION, UPDATE = "contribution", "update"
ALL, LAST_SUBJECT, LAST = "all", "last_subject", "last"
MEANS = (
    (CONTRIBUTION, ALL), (CONTRIBUTION, LAST_SUBJECT), (CONTRIBUTION, LAST), (UPDATE, LAST_SUBJECT), (UPDATE, LAST),
)  # fmt: skip
"""The mean vectors, as (`what`, `where`)."""
VECTORS = {"what": "object", "where": "object", "tokens": "int64", "norm": "float64", "mean_norm": "float64"}
TOKENS = {
    "what": "object", "where": "object", "sense": "object", "rank": "int64", "token_id": "int64", "token": "object",
    "effect": "float64",
}  # fmt: skip
FACTS = {
    "fact": "int64", "case_id": "int64", "relation": "object", "subject": "object", "true_token": "object",
    "foil_token": "object", "clean_contrast": "float64", "clean_active": "bool", "router_weight": "float64",
    "contribution_norm": "float64", "direct": "float64", "update_norm": "float64", "direct_update": "float64",
}  # fmt: skip
REFERENCE = (
    "the final norm's scale frozen at the state behind the last layer at the last position: of the clean runs for a "
    "contribution, of the corrupt runs for an update; effects on tokens are means over the facts"
)


def answer(
    model: MoeModel, request: DerivedRequest, *, store: Any = None, progress: Progress = SILENT
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The tables and values above. Settings: layer, expert, and those of a trace (noise, draws, seed, corruption,
    special_tokens, object_tokens, first_token)."""
    settings = read(request)
    layer, expert = settings["layer"], settings["expert"]
    check_expert(model, layer, expert)
    questions, left_out = questions_of(model, request, **trace_settings(settings))
    gathered = _Gathered(model, layer, expert)
    in_batches(
        model, questions, work=gathered.add, progress=progress, label=f"what {expert_name(layer, expert)} writes",
        tokens=lambda q: len(q.prepared.input_ids) * (1 + q.request.draws), rows=lambda q: 0,
    )  # fmt: skip
    progress.pause()
    tables, missing = gathered.tables()
    return tables, {
        "layer": layer, "expert": expert, "facts": len(questions), "left_out": left_out, "reference": REFERENCE,
        "missing": missing,
        "caption": [f"{expert_name(layer, expert)} over {len(questions)} facts", *([] if missing else [REFERENCE])],
    }  # fmt: skip


class _Sum:
    """A mean under way: of vectors, and of their norms."""

    def __init__(self, width: int) -> None:
        self.vector, self.norms, self.n = torch.zeros(width, dtype=torch.double), 0.0, 0

    def add(self, vectors: torch.Tensor) -> None:
        """Vectors [n, d]."""
        vectors = vectors.double()
        self.vector += vectors.sum(0).cpu()
        self.norms += float(vectors.norm(dim=-1).sum())
        self.n += len(vectors)

    def join(self, other: _Sum) -> None:
        self.vector, self.norms, self.n = self.vector + other.vector, self.norms + other.norms, self.n + other.n

    @property
    def mean(self) -> torch.Tensor:
        return self.vector / max(self.n, 1)

    @property
    def norms_of_mean(self) -> tuple[float, float]:
        """(norm of the mean, mean of the norms), missing where there is nothing to average."""
        return (float(self.mean.norm()), self.norms / self.n) if self.n else (np.nan, np.nan)


@dataclass(frozen=True)
class _Place:
    """One fact's runs in a batch: clean first, then each draw's corrupt one."""

    fact: PreparedFact
    runs: range

    @property
    def clean(self) -> int:
        return self.runs[0]

    @property
    def draws(self) -> slice:
        return slice(self.runs[1], self.runs.stop)

    def pos(self, where: str) -> int:
        return self.fact.subject_positions[-1] if where == LAST_SUBJECT else len(self.fact.input_ids) - 1

    def update(self, vectors: torch.Tensor) -> torch.Tensor:
        """c_clean − c_corrupt of each draw [draws, d], for what each run of the batch contributes [runs, d]."""
        return vectors[self.clean] - vectors[self.draws]


class _Look:
    """What a batch shows at the layer. `sums`: its means; for each of two positions, by run: `vectors` [runs, d] that
    the expert contributes there, router `weights` [runs], and the runs that are `routed` to it."""

    def __init__(self, places: Sequence[_Place], expert: int, width: int) -> None:
        self._places, self._expert = places, expert
        n = places[-1].runs.stop
        self.sums = {mean: _Sum(width) for mean in MEANS}
        self.vectors = {where: torch.zeros(n, width) for where in (LAST_SUBJECT, LAST)}
        self.weights = {where: torch.zeros(n) for where in (LAST_SUBJECT, LAST)}
        self.routed: dict[str, set[int]] = {}

    def __call__(self, base: BaseLayer) -> None:
        """Look at the layer (see `core.one_layer.look_at`)."""
        everywhere = slots_of(base, [place.clean for place in self._places], self._expert)
        in_pieces(base, everywhere, lambda some: self.sums[CONTRIBUTION, ALL].add(self._contributed(base, some)))
        for where in (LAST_SUBJECT, LAST):
            self._look_at_one(base, where)

    def _contributed(self, base: BaseLayer, slots: Slots) -> torch.Tensor:
        return contributed(base, slots, self._expert)

    def _look_at_one(self, base: BaseLayer, where: str) -> None:
        """One position of every run."""
        wanted = {run: place.pos(where) for place in self._places for run in place.runs}
        slots = slots_of(base, list(wanted), self._expert)
        at = torch.zeros(max(wanted) + 1, dtype=torch.long)
        at[list(wanted)] = torch.tensor(list(wanted.values()))
        slots = slots[slots.pos == at.to(slots.pos.device)[slots.run]]
        self.routed[where] = set(slots.run.tolist())

        def note(some: Slots) -> None:
            found, run = self._contributed(base, some).cpu(), some.run.cpu()
            self.vectors[where].index_add_(0, run, found)
            self.weights[where].index_add_(0, run, some.weight.float().cpu())

        in_pieces(base, slots, note)
        active = [place for place in self._places if place.clean in self.routed[where]]
        if active:
            self.sums[CONTRIBUTION, where].add(self.vectors[where][[place.clean for place in active]])
            self.sums[UPDATE, where].add(torch.cat([place.update(self.vectors[where]) for place in active]))


class _Gathered:
    """Everything that the batches have shown so far."""

    def __init__(self, model: MoeModel, layer: int, expert: int) -> None:
        self._model, self._layer, self._expert = model, layer, expert
        self._factor = reach(model.structure, model.n_layers)[layer]
        self._frozen = True
        pieces = model.vocabulary if model.tokenizer is None else len(model.tokenizer)
        self._known = min(model.vocabulary, pieces)  # some pad their tables
        self._sums = {mean: _Sum(model.hidden) for mean in MEANS}
        self._states: dict[str, list[torch.Tensor]] = {CONTRIBUTION: [], UPDATE: []}
        self._rows: list[tuple] = []

    def add(self, batch: list[tuple[int, Question]], budget: Budget, progress: Progress) -> None:
        """Look at a batch of facts."""
        model, runs, places = self._model, [], []
        for _, question in batch:
            mine = runs_of(model, question.request, question.prepared)[0]
            places.append(_Place(question.prepared, range(len(runs), len(runs) + len(mine))))
            runs += mine
        objects = Objects(model, [(place.fact, place.runs) for place in places])
        look = _Look(places, self._expert, model.hidden)
        outcome = look_at(model, runs, self._layer, look, room=budget.chunk_tokens, objects=objects, progress=progress)
        assert outcome is not None
        along = self._along(look, places, outcome.final, objects.ids)
        rows = [
            self._row(number, fact, place, look, outcome.runs, along)
            for (number, _), fact, place in zip(batch, objects.facts, places, strict=True)
        ]
        self._rows += rows
        self._frozen &= self._factor is None or bool(along.isfinite().all())
        for mean, total in look.sums.items():
            self._sums[mean].join(total)
        for (number, _), place in zip(batch, places, strict=True):
            if number < MOST_STATES:
                self._states[CONTRIBUTION].append(outcome.final[place.clean].cpu())
                self._states[UPDATE].append(outcome.final[place.draws.start].cpu())

    def _along(
        self, look: _Look, places: Sequence[_Place], finals: torch.Tensor, ids: Sequence[tuple[int, int]]
    ) -> torch.Tensor:
        """`core.direct.contrast_directions` of the runs that have something to attribute at the last position; for the
        others 0. [runs, d]"""
        routed = look.routed[LAST]
        wanted = sorted(routed | {run for place in places if place.clean in routed for run in place.runs})
        along = torch.zeros(finals.shape, dtype=torch.float32)
        along[wanted] = contrast_directions(self._model, finals[wanted], [ids[run] for run in wanted], self._factor)
        return along if self._factor is not None else along.fill_(torch.nan)

    @staticmethod
    def _row(
        number: int, fact: PreparedFact, place: _Place, look: _Look, logits: torch.Tensor, along: torch.Tensor
    ) -> tuple:
        """One row of the table `facts`."""
        vectors, clean = look.vectors[LAST], place.clean
        delta = place.update(vectors)
        true, foil = logits[clean].double().tolist()
        return (
            number, fact.fact.case_id, fact.fact.relation, fact.fact.subject, fact.true_token, fact.foil_token,
            true - foil, clean in look.routed[LAST], float(look.weights[LAST][clean]), float(vectors[clean].norm()),
            float(vectors[clean] @ along[clean]), float(delta.norm(dim=-1).mean()),
            float((delta * along[place.draws]).sum(-1).mean()),
        )  # fmt: skip

    def tables(self) -> tuple[dict[str, pd.DataFrame], str | None]:
        """The three tables, and why effects and direct parts are missing if they are."""
        vectors = [(*mean, total.n, *total.norms_of_mean) for mean, total in self._sums.items()]
        missing = NO_FACTOR if self._factor is None else None if self._frozen else NO_FROZEN_SCALE
        tokens: list[tuple] = []
        for what in (CONTRIBUTION, UPDATE) if missing is None else ():
            some = [mean for mean in MEANS if mean[0] == what and self._sums[mean].n]
            means = torch.stack([self._sums[mean].mean for mean in some]).float() * self._factor if some else None
            if means is None:
                continue
            states = torch.stack(self._states[what]).to(self._model.device)
            for mean, effects in zip(some, vocabulary_effects(self._model, states, means), strict=True):
                tokens += self._tokens(mean, effects)
        rows = sorted(self._rows)
        return {
            "vectors": _table(vectors, VECTORS), "tokens": _table(tokens, TOKENS), "facts": _table(rows, FACTS)
        }, missing  # fmt: skip

    def _tokens(self, mean: tuple[str, str], effects: torch.Tensor) -> list[tuple]:
        """Rows of the table `tokens` of one mean vector, by its effect on every token [V]."""
        effects = effects[: self._known]
        if not bool(effects.isfinite().all()):
            return []
        rows = []
        for sense, sign in (("promoted", 1), ("suppressed", -1)):
            best = (sign * effects).topk(min(TOP, len(effects)))
            for rank, (value, token) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True), 1):
                rows.append((*mean, sense, rank, token, self._model.piece(token), sign * value))
        return rows


def _table(rows: Sequence[tuple], columns: dict[str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(columns)).astype(columns)
