"""What the pages have to show: every request traced beforehand by the engine alone, without app, store or views.

The figures are taken from the long rows by their definitions (protocol.md), and averages over facts are taken here once
more from single traces, so that a wrong turn in a page's tables is seen. Knows no page and no browser.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from core.moe import MoeModel
from core.requests import TraceRequest
from core.results import MIN_DROP, TraceResult
from core.trace import trace_many

TOGETHER = 24
"""Requests that are traced at once."""


@dataclass(frozen=True)
class Traced:
    """One fact. clean, corrupt, drop: contrasts in logits (corrupt: mean over draws); `p_true`: clean, corrupt;
    `rescue` [layer, pos] of layer patches, `experts` [layer, pos, expert] of expert patches (NaN: routed in no run),
    both mean over draws, in logits; `active` [layer, pos, expert]: clean-active; `routed`: in the clean or in a corrupt
    run; `subject`: its positions."""

    clean: float
    corrupt: float
    p_true: tuple[float, float]
    rescue: np.ndarray
    experts: np.ndarray
    active: np.ndarray
    routed: np.ndarray
    subject: tuple[int, ...]

    @property
    def drop(self) -> float:
        return self.clean - self.corrupt

    @property
    def last(self) -> int:
        return self.rescue.shape[1] - 1

    def shown(self, values: np.ndarray, measure: str) -> np.ndarray:
        """Rescues as the measure `rescue` or `restoration` shows them; NaN where the drop is too small."""
        if measure == "rescue":
            return values
        return values / self.drop if self.drop >= MIN_DROP else np.full_like(values, np.nan)

    @classmethod
    def of(cls, result: TraceResult) -> Traced:
        where, draws = result.provenance, result.request.draws
        shape = (where.n_layers, len(where.tokens), where.n_experts)
        frame = result.frame
        contrast = {kind: frame[frame.kind == kind].contrast.to_numpy(dtype=float) for kind in ("clean", "corrupt")}
        rescue = np.zeros(shape[:2])
        layers = frame[frame.kind == "layer"]
        np.add.at(rescue, (layers.layer.to_numpy(int), layers.pos.to_numpy(int)), layers.rescue.to_numpy(float) / draws)
        experts, routed, active = np.zeros(shape), np.zeros(shape, bool), np.zeros(shape, bool)
        rows = frame[frame.kind == "expert"]
        at = rows.layer.to_numpy(int), rows.pos.to_numpy(int), rows.expert.to_numpy(int)
        np.add.at(experts, at, rows.rescue.to_numpy(float) / draws)
        for runs, marked in ((result.routing, routed), (result.routing[result.routing.run == "clean"], active)):
            marked[runs.layer.to_numpy(int), runs.pos.to_numpy(int), runs.expert.to_numpy(int)] = True
        by_run = result.runs.groupby("run").p_true.mean()
        return cls(
            clean=float(contrast["clean"][0]), corrupt=float(contrast["corrupt"].mean()),
            p_true=(float(by_run["clean"]), float(by_run["corrupt"])),
            rescue=rescue, experts=np.where(routed, experts, np.nan), active=active, routed=routed,
            subject=tuple(where.subject_positions),
        )  # fmt: skip


class Answers:
    """The answers to the requests that viewers may ask, by request."""

    def __init__(self, model: MoeModel, requests: Iterable[TraceRequest]) -> None:
        """Trace them all. Only models whose every layer has experts and none is shared."""
        wanted = list(dict.fromkeys(requests))
        self._traced: dict[TraceRequest, Traced] = {}
        for start in range(0, len(wanted), TOGETHER):
            some = wanted[start : start + TOGETHER]
            found = trace_many(model, [request.replace(experts="all") for request in some])
            self._traced |= {asked: Traced.of(result) for asked, result in zip(some, found, strict=True)}

    def __getitem__(self, request: TraceRequest) -> Traced:
        return self._traced[request]

    def __contains__(self, request: TraceRequest) -> bool:
        return request in self._traced

    # -- over several facts ------------------------------------------------------------------------------------------

    def frequency(self, requests: Sequence[TraceRequest]) -> np.ndarray:
        """How often each expert is routed at the last position of the clean runs: [layer, expert], shares."""
        found = [self[request] for request in requests]
        return np.mean([one.active[:, one.last] for one in found], axis=0)

    def expert_rescue(self, requests: Sequence[TraceRequest]) -> np.ndarray:
        """Mean rescue of each expert's patch at the last position, 0 where it is not clean-active: [layer, expert];
        NaN where it is clean-active in no fact."""
        found = [self[request] for request in requests]
        active = np.array([one.active[:, one.last] for one in found])
        each = np.where(active, [one.experts[:, one.last] for one in found], 0.0)
        return np.where(active.any(axis=0), each.mean(axis=0), np.nan)

    def by_role(self, requests: Sequence[TraceRequest], role: str, *, min_drop: float, measure: str) -> np.ndarray:
        """Layer patches averaged over the facts with at least this drop that have a token of the role (`last token`,
        `last subject`, `first subject`): [layer]; rescue, or mean rescue ÷ mean drop. NaN without such a fact."""
        found = [self[request] for request in requests]
        placed = [(one, _place(one, role)) for one in found if one.drop >= min_drop]
        placed = [(one, pos) for one, pos in placed if pos is not None]
        if not placed:
            return np.full(found[0].rescue.shape[0], np.nan)
        mean = np.mean([one.rescue[:, pos] for one, pos in placed], axis=0)
        return mean if measure == "rescue" else mean / np.mean([one.drop for one, _ in placed])


def _place(one: Traced, role: str) -> int | None:
    first, last = min(one.subject), max(one.subject)
    if role == "last token":
        return one.last
    if role == "last subject":
        return last if last < one.last else None
    return first if first < last and first < one.last else None
