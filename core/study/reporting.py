"""How far a study is: its stage, the funnel, facts per minute and the time left, for whoever watches.

Knows costs and clocks; nothing of models or tables.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from ..progress import Progress

STAGES = {
    "scan": "filters",
    "survey": "layer sweep",
    "experts": "experts",
    "coalitions": "coalition search",
    "validation": "validation",
}
"""Stages of the work in their order, and what people read."""
_SCALE = 1000.0
_SCAN_SHARE = 0.05  # of the whole, as long as the scan has not ended


class Reporter:
    """Takes note of what is done and tells `progress`. Costs in tokens × layers (see `core.study.plan`).

    Costs of stages to come are estimates until they begin. Speed is that of this process since it began.
    """

    def __init__(
        self, progress: Progress, before: Mapping[str, Any], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`before`: the snapshot that the study was left with, if any."""
        self._progress, self._clock = progress, clock
        self._spent_before = float(before.get("seconds", 0.0))
        self._began = clock()
        self._stage, self._stage_began = "", clock()
        self._total: dict[str, float] = {}
        self._done: dict[str, float] = {}
        self._measured = 0.0  # cost done by this process
        self._facts = self._facts_before = self._facts_total = 0
        self._batch = 0.0
        self._shown = ""
        self.funnel: dict[str, int] = dict(before.get("funnel", {}))

    def expect(self, costs: Mapping[str, float]) -> None:
        """Estimated costs of stages to come."""
        self._total |= {stage: cost for stage, cost in costs.items() if stage not in self._done}

    def begin(self, stage: str, *, facts: int, facts_done: int = 0, cost: float, cost_done: float = 0.0) -> None:
        """A stage of so many facts begins; some of it was done by an earlier process."""
        self._stage, self._stage_began = stage, self._clock()
        self._total[stage], self._done[stage] = max(cost, cost_done), cost_done
        self._facts = self._facts_before = facts_done
        self._facts_total = facts
        self._shown = self._label()
        self._tell(0.0)

    def batch(self, cost: float) -> Progress:
        """The progress that the sweep of one batch gets."""
        self._batch = cost
        return _Batch(self)

    def finished(self, *, facts: int, cost: float) -> None:
        """So many facts of the stage, and so much of its cost, are done."""
        self._facts += facts
        self._done[self._stage] = self._done.get(self._stage, 0.0) + cost
        self._total[self._stage] = max(self._total[self._stage], self._done[self._stage])
        self._measured += cost
        self._batch = 0.0
        self._shown = self._label()
        self._tell(0.0)

    def wait(self, why: str) -> None:
        """Something has to be waited for."""
        self._progress.update(_SCALE * self._fraction(0.0), _SCALE, why)
        self._progress.check()

    def snapshot(self) -> dict[str, Any]:
        """How far it is, as JSON values: stage, label, facts_done, facts_total, facts_per_minute, funnel, fraction (0
        to 1), seconds (spent in all), seconds_left (None where nothing honest can be said)."""
        minutes = (self._clock() - self._stage_began) / 60
        rate = (
            (self._facts - self._facts_before) / minutes if minutes > 0 and self._facts > self._facts_before else None
        )
        left = sum(self._total.values()) - sum(self._done.values())
        spent = self._clock() - self._began
        fraction = self._fraction(0.0)
        known = self._measured > 0 and spent > 0 and set(self._total) - {"scan"}
        seconds_left = left * spent / self._measured if known and left > 0 else None
        return {
            "stage": self._stage,
            "label": STAGES.get(self._stage, self._stage),
            "facts_done": self._facts,
            "facts_total": self._facts_total,
            "facts_per_minute": rate,
            "funnel": dict(self.funnel),
            "fraction": fraction,
            "seconds": self._spent_before + spent,
            "seconds_left": 0.0 if fraction == 1.0 else seconds_left,
        }

    def check(self) -> None:
        """Raise `Cancelled` if the work should stop."""
        self._progress.check()

    def _fraction(self, of_batch: float) -> float:
        if not set(self._total) - {"scan"}:  # nothing is known yet of what the filters leave to do
            return _SCAN_SHARE * min(1.0, self._facts / self._facts_total) if self._facts_total else 0.0
        total = sum(self._total.values())
        return min(1.0, (sum(self._done.values()) + of_batch * self._batch) / total) if total else 0.0

    def _tell(self, of_batch: float) -> None:
        self._progress.update(_SCALE * self._fraction(of_batch), _SCALE, self._shown)

    def _label(self) -> str:
        name = STAGES.get(self._stage, self._stage)
        if self._stage == "scan":
            kept, scanned = self.funnel.get("kept", 0), self.funnel.get("scanned", 0)
            return f"{name}: {scanned} scanned, {kept} of {self._facts_total} kept"
        rate = self.snapshot()["facts_per_minute"]
        speed = f", {rate:.0f} facts a minute" if rate else ""
        return f"{name}: {self._facts} of {self._facts_total} facts{speed}"


class _Batch(Progress):
    """Passes a sweep's progress on as a share of the whole study."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def update(self, done: float, total: float, label: str = "") -> None:
        self._reporter._tell(done / total if total > 0 else 0.0)

    def check(self) -> None:
        self._reporter.check()
