"""Many runs looked at in one layer: what the tokens routed to one expert brought, and what it contributed there.

A pass through the layers without patches in which somebody looks at one of them. Knows one expert at a time; nothing of
facts, statistics or tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .base import BaseLayer, Run
from .errors import InputError
from .moe import MoeModel, contributions
from .patches import Patch
from .progress import SILENT, Progress
from .results import expert_name
from .room import Room
from .sweep import Objects, Outcome
from .whole import pass_for


@dataclass(frozen=True)
class Slots:
    """The n tokens of some runs that one expert is routed at, in the order of the runs and positions.

    `run`, `pos` [n]: where; `x` [n, d_in]: what the expert received; `weight` [n]: router weights, in their own number
    format; `block_input` [n, d]: where contributions need it.
    """

    run: torch.Tensor
    pos: torch.Tensor
    x: torch.Tensor
    weight: torch.Tensor
    block_input: torch.Tensor | None

    def __len__(self) -> int:
        return len(self.run)

    def __getitem__(self, some: slice | torch.Tensor) -> Slots:
        given = None if self.block_input is None else self.block_input[some]
        return Slots(self.run[some], self.pos[some], self.x[some], self.weight[some], given)


def check_expert(model: MoeModel, layer: int, expert: int) -> None:
    """Raise `InputError` for an expert that the model does not have."""
    if layer not in model.blocks or not 0 <= expert < model.n_experts:
        raise InputError(
            f"There is no expert {expert_name(layer, expert)} in this model.",
            f"Layers with experts: {', '.join(map(str, model.moe_layers))}; experts: 0 to {model.n_experts - 1}.",
            field="expert",
        )


def look_at(
    model: MoeModel,
    runs: Sequence[Run],
    layer: int,
    look: Callable[[BaseLayer], None],
    *,
    room: Room | int,
    objects: Objects | None = None,
    progress: Progress = SILENT,
) -> Outcome | None:
    """Take `runs` through the model and call `look` once, with all of them at `layer`, while its weights are there.

    Without `objects` the pass ends behind that layer and nothing comes out; with them as `core.sweep.sweep`.
    """

    def plan(base: BaseLayer) -> Sequence[Patch]:
        if base.layer == layer:
            look(base)
        return ()

    with model.lock, torch.no_grad(), model.structure.mode(model):
        sweeping = pass_for(model, model.structure, runs, plan, chunk_tokens=room, keep=False, progress=progress)
        with sweeping:
            for at in range(model.n_layers if objects is not None else layer + 1):
                sweeping.step(at)
        return None if objects is None else sweeping.outcome(objects)


def slots_of(base: BaseLayer, runs: Sequence[int], expert: int) -> Slots:
    """The tokens of `runs` (their numbers in the pass) that the expert is routed at."""
    tail = base.structure.tail.get(base.layer, False)
    parts = []
    for run in runs:
        pos, slot = (base.index[run] == expert).nonzero(as_tuple=True)
        given = base.block_input[run][pos] if tail else None
        parts.append(Slots(torch.full_like(pos, run), pos, base.x[run][pos], base.weight[run][pos, slot], given))
    return Slots(
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("run", "pos", "x", "weight")),
        torch.cat([part.block_input for part in parts]) if tail else None,  # type: ignore[misc]
    )


def contributed(base: BaseLayer, slots: Slots, expert: int) -> torch.Tensor:
    """c[l, t, expert] of the slots: [n, d], fp32. For few of them; see `pieces`."""
    if not len(slots):
        return torch.zeros(0, base.model.hidden, device=slots.x.device)
    block = base.model.blocks[base.layer]
    index = torch.full((len(slots), 1), expert, device=slots.x.device)
    return contributions(block, slots.x, index, slots.weight[:, None], slots.block_input)[:, 0].float()


def in_pieces(base: BaseLayer, slots: Slots, work: Callable[[Slots], None]) -> None:
    """Call `work` with a few slots at a time, fewer where memory runs out; it must keep nothing where it fails."""
    at = 0

    def go_on() -> None:
        nonlocal at
        while at < len(slots):
            step = base.room.tokens
            work(slots[at : at + step])
            at += step

    base.room.within(go_on)
