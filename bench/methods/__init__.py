"""The methods, one module each. A module prepares itself once (untimed) and then computes heat maps (timed)."""

from __future__ import annotations

from . import hooks, nnsight_traces, nnterp_traces, pyvene_models, rome, sweep, transformer_lens_hooks
from .method import Method

ONE_DRAW: list[Method] = [
    sweep.SWEEP,
    sweep.TRACE,
    hooks.PLAIN,
    hooks.BATCHED,
    nnsight_traces.CELLS,
    nnsight_traces.INVOKES,
    nnterp_traces.CELLS,
    transformer_lens_hooks.CELLS,
    pyvene_models.CELLS,
]
TEN_DRAWS: list[Method] = [sweep.SWEEP, sweep.TRACE, hooks.BATCHED, rome.CELLS]
ISOLATED: dict[str, Method] = {method.key: method for method in ONE_DRAW if method.folder}
