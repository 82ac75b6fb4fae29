"""A batch of a study as a task of its own, and the crew of one that measures tasks in this process.

A task can be sent elsewhere: it holds all that decides its numbers but for the model and the plan's sizes. Whoever
measures it, the result is the same. Knows measuring and the form of results; nothing of stages or the store.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from ..moe import MoeModel
from ..progress import SILENT, Progress
from ..prompts import PreparedFact
from ..structure import Structure
from .measure import Contrasts, Draws, Item, contrasts, measure
from .plan import Plan
from .reporting import Reporter
from .scan import to_parquet


@dataclass(frozen=True)
class Candidates:
    """Facts whose clean and corrupt contrasts the filters need; `cost` in tokens × layers."""

    facts: tuple[PreparedFact, ...]
    draws: Draws
    cost: float

    def measured(
        self, model: MoeModel, structure: Structure, *, chunk_tokens: int, progress: Progress = SILENT
    ) -> list[Contrasts]:
        """Of each fact."""
        return contrasts(model, structure, self.facts, self.draws, chunk_tokens=chunk_tokens, progress=progress)


@dataclass(frozen=True)
class Patches:
    """Items that share a sweep; `cost` in tokens × layers."""

    items: tuple[Item, ...]
    cost: float

    def measured(
        self, model: MoeModel, structure: Structure, *, chunk_tokens: int, progress: Progress = SILENT
    ) -> bytes:
        """The rows as they are stored."""
        return to_parquet(measure(model, structure, self.items, chunk_tokens=chunk_tokens, progress=progress))


Task = Candidates | Patches


class Crew(Protocol):
    """Those who measure tasks."""

    def results(self, tasks: Iterable[Task], report: Reporter, *, in_order: bool = False) -> Iterator[tuple[int, Any]]:
        """The number of each task, from 0, and its result, as they come or `in_order`. Tasks are taken when someone is
        free. Raises what `report.check` raises."""


@dataclass(frozen=True)
class Here:
    """This process measures one task after the other."""

    model: MoeModel
    structure: Structure
    plan: Plan

    def results(self, tasks: Iterable[Task], report: Reporter, *, in_order: bool = False) -> Iterator[tuple[int, Any]]:
        """See `Crew`: always in order."""
        for number, task in enumerate(tasks):
            report.check()
            yield (
                number,
                task.measured(
                    self.model, self.structure, chunk_tokens=self.plan.chunk_tokens, progress=report.batch(task.cost)
                ),
            )


Hiring = Callable[[MoeModel, Structure, Plan], contextlib.AbstractContextManager[Crew]]
"""Gets a crew for the model, run as the structure and the plan say; the crew goes home at the end of the block."""


@contextlib.contextmanager
def here(model: MoeModel, structure: Structure, plan: Plan) -> Iterator[Crew]:
    """The crew of one."""
    yield Here(model, structure, plan)
