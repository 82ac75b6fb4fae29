"""What a step of a patch writes into a row: its vector, as an edit inside the layer or as a change behind it.

Knows steps and the unpatched runs at their layer; nothing of how rows go through the layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .base import BaseLayer, ContributionTable
from .editing import Edit
from .patches import CLEAN_TOP_K, ROUTING_UNION, SHARED, Masked, Nothing, Own, Step, Updates, Value


def table_for(base: BaseLayer, steps: Sequence[Step]) -> ContributionTable | None:
    """Contributions for every update that the steps need at this layer."""
    places = [
        (run, pos)
        for step in steps
        if isinstance(step.source, Updates)
        for run in (step.source.clean, step.source.corrupt)
        for pos in step.positions
    ]
    return base.updates_at(places) if places else None


def edit_for(step: Step, pos: int, base: BaseLayer, table: ContributionTable | None, *, piece: int, row: int) -> Edit:
    """The step at one position, for a row that runs through the layer."""
    source = step.source
    if isinstance(source, Own):
        return Edit(piece, row, pos, step.site, experts=source.experts, scale=source.scale)
    if isinstance(source, Masked):
        return Edit(piece, row, pos, step.site, experts=source.experts)
    return Edit(piece, row, pos, step.site, vector_of(step, pos, base, table), step.mode == "restore")


def vector_of(step: Step, pos: int, base: BaseLayer, table: ContributionTable | None) -> torch.Tensor:
    """The step's vector at one position, [d], fp32."""
    source = step.source
    if isinstance(source, Updates):
        assert table is not None
        vector = _update(base, source, source.experts, pos, table)
        if source.equal_norm_with:
            norm, other = vector.norm(), _update(base, source, source.equal_norm_with, pos, table).norm()
            vector = torch.where(other < norm, vector * (other / norm), vector)
        return vector
    if isinstance(source, Value):
        values = {"moe": base.y, "attention": base.attention, "residual": base.h_out}[step.site]
        return values[source.run][pos].float()
    assert isinstance(source, Nothing)
    values = base.y if step.site == "moe" else base.h_in
    return torch.zeros(next(iter(values.values())).shape[-1])


def _update(
    base: BaseLayer, source: Updates, experts: tuple[int | str, ...], pos: int, table: ContributionTable
) -> torch.Tensor:
    """Σ δ of `experts` at one position, [d], fp32."""
    total = torch.zeros_like(base.y[source.clean][0], dtype=torch.float32)
    for expert in _members(base, source, experts, pos):
        if expert == SHARED:
            total += table.shared(source.clean, pos) - table.shared(source.corrupt, pos)
        else:
            total += table.expert(source.clean, pos, int(expert)) - table.expert(source.corrupt, pos, int(expert))
    return total


def _members(base: BaseLayer, source: Updates, experts: tuple[int | str, ...], pos: int) -> list[int | str]:
    """The experts meant at this position, each once: `CLEAN_TOP_K` and `ROUTING_UNION` stand for those routed there."""
    runs = {CLEAN_TOP_K: (source.clean,), ROUTING_UNION: (source.clean, source.corrupt)}
    members: dict[int | str, None] = {}
    for expert in experts:
        routed = {e for run in runs.get(expert, ()) for e in base.index[run][pos].tolist()}
        members |= dict.fromkeys(sorted(routed) if expert in runs else [expert])
    return list(members)


def apply_behind(
    state: torch.Tensor, start: int, step: Step, base: BaseLayer, run: int, table: ContributionTable | None
) -> None:
    """Change a row's state after the layer. A MoE step arrives here only where the block's output is simply added:
    writing y' over y then means adding y' − y of the row's own run."""
    for pos in step.positions:
        at = pos - start
        vector = vector_of(step, pos, base, table)
        if step.site == "moe" and step.mode == "restore":
            vector = vector - base.y[run][pos].float()
        if step.site == "residual" and step.mode == "restore":
            state[at] = vector.to(state.dtype)
        else:
            state[at] = (state[at].float() + vector.to(state.device)).to(state.dtype)
