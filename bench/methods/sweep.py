"""Our packed sweep, on its own and as the whole trace that the dashboard asks for."""

from __future__ import annotations

import functools

import torch

from core.base import Run
from core.budget import Budget
from core.moe import MoeModel
from core.patches import layer_patch
from core.sweep import listed, sweep
from core.trace import trace_prepared

from ..case import NOISE_LEVEL, OBJECTS, SUBJECT, Case
from .method import HeatMap, Method


@functools.lru_cache(maxsize=1)
def _engine(model: torch.nn.Module) -> MoeModel:
    """The model with its structure probed, as after loading; once for all cases."""
    engine = MoeModel(model)  # type: ignore[arg-type]
    assert engine.structure.packed
    return engine


def _prepare_sweep(case: Case) -> HeatMap:
    engine = _engine(case.model)
    last_layer, last = engine.n_layers - 1, case.positions[-1]
    ids = tuple(case.ids[0].tolist())
    budget = Budget.measure(engine)

    def heat_map() -> torch.Tensor:
        runs = [Run(ids), *(Run(ids, noise, SUBJECT) for noise in case.noise)]
        # in the last layer only the last position reaches the answer: the other cells equal the corrupt run
        patches = [
            layer_patch(clean=0, corrupt=1 + draw, layer=layer, pos=pos)
            for draw in range(case.draws)
            for layer in range(engine.n_layers)
            for pos in case.positions
            if layer < last_layer or pos == last
        ]
        done = sweep(
            engine, engine.structure, runs, listed(patches), objects=[OBJECTS] * len(runs),
            chunk_tokens=budget.chunk_tokens, keep=False,
        )  # fmt: skip
        out = done.runs[1:, None, None].repeat(1, engine.n_layers, len(case.positions), 1)
        for patch, logits in zip(done.patches, done.patched, strict=True):
            (step,) = patch.steps
            out[patch.run - 1, step.layer, step.positions[0] - case.positions[0]] = logits
        return out

    return heat_map


def _prepare_trace(case: Case) -> HeatMap:
    engine = _engine(case.model)

    def heat_map() -> torch.Tensor:
        (result,) = trace_prepared(engine, [case.prepared], noise=NOISE_LEVEL, draws=case.draws, experts="none")
        rows = result.frame[(result.frame.kind == "layer") & (result.frame.pos >= case.positions[0])]
        rows = rows.sort_values(["draw", "layer", "pos"])
        logits = torch.tensor(rows[["true_logit", "foil_logit"]].to_numpy(dtype="float32"))
        return logits.view(case.draws, engine.n_layers, len(case.positions), 2)

    return heat_map


SWEEP = Method(
    key="sweep",
    name="ExpertScope, the sweep",
    per_cell="no run of its own: the row joins one pass over the layers at its layer and position, next to all others",
    prepare=_prepare_sweep,
    role="ours",
)
TRACE = Method(
    key="trace",
    name="ExpertScope, the whole trace",
    per_cell="the same, with everything else that the page shows: routing, next tokens, activations, the long table",
    prepare=_prepare_trace,
    role="ours",
)
