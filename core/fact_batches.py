"""Work over many facts, a batch at a time: which of them the model can take, and batches that fit into the memory.

Knows sizes, memory and progress; not what is done with a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .asking import prepare_for
from .budget import Budget
from .derived import DerivedRequest
from .errors import InputError, OutOfMemory
from .missing import Question
from .moe import MoeModel
from .progress import Progress, Share
from .requests import TraceRequest
from .room import give_back, ran_out
from .study.plan import most_tokens


def usable(
    model: MoeModel, requests: Sequence[TraceRequest]
) -> tuple[list[tuple[int, Question]], list[dict[str, Any]]]:
    """(the facts that the model can take, by their number among `requests`; the others: case_id, subject, why)."""
    questions, left_out = [], []
    for number, request in enumerate(requests):
        try:
            questions.append((number, Question(request, prepare_for(model, request))))
        except InputError as error:
            left_out.append({"case_id": request.fact.case_id, "subject": request.fact.subject, "why": error.what})
    return questions, left_out


def questions_of(
    model: MoeModel, request: DerivedRequest, **settings: Any
) -> tuple[list[tuple[int, Question]], list[dict[str, Any]]]:
    """The same for the facts of a derived request, nothing patched of themselves. `settings`: of a `TraceRequest`."""
    return usable(model, [TraceRequest(fact, model.spec, experts="none", **settings) for fact in request.facts])


def in_batches(
    model: MoeModel,
    questions: Sequence[tuple[int, Question]],
    *,
    tokens: Callable[[Question], int],
    rows: Callable[[Question], int],
    work: Callable[[list[tuple[int, Question]], Budget, Progress], None],
    progress: Progress,
    label: str,
) -> None:
    """Call `work` with batches of `questions`, shortest prompts first, until all of them had their turn.

    `tokens`: of a fact's unpatched runs; `rows`: tokens of its patched rows. Where memory runs out in `work`, which
    must then have kept nothing of that batch, it is called again with smaller ones. Raises `OutOfMemory` if a single
    fact does not fit.
    """
    budget = Budget.measure(model)
    order = sorted(questions, key=lambda one: (len(one[1].prepared.input_ids), one[0]))
    most, state = most_tokens(model), model.hidden * model.dtype.itemsize
    counts = [(tokens(question), rows(question)) for _, question in order]
    total, at = sum(map(sum, counts)), 0
    while at < len(order):
        batch, packed, size = [], 0, 0
        for runs, patched in counts[at:]:
            its = (6 * runs + 2 * patched) * state  # see `core.study.plan.bytes_of`
            if batch and (packed + runs + patched > most or size + its > budget.kept_bytes):
                break
            batch.append(order[at + len(batch)])
            packed, size = packed + runs + patched, size + its
        done = sum(map(sum, counts[:at]))
        progress.pause()
        smaller = None
        try:
            work(batch, budget, Share(progress, done, packed, max(total, 1), label))
        except (MemoryError, RuntimeError, OutOfMemory) as error:
            if not ran_out(error):
                raise
            smaller = budget.smaller(size, several=True) if len(batch) > 1 else None
            if smaller is None:
                raise OutOfMemory() from error
        if smaller is not None:  # out here the exception is gone, and the tensors that its frames held
            budget = smaller
            give_back()
            continue
        at += len(batch)
