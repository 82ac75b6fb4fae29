"""What the store does not hold yet: which runs and patches a set of questions still needs, and computing them.

Several facts and draws share a sweep; batches are cut to the memory that is free. Knows keys and row sets, not how
answers are shown.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch

from .activations import Activations
from .answers import ENDS, LAYER, experts_part, parts_of
from .base import BaseLayer, Run
from .budget import Budget
from .direct import DirectParts
from .errors import OutOfMemory
from .fact_runs import runs_of, with_best_foil
from .head import all_logits
from .moe import MoeModel
from .patches import SHARED, Patch, expert_patch, layer_patch
from .progress import Progress, Share
from .prompts import PreparedFact
from .requests import TraceRequest, digest
from .room import give_back, ran_out
from .sweep import sweep

TOP = 20  # next tokens kept per run
_ROW_COLUMNS = [
    "kind", "layer", "pos", "expert", "clean_active", "router_weight_clean", "router_weight_corrupt", "direct",
]  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A request and its fact as token ids."""

    request: TraceRequest
    prepared: PreparedFact


@dataclass
class Answer:
    """The parts of one answer. `tables[j]`: {part: row set} of draw j; `runs`, `run_*` and `ranks`: clean run first,
    then each corrupt one. `known`: activations at hand, by run. `fresh_runs`, `fresh_rows` (draw, part): what the store
    lacks."""

    question: Question
    sigma: float
    runs: list[Run]
    run_keys: list[str]
    tables: list[dict[str, pd.DataFrame]] = field(default_factory=list)
    run_infos: list[dict[str, Any]] = field(default_factory=list)
    routings: list[pd.DataFrame] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    known: dict[int, Activations] = field(default_factory=dict)
    fresh_runs: set[int] = field(default_factory=set)
    fresh_rows: list[tuple[int, str]] = field(default_factory=list)

    @property
    def prepared(self) -> PreparedFact:
        return self.question.prepared

    @property
    def pair_keys(self) -> list[str]:
        """The key of each draw's rows, once the foil is known."""
        ids = self.prepared.true_id, self.prepared.foil_id
        return [digest("pair", self.run_keys[0], key, ids) for key in self.run_keys[1:]]

    @property
    def parts(self) -> list[str]:
        return parts_of(self.question.request, len(self.prepared.input_ids))

    @property
    def cached(self) -> bool:
        """Nothing had to be computed."""
        return not self.fresh_rows and not self.fresh_runs

    def write(self, store: Any, model: MoeModel, key: str, manifest: dict[str, Any]) -> None:
        """Store everything new of this answer in one transaction."""
        keys, ranks = self.pair_keys, [[self.ranks[0], rank] for rank in self.ranks[1:]]
        rows = [
            (keys[draw], part, self.tables[draw][part], {**manifest["provenance"], "ranks": ranks[draw]})
            for draw, part in self.fresh_rows
        ]
        runs = [
            (self.run_keys[which], self.known[which].to_bytes(), self.run_infos[which], self.routings[which])
            for which in sorted(self.fresh_runs)
        ]
        store.write(model=model.label, runs=runs, rows=rows, manifests=[(key, manifest)])

    def release(self) -> None:
        """Let go of everything large; the answer was taken."""
        for held in (self.runs, self.known, self.tables, self.routings, self.run_infos):
            held.clear()


def answer_missing(
    model: MoeModel, items: Sequence[tuple[int, Question]], store: Any, progress: Progress
) -> Iterator[tuple[int, Answer]]:
    """Compute what `items` (index, question) need, batch by batch; yields answers as they are complete.

    An answer is released when the next one is asked for: take what is needed of it before. Where memory runs out, a
    sweep halves what it runs at a time; where that does not help, the batch is begun again in smaller ones. Raises
    `OutOfMemory` if not even a part of a single answer fits.
    """
    if not items:
        return
    budget = Budget.measure(model)
    # rows of one length run together
    items = sorted(items, key=lambda item: len(item[1].prepared.input_ids))
    sizes = [budget.answer_bytes(model, question.request, question.prepared) for _, question in items]
    done, left = 0.0, list(range(len(items)))
    while left:
        batch = [left[b] for b in next(budget.batches([sizes[i] for i in left]))]
        size = sum(sizes[b] for b in batch)
        smaller = None
        try:
            answers = [(items[b][0], _begin(model, items[b][1])) for b in batch]
            _complete(model, [answer for _, answer in answers], store, budget, Share(progress, done, size, sum(sizes)))
        except (MemoryError, RuntimeError, OutOfMemory) as error:
            if not ran_out(error):
                raise
            smaller = budget.smaller(size, several=len(batch) > 1)
            if smaller is None:
                raise OutOfMemory() from error
        if smaller is not None:  # out here the exception is gone, and the tensors that its frames held
            budget = smaller
            give_back()
            continue
        done, left = done + size, left[len(batch) :]
        for i, answer in answers:
            yield i, answer
            answer.release()


def _begin(model: MoeModel, question: Question) -> Answer:
    runs, sigma = runs_of(model, question.request, question.prepared)
    return Answer(question, sigma, runs, [_run_key(model, run) for run in runs])


def _run_key(model: MoeModel, run: Run) -> str:
    """Everything that a run's activations depend on."""
    key = digest("run", model.identity, run.ids)
    if run.noise is None:
        return key
    return digest("run", key, run.subject, hashlib.sha256(run.noise.numpy().tobytes()).hexdigest())


def _run(answer: Answer, which: int, store: Any) -> Run:
    """Run 0 is the clean one, run j + 1 the corrupt one of draw j; with its activations if they are at hand."""
    if which not in answer.known and store is not None and which not in answer.fresh_runs:
        stored = store.get_run(answer.run_keys[which])
        if stored is not None:
            answer.known[which] = Activations.from_bytes(stored.payload)
    return dataclasses.replace(answer.runs[which], known=answer.known.get(which))


def _keep(answer: Answer, which: int, run: Run, fresh: Activations | None) -> Activations:
    """Note what a sweep left behind of a run."""
    if run.known is None:
        assert fresh is not None
        answer.known[which] = fresh
        answer.fresh_runs.add(which)
    return answer.known[which]


def _choose_foil(model: MoeModel, answer: Answer, final: torch.Tensor) -> None:
    """Where the foil is automatic: the model's most probable next token of the clean run other than the true one.

    `final` [d]: the clean run's last hidden state.
    """
    if answer.prepared.foil_id is None:
        prepared = with_best_foil(model, answer.prepared, final[None])
        answer.question = dataclasses.replace(answer.question, prepared=prepared)


# ---- one batch -------------------------------------------------------------------------------------------------------


def _complete(model: MoeModel, answers: list[Answer], store: Any, budget: Budget, progress: Progress) -> None:
    """Fill in every answer of a batch: from the store where it has the rows and infos, by sweeps otherwise.

    One sweep for all, unless a single answer is too large for the memory: then its parts follow one another.
    """
    jobs: list[_Job] = []
    for answer in answers:
        if answer.prepared.foil_id is None and (clean := _run(answer, 0, store).known) is not None:
            _choose_foil(model, answer, clean.resid[-1, -1].to(model.device))
        answer.tables = [{} for _ in answer.runs[1:]]
        for draw, parts in _recall(answer, store).items():
            jobs += [_Job(answer, draw, [part]) for part in parts]
    sizes = [budget.part_bytes(model, job.answer.prepared, job.part) for job in jobs]
    batches = list(budget.batches(sizes))
    for i, batch in enumerate(batches):
        _sweep_jobs(model, [jobs[b] for b in batch], store, budget, Share(progress, i, 1, len(batches)))


def _sweep_jobs(model: MoeModel, jobs: list[_Job], store: Any, budget: Budget, progress: Progress) -> None:
    """Run some jobs in one sweep and put their row sets into their answers."""
    runs: list[Run] = []
    owners: list[tuple[Answer, int]] = []
    numbers: dict[tuple[int, int], int] = {}

    def number(answer: Answer, which: int) -> int:
        if (id(answer), which) not in numbers:
            numbers[id(answer), which] = len(runs)
            owners.append((answer, which))
            runs.append(_run(answer, which, store))
        return numbers[id(answer), which]

    merged: dict[tuple[int, int], _Job] = {}
    for job in jobs:  # the parts of one draw are one job again
        merged.setdefault((id(job.answer), job.draw), _Job(job.answer, job.draw, [])).parts.extend(job.parts)
    for job in merged.values():
        job.clean, job.corrupt = number(job.answer, 0), number(job.answer, job.draw + 1)
    objects: list[tuple[int, int]] = []

    def choose_objects(finals: torch.Tensor) -> list[tuple[int, int]]:
        for (answer, which), final in zip(owners, finals, strict=True):
            if which == 0:
                _choose_foil(model, answer, final)
        objects.extend((answer.prepared.true_id, int(answer.prepared.foil_id)) for answer, _ in owners)  # type: ignore[arg-type]
        return objects

    collector = _Collector(model, runs, list(merged.values()))
    outcome = sweep(
        model, model.structure, runs, collector.plan, objects=choose_objects, chunk_tokens=budget.chunk_tokens,
        progress=progress,
    )  # fmt: skip
    direct = collector.direct.values(outcome.final, objects)
    collector.write_tables(outcome.patched.double().numpy(), outcome.runs.double().numpy(), direct)
    for at, (info, rank) in enumerate(_describe(model, outcome.final, objects)):
        answer, which = owners[at]
        acts = _keep(answer, which, runs[at], outcome.activations.get(at))
        answer.run_infos[which], answer.ranks[which] = info, rank
        answer.routings[which] = routing_table(acts, model.moe_layers)


def _recall(answer: Answer, store: Any) -> dict[int, list[str]]:
    """Take what the store has; {draw: parts} that are still missing.

    A draw whose run's info or rank is missing counts as missing as a whole: its parts are computed again. So does
    everything where the foil is not known before the clean run is.
    """
    n = len(answer.run_keys)
    answer.run_infos, answer.routings, answer.ranks = [{}] * n, [pd.DataFrame()] * n, [0] * n
    if store is None or answer.prepared.foil_id is None:
        answer.fresh_rows = [(draw, part) for draw in range(n - 1) for part in answer.parts]
        return dict.fromkeys(range(n - 1), answer.parts)
    pairs = answer.pair_keys
    wanted = [(pair, part) for pair in pairs for part in answer.parts]
    rows = store.get_many_rows(wanted)
    infos = store.get_many_run_info(answer.run_keys)
    notes = store.get_many_provenance([(pair, ENDS) for pair in pairs])
    missing: dict[int, list[str]] = {}
    clean_there = answer.run_keys[0] in infos
    for draw, pair in enumerate(pairs):
        answer.tables[draw] = {part: rows[pair, part] for part in answer.parts if (pair, part) in rows}
        gaps = [part for part in answer.parts if part not in answer.tables[draw]]
        described = clean_there and answer.run_keys[draw + 1] in infos and (pair, ENDS) in notes
        if gaps or not described:
            missing[draw] = gaps if described else answer.parts
        if described:
            answer.ranks[0], answer.ranks[draw + 1] = notes[pair, ENDS]["ranks"]
            for which in (0, draw + 1):
                answer.run_infos[which], answer.routings[which] = infos[answer.run_keys[which]]
    answer.fresh_rows = [(draw, part) for draw, parts in missing.items() for part in parts]
    return missing


@dataclass(eq=False)
class _Job:
    """Missing parts of one draw of one answer; `clean` and `corrupt` are run indices of a sweep."""

    answer: Answer
    draw: int
    parts: list[str]
    clean: int = -1
    corrupt: int = -1

    @property
    def runs(self) -> tuple[int, int]:
        return self.clean, self.corrupt

    @property
    def part(self) -> str:
        """The only part of a job that was not merged."""
        (part,) = self.parts
        return part


class _Collector:
    """Turns jobs into patches layer by layer, and the patches' logits into row sets."""

    def __init__(self, model: MoeModel, runs: list[Run], jobs: list[_Job]) -> None:
        self._model, self._runs, self._jobs = model, runs, jobs
        # (job, part, *row, patch index or -1 where the run's own logits hold); `direct`: an index into it, -1 for 0
        self._rows: list[tuple] = []
        self._n_patches = 0
        self.direct = DirectParts(model)

    def plan(self, base: BaseLayer) -> list[Patch]:
        """The patches of all jobs at one layer (see `core.sweep.Plan`)."""
        if base.layer not in self._model.blocks:
            return []
        self._patches: list[Patch] = []
        lasts = {job: self._runs[job.clean].length - 1 for job in self._jobs}
        places = [(run, pos) for job, pos in lasts.items() if experts_part(pos) in job.parts for run in job.runs]
        self._table = base.updates_at(places)  # all at once
        for j, job in enumerate(self._jobs):
            start, length = job.answer.prepared.subject_positions[0], self._runs[job.clean].length
            first = base.structure.first_to_matter(base.layer, start, length)
            ends = {"clean": job.clean, "corrupt": job.corrupt, "layer": base.layer}
            if LAYER in job.parts:
                for pos in range(length):
                    patch = layer_patch(**ends, pos=pos) if pos >= first else None
                    self._add(j, LAYER, ("layer", base.layer, pos, None, None, None, None, None), patch)
            for pos in range(length):
                if (part := experts_part(pos)) in job.parts:
                    self._add_experts(j, part, base, job, pos, ends, first)
        return self._patches

    def _add_experts(
        self, j: int, part: str, base: BaseLayer, job: _Job, pos: int, ends: dict[str, int], first: int
    ) -> None:
        clean, corrupt = base.routed(job.clean, pos), base.routed(job.corrupt, pos)
        experts = sorted(clean.keys() | corrupt.keys())
        last = pos == self._runs[job.clean].length - 1  # elsewhere nothing reaches the logits directly
        direct = self.direct.note(job.corrupt, base.layer, self._updates(base, job, pos, experts)) if last else -1
        for i, expert in enumerate(experts):
            weights = expert in clean, clean.get(expert, 0.0), corrupt.get(expert, 0.0)
            row = ("expert", base.layer, pos, expert, *weights, direct + i if last else -1)
            self._add(j, part, row, expert_patch(**ends, pos=pos, expert=expert) if pos >= first else None)
        if base.structure.has_shared:
            row = ("shared", base.layer, pos, None, None, None, None, direct + len(experts) if last else -1)
            self._add(j, part, row, expert_patch(**ends, pos=pos, expert=SHARED) if pos >= first else None)

    def _updates(self, base: BaseLayer, job: _Job, pos: int, experts: list[int]) -> torch.Tensor:
        """δ of the experts, and of the shared one where there is one, [n, d]."""
        updates = self._table.updates(job.clean, job.corrupt, pos, experts)
        if not base.structure.has_shared:
            return updates
        shared = self._table.shared(job.clean, pos) - self._table.shared(job.corrupt, pos)
        return torch.cat([updates, shared[None]])

    def _add(self, j: int, part: str, row: tuple, patch: Patch | None) -> None:
        self._rows.append((j, part, *row, -1 if patch is None else self._n_patches))
        if patch is not None:
            self._patches.append(patch)
            self._n_patches += 1

    def write_tables(self, patched: np.ndarray, runs: np.ndarray, direct: np.ndarray) -> None:
        """Put the finished row sets into the answers. `patched` [n_patches, 2] and `runs` [n_runs, 2]: true, foil;
        `direct`: see `DirectParts.values`."""
        table = pd.DataFrame(self._rows, columns=["job", "part", *_ROW_COLUMNS, "patch"])
        noted = table.direct.to_numpy(dtype=float)  # missing for layer patches
        values = np.r_[direct, 0.0][np.nan_to_num(noted, nan=-1).astype(int)]
        table["direct"] = np.where(np.isnan(noted), np.nan, values)
        own = np.array([job.corrupt for job in self._jobs])[table.job.to_numpy(dtype=int)]
        at = table.patch.to_numpy(dtype=int)
        logits = runs[own].copy()
        logits[at >= 0] = patched[at[at >= 0]]
        table["true_logit"], table["foil_logit"] = logits[:, 0], logits[:, 1]
        for (j, part), rows in table.groupby(["job", "part"], sort=False):
            job = self._jobs[j]
            job.answer.tables[job.draw][part] = rows.drop(columns=["job", "part", "patch"]).reset_index(drop=True)
        for job in self._jobs:
            if ENDS in job.parts:
                job.answer.tables[job.draw][ENDS] = _ends(runs[job.clean], runs[job.corrupt])


def _ends(clean: np.ndarray, corrupt: np.ndarray) -> pd.DataFrame:
    frame = pd.DataFrame({"kind": ["clean", "corrupt"]})
    for column in _ROW_COLUMNS[1:]:
        frame[column] = None
    frame["true_logit"], frame["foil_logit"] = [clean[0], corrupt[0]], [clean[1], corrupt[1]]
    return frame


def _describe(
    model: MoeModel, finals: torch.Tensor, objects: Sequence[tuple[int, int]]
) -> Iterator[tuple[dict[str, Any], int]]:
    """For each run: its info (log normaliser, most probable next tokens) and the rank of its true object."""
    for at in range(0, finals.shape[0], 64):
        logits = all_logits(model, finals[at : at + 64])
        normaliser = logits.double().logsumexp(-1)
        top = logits.topk(min(TOP, logits.shape[1]), dim=-1)
        for row in range(logits.shape[0]):
            true = logits[row, objects[at + row][0]]
            probabilities = (top.values[row].double() - normaliser[row]).exp().tolist()
            ids = top.indices[row].tolist()
            pieces = [model.piece(i) for i in ids]
            info = {
                "log_normaliser": normaliser[row].item(),
                "top": [list(entry) for entry in zip(ids, pieces, probabilities, strict=True)],
            }
            yield info, int((logits[row] > true).sum()) + 1


def routing_table(acts: Activations, moe_layers: Sequence[int]) -> pd.DataFrame:
    """One row per (layer, pos, slot): the routed expert, its router weight, and the layer's routing margin there."""
    m, t, k = acts.index.shape
    layer, pos, slot = np.meshgrid(np.asarray(moe_layers), np.arange(t), np.arange(k), indexing="ij")
    return pd.DataFrame({
        "layer": layer.ravel(), "pos": pos.ravel(), "slot": slot.ravel(),
        "expert": acts.index.cpu().numpy().astype(np.int64).ravel(),
        "router_weight": acts.weight.double().cpu().numpy().ravel(),
        "margin": np.repeat(acts.margin.double().cpu().numpy().ravel(), k),
        "near_tie": np.repeat(acts.near_tie.cpu().numpy().ravel(), k),
    })  # fmt: skip
