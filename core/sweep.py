"""One pass over the layers for a whole list of patches: runs and patches in, logits out.

A run patched first at (layer l, position t) is its own unpatched run below layer l and left of position t. So each
patched row exists only as a suffix t..T−1 from layer l on: it joins the sweep there, made from the unpatched run's
hidden states, and all rows alive go through each layer together (see `packing`). Clean and corrupt runs of several
facts and draws, and their patched rows, share the pass, and each layer is visited once.

Knows steps and positions, not facts, kinds or tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from .activations import Activations
from .base import BaseLayer, BaseRuns, ContributionTable, Run
from .head import object_logits
from .moe import MoeModel
from .packing import Edit, Piece, call_full, call_packed, packed_mode, rectangles
from .patches import SHARED, Nothing, Patch, Step, Updates, Value
from .progress import SILENT, Progress
from .structure import Structure


@dataclass(frozen=True)
class Outcome:
    """`patched` [n_patches, m] and `runs` [n_runs, m]: logits of the objects asked for, fp32. `final`: last hidden
    state of each run [n_runs, d]. `activations`: of the runs that were computed, by run index."""

    patched: torch.Tensor
    runs: torch.Tensor
    final: torch.Tensor
    activations: dict[int, Activations]


@dataclass
class _Group:
    """Patched rows with the same sequence length and start, in the order in which they join.

    `rows`: patch indices; `joins[i]`: the layer that row i runs through first (n_layers: none any more);
    `state`: [n, span, d], filled as rows join.
    """

    length: int
    start: int
    rows: list[int]
    joins: list[int]
    state: torch.Tensor
    live: int = 0

    @property
    def span(self) -> int:
        return self.length - self.start


def sweep(
    model: MoeModel,
    structure: Structure,
    runs: Sequence[Run],
    patches: Sequence[Patch],
    *,
    objects: Sequence[Sequence[int]],
    chunk_tokens: int,
    keep: bool = True,
    progress: Progress = SILENT,
) -> Outcome:
    """Run `runs` and `patches` (each in one of the runs) once through the model.

    `objects[i]`: token ids whose logits are wanted at the last position of run i and of the patches in it (the same
    number for all). `chunk_tokens`: at most so many tokens go through a layer at a time. `keep`: return activations.
    """
    with model.lock, torch.no_grad(), packed_mode(model.model):
        base_runs = BaseRuns(model, structure, runs, chunk_tokens=chunk_tokens, keep=keep)
        groups = _group(model, structure, runs, patches)
        n_layers = model.n_layers
        work = _Work(model, runs, groups, progress)
        previous: BaseLayer | None = None
        for layer in range(n_layers):
            progress.check()
            base = base_runs.step(layer)
            work.advance(work.base_tokens)
            for group in groups:
                _join(model, structure, group, patches, layer, base.h_in)
            _run_live(model, structure, base_runs, base, groups, patches, work, chunk_tokens)
            _finish_layer(structure, base, groups, patches)
            previous = base
        assert previous is not None
        finals = base_runs.final
        final = torch.stack([finals[i] for i in range(len(runs))])
        wanted = torch.as_tensor(objects)
        run_logits = object_logits(model, final, wanted)
        patched = torch.empty(len(patches), wanted.shape[1])
        for group in groups:
            at = torch.tensor(group.rows)
            owners = torch.tensor([patches[i].run for i in group.rows])
            patched[at] = object_logits(model, group.state[:, -1], wanted[owners])
        return Outcome(patched, run_logits, final, base_runs.activations() if keep else {})


class _Work:
    """Counts packed tokens × layers, so that progress is in units of equal cost."""

    def __init__(self, model: MoeModel, runs: Sequence[Run], groups: list[_Group], progress: Progress) -> None:
        self.base_tokens = sum(run.length for run in runs if run.known is None)
        self._progress = progress
        self.total = model.n_layers * self.base_tokens + sum(
            (model.n_layers - join) * group.span for group in groups for join in group.joins
        )
        self.done = 0

    def advance(self, tokens: int) -> None:
        self._progress.check()
        self.done += tokens
        self._progress.update(self.done, max(1, self.total), "tracing")


# ---- rows and how they join ------------------------------------------------------------------------------------------


def _joins_late(structure: Structure, patch: Patch) -> bool:
    """Whether the row can be made from the layer's unpatched output, instead of running through that layer."""
    first = [step for step in patch.steps if step.layer == patch.layer]
    return all(step.site == "residual" or structure.additive.get(step.layer, False) for step in first)


def _group(model: MoeModel, structure: Structure, runs: Sequence[Run], patches: Sequence[Patch]) -> list[_Group]:
    """Sort the patches into groups; allocate their states."""
    by_shape: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for i, patch in enumerate(patches):
        join = patch.layer + 1 if _joins_late(structure, patch) else patch.layer
        by_shape.setdefault((runs[patch.run].length, patch.start), []).append((join, i))
    groups = []
    for (length, start), members in sorted(by_shape.items()):
        members.sort()
        state = torch.empty(
            len(members), length - start, model.hidden, dtype=model.dtype, device=model.device
        )  # fmt: skip
        groups.append(_Group(length, start, [i for _, i in members], [join for join, _ in members], state))
    return groups


def _join(
    model: MoeModel, structure: Structure, group: _Group, patches: Sequence[Patch], layer: int, h_in: dict[int, torch.Tensor]
) -> None:
    """Rows whose first patched layer is `layer` itself enter before it, as their run's own hidden states."""
    while group.live < len(group.rows) and group.joins[group.live] == layer:
        patch = patches[group.rows[group.live]]
        group.state[group.live] = h_in[patch.run][group.start :]
        group.live += 1


def _finish_layer(structure: Structure, base: BaseLayer, groups: list[_Group], patches: Sequence[Patch]) -> None:
    """After layer `base.layer`: residual steps of live rows, and rows that join behind it."""
    layer = base.layer
    table = _table(base, [p for g in groups for p in _steps_at(g, patches, layer, late=True)])
    for group in groups:
        for row in range(group.live):
            for step in patches[group.rows[row]].steps:
                if step.layer == layer and step.site == "residual":
                    _apply(group.state[row], group.start, step, base, patches[group.rows[row]].run, table)
        while group.live < len(group.rows) and group.joins[group.live] == layer + 1:
            patch = patches[group.rows[group.live]]
            state = group.state[group.live]
            state.copy_(base.h_out[patch.run][group.start :])
            for step in patch.steps:
                if step.layer == layer:
                    _apply(state, group.start, step, base, patch.run, table)
            group.live += 1


def _steps_at(group: _Group, patches: Sequence[Patch], layer: int, *, late: bool) -> Iterator[tuple[int, Step]]:
    """(patch index, step) at `layer`: of rows that join behind it (`late`), or of rows already alive."""
    if late:
        members = range(group.live, len(group.rows))
    else:
        members = range(group.live)
    for row in members:
        if late and group.joins[row] > layer + 1:
            break
        for step in patches[group.rows[row]].steps:
            if step.layer == layer:
                yield group.rows[row], step


def _table(base: BaseLayer, steps: Sequence[tuple[int, Step]]) -> ContributionTable | None:
    """Contributions for every update that the steps need at this layer."""
    places = [
        (run, pos)
        for _, step in steps
        if isinstance(step.source, Updates)
        for run in (step.source.clean, step.source.corrupt)
        for pos in step.positions
    ]
    return base.updates_at(places) if places else None


def _vector(step: Step, pos: int, base: BaseLayer, table: ContributionTable | None) -> torch.Tensor:
    """The step's vector at one position, [d], fp32."""
    source = step.source
    if isinstance(source, Updates):
        assert table is not None
        total = torch.zeros_like(base.h_in[source.clean][0], dtype=torch.float32)
        for expert in source.experts:
            if expert == SHARED:
                total += table.shared(source.clean, pos) - table.shared(source.corrupt, pos)
            else:
                total += table.expert(source.clean, pos, int(expert)) - table.expert(source.corrupt, pos, int(expert))
        return total
    if isinstance(source, Value):
        return (base.y if step.site == "moe" else base.h_out)[source.run][pos].float()
    assert isinstance(source, Nothing)
    return torch.zeros(base.h_in[next(iter(base.h_in))].shape[-1])


def _apply(
    state: torch.Tensor, start: int, step: Step, base: BaseLayer, run: int, table: ContributionTable | None
) -> None:
    """Change a row's state after the layer. A MoE step arrives here only where the block's output is simply added:
    writing y' over y then means adding y' − y of the row's own run."""
    for pos in step.positions:
        at = pos - start
        vector = _vector(step, pos, base, table)
        if step.site == "moe" and step.mode == "restore":
            vector = vector - base.y[run][pos].float()
        if step.site == "residual" and step.mode == "restore":
            state[at] = vector.to(state.dtype)
        else:
            state[at] = (state[at].float() + vector.to(state.device)).to(state.dtype)


# ---- taking the live rows through a layer ----------------------------------------------------------------------------


def _run_live(
    model: MoeModel,
    structure: Structure,
    base_runs: BaseRuns,
    base: BaseLayer,
    groups: list[_Group],
    patches: Sequence[Patch],
    work: _Work,
    chunk_tokens: int,
) -> None:
    layer = base.layer
    module, block = model.layers[layer], model.blocks.get(layer)
    steps = [s for g in groups for s in _steps_at(g, patches, layer, late=False) if s[1].site == "moe"]
    table = _table(base, steps)
    edited = {i for i, _ in steps}
    last = layer == model.n_layers - 1
    for slices in _chunks(groups, chunk_tokens):
        pieces, edits = _pieces(base_runs, base, slices, patches, last=last)
        first = len(pieces) - len(slices)
        for p, (group, rows) in enumerate(slices):
            for row in rows:
                patch = patches[group.rows[row]]
                if group.rows[row] in edited:
                    edits += [
                        Edit(first + p, row - rows.start, pos, _vector(step, pos, base, table), step.mode == "restore")
                        for step in patch.steps
                        if step.layer == layer and step.site == "moe"
                        for pos in step.positions
                    ]
        module_block = block.module if block else None
        if structure.packed[layer]:
            outs = call_packed(module, layer, pieces, base_runs.arguments, block=module_block, edits=edits)[first:]
        else:
            outs = [None] * len(slices)
            for members in rectangles(pieces):
                got = call_full(module, layer, pieces, members, base_runs.arguments, block=module_block, edits=edits)
                for member, out in zip(members, got, strict=True):
                    outs[member - first] = out
        for (group, rows), out in zip(slices, outs, strict=True):
            group.state[rows.start : rows.stop] = out
        work.advance(sum(len(rows) * group.span for group, rows in slices))


def _chunks(groups: list[_Group], chunk_tokens: int) -> Iterator[list[tuple[_Group, range]]]:
    """Live rows of all groups, at most `chunk_tokens` tokens at a time."""
    slices: list[tuple[_Group, range]] = []
    tokens = 0
    for group in groups:
        at = 0
        while at < group.live:
            if slices and tokens + group.span > chunk_tokens:
                yield slices
                slices, tokens = [], 0
            rows = range(at, min(group.live, at + max(1, (chunk_tokens - tokens) // group.span)))
            slices.append((group, rows))
            tokens += len(rows) * group.span
            at = rows.stop
    if slices:
        yield slices


def _pieces(
    base_runs: BaseRuns, base: BaseLayer, slices: list[tuple[_Group, range]], patches: Sequence[Patch], *, last: bool
) -> tuple[list[Piece], list[Edit]]:
    """The pieces of a chunk: first the unpatched prefixes that its rows need, then one piece per slice."""
    owners: dict[int, dict[int, int]] = {}  # length -> {run: row in that length's prefix piece}
    reach: dict[int, int] = {}
    for group, rows in slices:
        members = owners.setdefault(group.length, {})
        for row in rows:
            members.setdefault(patches[group.rows[row]].run, len(members))
        reach[group.length] = max(reach.get(group.length, 0), group.start)
    pieces: list[Piece] = []
    at: dict[int, int] = {}
    for length, members in owners.items():
        if reach[length]:
            at[length] = len(pieces)
            hidden = torch.stack([base.h_in[run][: reach[length]] for run in members])
            table = [base_runs.table_keys[run] for run in members]
            pieces.append(Piece(hidden, length, 0, table, queries="none"))
    for group, rows in slices:
        runs = [patches[group.rows[row]].run for row in rows]
        prefix = None
        if group.start:
            members = owners[group.length]
            prefix = (at[group.length], torch.tensor([members[run] for run in runs], device=group.state.device))
        pieces.append(
            Piece(
                group.state[rows.start : rows.stop], group.length, group.start,
                [base_runs.table_keys[run] for run in runs], prefix, queries="last" if last else "all",
            )
        )  # fmt: skip
    return pieces, []
