"""Running a study: scan, survey, selection, coalitions, validation; each batch is committed as soon as it is measured.

A batch that is in the store is not measured again, so a study that was killed goes on where it was, and what it still
measures is cut by the stored plan as it would have been. Knows the order of the work; `measure` does it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch

from ..asking import prepare_for
from ..errors import Cancelled, ExpertScopeError, InputError, StoreBusy
from ..moe import MoeModel
from ..progress import SILENT, Progress
from ..prompts import PreparedFact, check_objects
from ..requests import Fact, TraceRequest
from ..turns import GaveWay
from . import data, locks, selection
from . import rows as table
from .cases import SCAN as SCAN_CASES
from .describe import differences, provenance_of_study
from .measure import Contrasts, Draws, Item
from .plan import Plan, cost_of, scan_cost
from .reporting import Reporter
from .scan import MEASURED, OBJECTS, SCAN_COLUMNS, UNUSABLE, funnel, splits, to_parquet
from .settings import StudySettings
from .tasks import Candidates, Crew, Hiring, Patches, Task, here
from .work import Work

MIN_FACTS = 4
"""Fewer kept facts than this cannot be split and compared."""
_ASK_EVERY = 2.0  # seconds between two looks whether someone asked the study to stop


def run(
    book: Any,
    model: MoeModel,
    name: str,
    *,
    progress: Progress = SILENT,
    between: Callable[[], None] = lambda: None,
    hire: Hiring = here,
) -> None:
    """Do what is left of the study `name`. Waits while another study of the same model runs. `between` is called
    before every batch and while waiting: others may use the model meanwhile, and what it raises ends the run. `hire`:
    who measures.

    Raises `Cancelled` when it was asked to stop; what was done is kept. Raises `InputError` where the study is running
    elsewhere or the model is not the one that it began with, `ExpertScopeError` where too few facts pass the filters.
    """
    record = book.get(name)
    if record.provenance and record.provenance["identity"] != model.identity:
        raise InputError(
            f"The study {name!r} began with another model, number format, device or version of the libraries; its "
            "numbers would not fit together.",
            f"It began with {differences(record.provenance, model)}. Start a new study.",
            field="model",
        )
    folder = locks.folder_beside(book.path)
    # whoever asks for a study's state holds its lock for a moment
    with locks.trying(folder, f"study {record.id}", patience=1.0) as mine:
        if not mine:
            raise data.running_already(name)
        progress = Stopping(progress, book, name)
        with _ending(book, name):
            book.update(name, state=data.QUEUED, note="", stop=False)
            label = "waiting for another study of this model"
            idle = _Idle(progress, between)
            with locks.waiting(folder, f"model {model.identity}", label=label, progress=idle):
                if not record.provenance:
                    _begin(book, model, name)
                book.update(name, state=data.RUNNING)
                _Run(book, model, name, progress, between).through(hire)


def _begin(book: Any, model: MoeModel, name: str) -> None:
    """Fix the plan, and note what makes the numbers, before the first batch."""
    record = book.get(name)
    settings = StudySettings.from_dict(record.settings)
    largest = max(fact.case_id for fact in data.facts_from_bytes(book.parts(name, data.FACTS)[data.FACTS, 0]))
    plan = Plan.make(model, settings, largest_case_id=largest, batch_tokens=record.plan.get("batch_tokens"))
    provenance = provenance_of_study(model, settings)
    book.update(name, plan=plan.to_dict(), provenance=provenance, model=model.label)


@contextlib.contextmanager
def _ending(book: Any, name: str) -> Iterator[None]:
    """Note how the work ended. Where even that fails, the study counts as interrupted."""
    end: dict[str, Any] = {"state": data.DONE}
    try:
        yield
    except (Cancelled, KeyboardInterrupt, SystemExit):  # Ray turns a SIGTERM into a SystemExit
        end = {"state": data.CANCELLED}
        raise
    except GaveWay:
        end = {"state": data.QUEUED}
        raise
    except ExpertScopeError as error:
        end = {"state": data.FAILED, "note": str(error)}
        raise
    except Exception as error:
        end = {"state": data.FAILED, "note": f"Unexpected failure: {type(error).__name__}: {error}"[:500]}
        raise
    finally:
        with contextlib.suppress(ExpertScopeError):
            book.update(name, **end)


class Stopping(Progress):
    """Also asks the store, now and then, whether someone asked the study `name` to stop."""

    def __init__(self, outer: Progress, book: Any, name: str) -> None:
        self._outer, self._book, self._name = outer, book, name
        self._asked = time.monotonic()

    def update(self, done: float, total: float, label: str = "") -> None:
        self._outer.update(done, total, label)

    def check(self) -> None:
        self._outer.check()
        if time.monotonic() - self._asked > _ASK_EVERY:
            self._asked = time.monotonic()
            with contextlib.suppress(StoreBusy):  # then at the next look
                if self._book.get(self._name).stop:
                    raise Cancelled()


class _Idle(Progress):
    """While nothing is computed: every check is a moment to let others in."""

    def __init__(self, outer: Progress, between: Callable[[], None]) -> None:
        self._outer, self._between = outer, between

    def update(self, done: float, total: float, label: str = "") -> None:
        self._outer.update(done, total, label)

    def check(self) -> None:
        self._outer.check()
        self._between()


class _Run:
    """One process's share of a study: everything that is not in the store yet, in order."""

    def __init__(self, book: Any, model: MoeModel, name: str, progress: Progress, between: Callable[[], None]) -> None:
        record = book.get(name)
        self.book, self.model, self.name, self.between = book, model, name, between
        self.settings = StudySettings.from_dict(record.settings)
        self.plan = Plan.from_dict(record.plan)
        self.structure = replace(model.structure, prefix_cost=self.plan.prefix_cost)
        self.parts = book.parts(name)
        self.report = Reporter(progress, record.progress)
        self.records = data.facts_from_bytes(self.parts[data.FACTS, 0])
        self.crew: Crew

    def through(self, hire: Hiring) -> None:
        """All stages."""
        with _threads(self.plan.threads), hire(self.model, self.structure, self.plan) as self.crew:
            kept = self.scan()
            facts = [self.prepared(fact) for fact in kept]
            self._check_halves(kept)
            work = Work(self.model, self.settings, self.plan, kept, facts)
            self.report.expect(work.estimates())
            self.stage(data.SURVEY, work.survey())
            layer = selection.best_layer(self.rows(kept))
            assert layer is not None
            if not self.settings.joint_search:
                self.stage(data.EXPERTS, work.experts(layer))
            self.stage(data.COALITIONS, work.coalitions(self.rows(kept), layer))
            self.stage(data.VALIDATION, work.validation(self.rows(kept), layer))

    def _check_halves(self, kept: list[Fact]) -> None:
        """Both halves need facts; a subject with most of them can leave one of them none."""
        half = splits(kept, self.settings)
        if len(set(half)) < 2:
            raise ExpertScopeError(
                f"All {len(kept)} kept facts are in the {half[0]} half: they cannot be split by subject.",
                "Give facts of more subjects, or split fact by fact (--no-by-subject).",
            )

    # -- the funnel -------------------------------------------------------------------------------------------------

    def scan(self) -> list[Fact]:
        """Measure candidates until enough are kept or none is left; the kept facts."""
        wanted = self.settings.n if self.settings.cases == SCAN_CASES else len(self.records)
        scanned = data.joined(self.parts, data.SCAN, SCAN_COLUMNS)
        first = sum(stage == data.SCAN for stage, _ in self.parts)
        found = funnel(scanned, self.settings, records=len(self.records))
        self.report.begin(data.SCAN, facts=wanted, facts_done=found.counts["kept"], cost=0.0)
        self.report.funnel = found.counts
        if not found.enough:
            cut: list[tuple[list[tuple[int, str, str]], float]] = []
            tasks = self._candidates(len(scanned), cut)
            # batches after the one that is enough may be under way by then; they do not count
            with contextlib.closing(self.crew.results(self._paced(tasks), self.report, in_order=True)) as results:
                for number, ends in results:
                    outcomes, cost = cut[number]
                    fresh = _scanned(outcomes, ends)
                    scanned = pd.concat([scanned, fresh], ignore_index=True)
                    before, found = found, funnel(scanned, self.settings, records=len(self.records))
                    self.report.funnel = found.counts
                    self.report.finished(facts=found.counts["kept"] - before.counts["kept"], cost=cost)
                    self.commit(data.SCAN, first + number, to_parquet(fresh))
                    if found.enough:
                        break
        if found.counts["kept"] < MIN_FACTS:
            raise ExpertScopeError(
                f"Only {found.counts['kept']} of {found.counts['scanned']} scanned facts passed the filters; a study "
                f"needs at least {MIN_FACTS}.",
                "Give more facts, or lower the minimum of the clean contrast and of the drop.",
            )
        return [self.records[place] for place in found.kept]

    def _candidates(self, place: int, cut: list[tuple[list[tuple[int, str, str]], float]]) -> Iterator[Candidates]:
        """The records from `place` on, in scan order, as batches of so many that can be measured as the plan says.
        (place, outcome, reason) of a batch's records, and its cost, are noted in `cut`."""
        draws = Draws(table.MAIN, self.settings.noise, self.settings.seed, self.settings.draws)
        while place < len(self.records):
            facts: list[PreparedFact] = []
            outcomes: list[tuple[int, str, str]] = []
            while place < len(self.records) and len(facts) < self.plan.scan_facts:
                fact, outcome, reason = self.records[place], MEASURED, ""
                try:
                    check_objects(fact)
                    facts.append(self.prepared(fact))
                except InputError as error:
                    about_object = error.field in ("true", "foil") and bool(fact.foil)
                    outcome, reason = OBJECTS if about_object else UNUSABLE, error.what
                outcomes.append((place, outcome, reason))
                place += 1
            cost = scan_cost(self.model, facts, draws.n)
            cut.append((outcomes, cost))
            yield Candidates(tuple(facts), draws, cost)

    def prepared(self, fact: Fact) -> PreparedFact:
        """The fact as the model's tokenizer sees it, by the study's switches."""
        settings = self.settings
        request = TraceRequest(
            fact, self.model.spec, special_tokens=settings.special_tokens, object_tokens=settings.object_tokens
        )
        return prepare_for(self.model, request)

    # -- patches ----------------------------------------------------------------------------------------------------

    def stage(self, stage: str, groups: Sequence[Sequence[Item]]) -> None:
        """Measure the groups (the items of one fact each), batch by batch, but for batches that are in the store."""
        batches = list(self.plan.batches(self.model, groups))
        costs = [sum(cost_of(self.model, item) for i in batch for item in groups[i]) for batch in batches]
        there = [(stage, number) in self.parts for number in range(len(batches))]
        self.report.begin(
            stage, facts=len(groups), facts_done=sum(len(b) for b, known in zip(batches, there, strict=True) if known),
            cost=sum(costs), cost_done=sum(c for c, known in zip(costs, there, strict=True) if known),
        )  # fmt: skip
        left = [number for number, known in enumerate(there) if not known]
        tasks = (Patches(tuple(item for i in batches[n] for item in groups[i]), costs[n]) for n in left)
        with contextlib.closing(self.crew.results(self._paced(tasks), self.report)) as results:
            for done, payload in results:
                number = left[done]
                self.report.finished(facts=len(batches[number]), cost=costs[number])
                self.commit(stage, number, payload)

    def _paced(self, tasks: Iterator[Task]) -> Iterator[Task]:
        """The tasks, each after a moment for others."""
        for task in tasks:
            self.between()
            yield task

    def commit(self, stage: str, number: int, payload: bytes) -> None:
        """Put a batch into the store, in one transaction with how far the study is."""
        while True:
            try:
                record = self.book.commit(self.name, [(stage, number, payload)], progress=self.report.snapshot())
                break
            except StoreBusy as error:  # what was measured is worth the wait
                self.report.wait(f"waiting for the store. {error.what}")
        self.parts[stage, number] = payload
        if record.stop:
            raise Cancelled()

    def rows(self, kept: list[Fact]) -> pd.DataFrame:
        """Everything measured so far, as selection reads it."""
        measured = [data.joined(self.parts, stage, None) for stage in data.MEASURING]
        return data.with_facts(pd.concat([m for m in measured if not m.empty], ignore_index=True), kept, self.settings)


def _scanned(outcomes: list[tuple[int, str, str]], ends: list[Contrasts]) -> pd.DataFrame:
    """Rows of the scan (`SCAN_COLUMNS`): the contrasts are those of the measured candidates, in order."""
    fresh = pd.DataFrame(outcomes, columns=["place", "outcome", "reason"])
    for column in ("clean_contrast", "drop"):
        fresh[column] = float("nan")
    measured = fresh.outcome == MEASURED
    fresh.loc[measured, "clean_contrast"] = [end.clean for end in ends]
    fresh.loc[measured, "drop"] = [end.drop for end in ends]
    return fresh.astype(SCAN_COLUMNS)


@contextlib.contextmanager
def _threads(n: int) -> Iterator[None]:
    """torch with `n` threads inside: sums are split by them."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
