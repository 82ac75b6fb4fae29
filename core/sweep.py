"""One pass over the layers for a whole list of patches: runs and patches in, logits out.

A run patched first at (layer l, position t) is its own unpatched run below layer l and left of position t. So each
patched row exists only as a suffix t..T−1 from layer l on: it joins the sweep there, made from the unpatched run's
hidden states, and all rows alive go through each layer together (see `packing`). Clean and corrupt runs of several
facts and draws, and their patched rows, share the pass, and each layer is visited once.

Knows steps and positions, not facts, kinds or tables.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from .activations import Activations
from .base import BaseLayer, BaseRuns, Company, ContributionTable, Prefixes, Run
from .editing import Parts
from .head import object_logits
from .moe import MoeModel
from .packing import Piece, call_full, call_packed, rectangles
from .patches import Own, Patch, Step
from .progress import SILENT, Progress
from .room import Room
from .structure import Structure
from .weights import one_pass
from .writing import apply_behind, edit_for, table_for

Plan = Callable[[BaseLayer], Sequence[Patch]]
"""Gives the patches whose first layer is that of the base layer, once its unpatched runs are known."""


Objects = Sequence[Sequence[int]] | Callable[[torch.Tensor], Sequence[Sequence[int]]]
"""Token ids whose logits are wanted, for each run; or what chooses them, given the runs' last hidden states [n, d]."""


@dataclass(frozen=True)
class Outcome:
    """`patches`: in the order in which the plan gave them; `patched` [n_patches, m] and `runs` [n_runs, m]: logits of
    the objects asked for, fp32. `final`: last hidden state of each run [n_runs, d]. `activations`: of the runs that
    were computed, by run index. `patched_final`: last hidden state of each patch, where it was asked for."""

    patches: list[Patch]
    patched: torch.Tensor
    runs: torch.Tensor
    final: torch.Tensor
    activations: dict[int, Activations]
    patched_final: torch.Tensor | None = None


@dataclass
class _Group:
    """Patched rows with the same sequence length and start, in the order in which they joined.

    `rows`: indices of their patches; `state`: [n, span, d]; `ahead`: so many rows went through the layer at hand
    already (see `_Live.company`).
    """

    length: int
    start: int
    rows: list[int]
    state: torch.Tensor
    ahead: int = 0

    @property
    def span(self) -> int:
        return self.length - self.start


def listed(patches: Sequence[Patch]) -> Plan:
    """The plan that gives a list of patches known beforehand."""
    by_layer: dict[int, list[Patch]] = {}
    for patch in patches:
        by_layer.setdefault(patch.layer, []).append(patch)
    return lambda base: by_layer.get(base.layer, ())


def sweep(
    model: MoeModel,
    structure: Structure,
    runs: Sequence[Run],
    plan: Plan,
    *,
    objects: Objects,
    chunk_tokens: int | Room,
    keep: bool = True,
    with_attention: bool = False,
    keep_final: bool = False,
    progress: Progress = SILENT,
) -> Outcome:
    """Take `runs` and the patches that `plan` gives (each in one of the runs) once through the model.

    `objects[i]`: token ids whose logits are wanted at the last position of run i and of the patches in it (the same
    number for all); or a function that chooses them when it is given the runs' last hidden states. `chunk_tokens`: at
    most so many tokens go through a layer at a time; where memory runs out the sweep goes on with half of them (a
    `Room` remembers that for the next sweep). `keep`: return activations. `with_attention`: some step restores an
    attention output. `keep_final`: return the patches' last hidden states.
    """
    from .whole import pass_for

    with model.lock, torch.no_grad(), structure.mode(model):
        sweeping = pass_for(
            model, structure, runs, plan, chunk_tokens=chunk_tokens, keep=keep, with_attention=with_attention,
            progress=progress,
        )  # fmt: skip
        with sweeping:
            for layer in range(model.n_layers):
                sweeping.step(layer)
        return sweeping.outcome(objects, keep_final=keep_final)


class Pass:
    """A sweep under way, for who goes through the layers himself (arguments as for `sweep`).

    Inside the model's lock and `Structure.mode`: make it, enter it, call `step(l)` for l = 0, 1, ... in turn, leave it,
    ask for the `outcome`. Of `structure` only what concerns the layers so far has to be known at each step.
    """

    def __init__(
        self,
        model: MoeModel,
        structure: Structure,
        runs: Sequence[Run],
        plan: Plan,
        *,
        chunk_tokens: int | Room,
        keep: bool = True,
        with_attention: bool = False,
        progress: Progress = SILENT,
    ) -> None:
        self._model, self._plan, self._keep, self._progress = model, plan, keep, progress
        self._inside = contextlib.ExitStack()
        self._hold = self._inside.enter_context(one_pass(model.layers))
        room = Room.of(chunk_tokens)
        self._runs = BaseRuns(model, structure, runs, room=room, keep=keep, with_attention=with_attention)
        self._live = _Live(model, structure, self._runs, room)
        self._work = _Work(model.n_layers, sum(run.length for run in runs if run.known is None), progress)

    def __enter__(self) -> Pass:
        return self

    def __exit__(self, *exc: object) -> None:
        self._inside.close()
        self._runs.forget()

    def step(self, layer: int) -> None:
        """Take all runs and patched rows through one layer."""
        self._progress.check()
        live, work = self._live, self._work
        with self._hold(layer):
            base = self._runs.step(layer, live.company(layer, work))
            early, late = live.admit(self._plan(base))
            live.join(early, base.h_in)
            live.run(base, work)
            live.finish(base)
            live.join_behind(late, base)
        work.next_layer(live.tokens)

    def outcome(self, objects: Objects, *, keep_final: bool = False) -> Outcome:
        """What came out, once every layer had its step."""
        finals = self._runs.final
        final = torch.stack([finals[i] for i in range(len(finals))])
        wanted = torch.as_tensor(objects(final) if callable(objects) else objects)
        return Outcome(
            patches=self._live.patches,
            patched=self._live.logits(wanted),
            runs=object_logits(self._model, final, wanted),
            final=final,
            activations=self._runs.activations() if self._keep else {},
            patched_final=self._live.final() if keep_final else None,
        )


class _Work:
    """Counts packed tokens × layers, so that progress is in units of equal cost; rows to come are extrapolated."""

    def __init__(self, n_layers: int, base_tokens: int, progress: Progress) -> None:
        self._n_layers, self._base, self._progress = n_layers, base_tokens, progress
        self._done = self._layers = self._alive = 0

    def advance(self, tokens: int) -> None:
        """`tokens` patched tokens went through a layer."""
        self._done += tokens
        self._report()

    def next_layer(self, alive: int) -> None:
        """A layer is finished; `alive` patched tokens enter the next one."""
        self._layers += 1
        self._alive = alive
        self._report()

    def _report(self) -> None:
        left = self._n_layers - self._layers
        growth = self._alive / max(1, self._layers)
        expected = sum(self._alive + growth * i for i in range(left))
        done = self._done + self._base * self._layers
        self._progress.check()
        self._progress.update(done, max(done, 1, done + expected + self._base * left), "tracing")


class _Live:
    """The patched rows that are alive: admitted by layer, taken through the layers, read out at the end."""

    def __init__(self, model: MoeModel, structure: Structure, base_runs: BaseRuns, room: Room) -> None:
        self.model, self.structure, self.base_runs = model, structure, base_runs
        self.room = room
        self.patches: list[Patch] = []
        self.groups: dict[tuple[int, int], _Group] = {}
        # patches with steps at a layer that their rows go through, by (layer, is the step on the stream behind it?)
        self._acting: dict[tuple[int, bool], set[int]] = {}

    @property
    def tokens(self) -> int:
        return sum(len(group.rows) * group.span for group in self.groups.values())

    def admit(self, patches: Sequence[Patch]) -> tuple[list[int], list[int]]:
        """Number new patches: those that must run through their first layer, and those that can join behind it.

        A row can be made from its layer's unpatched output where all its first steps act on the stream, or on a
        block output that is simply added to the stream, and no two at one position (one may be undone by another).
        """
        early, late = [], []
        for patch in patches:
            first = [step for step in patch.steps if step.layer == patch.layer]
            places = [pos for step in first for pos in step.positions]
            follows = len(set(places)) == len(places) and all(map(self._can_follow, first))
            for step in patch.steps:
                if not (follows and step.layer == patch.layer):
                    self._acting.setdefault((step.layer, step.site == "residual"), set()).add(len(self.patches))
            (late if follows else early).append(len(self.patches))
            self.patches.append(patch)
        return early, late

    def _can_follow(self, step: Step) -> bool:
        if step.site == "moe":
            return self.structure.additive[step.layer] and not isinstance(step.source, Own)
        return step.site == "residual"

    def join(self, new: list[int], hidden: dict[int, torch.Tensor]) -> None:
        """New rows begin as their run's own hidden states."""
        by_shape: dict[tuple[int, int], list[int]] = {}
        for i in new:
            length = self.base_runs.runs[self.patches[i].run].length
            by_shape.setdefault((length, self.patches[i].start), []).append(i)
        for (length, start), members in by_shape.items():
            rows = torch.stack([hidden[self.patches[i].run][start:] for i in members])
            group = self.groups.get((length, start))
            if group is None:
                self.groups[length, start] = _Group(length, start, members, rows)
            else:
                group.rows = group.rows + members
                group.state = torch.cat([group.state, rows])

    def join_behind(self, new: list[int], base: BaseLayer) -> None:
        """New rows begin as their run's output of this layer, with its steps applied."""
        table = table_for(base, [step for i in new for step in self.patches[i].steps if step.layer == base.layer])
        self.join(new, base.h_out)
        fresh = set(new)
        for group in self.groups.values():
            for row in range(len(group.rows) - 1, -1, -1):
                if group.rows[row] not in fresh:
                    break
                patch = self.patches[group.rows[row]]
                for step in patch.steps:
                    if step.layer == base.layer:
                        apply_behind(group.state[row], group.start, step, base, patch.run, table)

    def finish(self, base: BaseLayer) -> None:
        """After a layer: steps of its live rows on the residual stream."""
        acting = self._acting.get((base.layer, True), ())
        for group in self.groups.values() if acting else ():
            for row, i in enumerate(group.rows):
                for step in self.patches[i].steps if i in acting else ():
                    if step.layer == base.layer and step.site == "residual":
                        apply_behind(group.state[row], group.start, step, base, self.patches[i].run, None)

    def logits(self, wanted: torch.Tensor) -> torch.Tensor:
        """Logits [n_patches, m] of each patch's objects (`wanted` has a row per run)."""
        if not self.patches:
            return torch.zeros(0, wanted.shape[1])
        owners = torch.tensor([patch.run for patch in self.patches])
        return object_logits(self.model, self.final(), wanted[owners])

    def final(self) -> torch.Tensor:
        """Last hidden state of each patch, [n_patches, d]."""
        out = torch.empty(len(self.patches), self.model.hidden, dtype=self.model.dtype, device=self.model.device)
        for group in self.groups.values():
            out[torch.tensor(group.rows, device=out.device)] = group.state[:, -1]
        return out

    # ---- taking the live rows through a layer

    def company(self, layer: int, work: _Work) -> Company | None:
        """Rows for the call of the unpatched runs: possible where nothing is done to any row inside the layer, as no
        value of those runs is needed then."""
        if not self.structure.packed[layer] or (layer, False) in self._acting:
            return None
        chosen: list[tuple[_Group, range]] = []

        def pieces(prefixes: Prefixes, room: int) -> list[Piece]:
            chosen[:] = next(self._chunks(room), []) if room > 0 else []
            return self._pieces(layer, chosen, prefixes)

        return Company(pieces, lambda outs: self._advance(chosen, outs, work), self._parts(layer))

    def run(self, base: BaseLayer, work: _Work) -> None:
        """Take every live row that is not ahead through the layer."""
        acting = sorted(self._acting.get((base.layer, False), ()))
        table = table_for(base, [step for i in acting for step in self._inner_steps(i, base.layer)])
        self.room.within(lambda: self._run(base, table, work))
        for group in self.groups.values():
            group.ahead = 0

    def _run(self, base: BaseLayer, table: ContributionTable | None, work: _Work) -> None:
        """`run` in chunks; what it finished is ahead when it is called again."""
        layer = base.layer
        module, parts, arguments = self.model.layers[layer], self._parts(layer), self.base_runs.arguments
        for slices in self._chunks(self.room.tokens):
            before, prefixes = self._prefixes(base, slices)
            pieces = [*before, *self._pieces(layer, slices, prefixes)]
            first = len(before)
            edits = [
                edit_for(step, pos, base, table, piece=first + p, row=row - rows.start)
                for p, (group, rows) in enumerate(slices)
                for row in rows
                for step in self._inner_steps(group.rows[row], layer)
                for pos in step.positions
            ]
            if self.structure.packed[layer]:
                outs = call_packed(module, layer, pieces, arguments, parts=parts, edits=edits)[first:]
            else:
                outs = [None] * len(slices)
                for members in rectangles(pieces):
                    got = call_full(module, layer, pieces, members, arguments, parts=parts, edits=edits)
                    for member, out in zip(members, got, strict=True):
                        outs[member - first] = out
            self._advance(slices, outs, work)

    def _advance(self, slices: list[tuple[_Group, range]], outs: Sequence[torch.Tensor], work: _Work) -> None:
        """The slices' rows are behind the layer."""
        for (group, rows), out in zip(slices, outs, strict=True):
            group.state[rows.start : rows.stop] = out
            group.ahead = rows.stop
        work.advance(sum(len(rows) * group.span for group, rows in slices))

    def _parts(self, layer: int) -> Parts:
        attention, tail = self.structure.attention_of(self.model, layer), self.structure.tail.get(layer, False)
        return Parts(attention, self.model.blocks.get(layer), self.model.n_experts, tail)

    def _inner_steps(self, i: int, layer: int) -> list[Step]:
        """The steps of patch i that act inside the layer."""
        if i not in self._acting.get((layer, False), ()):
            return []
        return [step for step in self.patches[i].steps if step.layer == layer and step.site != "residual"]

    def _chunks(self, most: int) -> Iterator[list[tuple[_Group, range]]]:
        """Live rows of all groups that are not ahead, in chunks that cost at most as much as `most` tokens.

        A row costs its own positions, its prefix's keys and values, and its share of the prefix piece.
        """
        slices: list[tuple[_Group, range]] = []
        cost = 0.0
        for group in self.groups.values():
            n = len(group.rows)
            owners = len({self.patches[i].run for i in group.rows})
            row = group.span + group.start * (self.structure.prefix_cost + owners / n)
            at = group.ahead
            while at < n:
                if slices and cost + row > most:
                    yield slices
                    slices, cost = [], 0.0
                rows = range(at, min(n, at + max(1, int((most - cost) / row))))
                slices.append((group, rows))
                cost += len(rows) * row
                at = rows.stop
        if slices:
            yield slices

    def _prefixes(self, base: BaseLayer, slices: list[tuple[_Group, range]]) -> tuple[list[Piece], Prefixes]:
        """The pieces of unpatched prefixes that the rows of a chunk need, and where in them to find each run's."""
        owners: dict[int, dict[int, int]] = {}  # length -> {run: row in that length's prefix piece}
        reach: dict[int, int] = {}
        for group, rows in slices:
            members = owners.setdefault(group.length, {})
            for row in rows:
                members.setdefault(self.patches[group.rows[row]].run, len(members))
            reach[group.length] = max(reach.get(group.length, 0), group.start)
        pieces: list[Piece] = []
        prefixes: Prefixes = {}
        for length, members in owners.items():
            if reach[length]:
                prefixes[length] = len(pieces), members
                hidden = torch.stack([base.h_in[run][: reach[length]] for run in members])
                table = [self.base_runs.table_keys[run] for run in members]
                pieces.append(Piece(hidden, length, 0, table, queries="none"))
        return pieces, prefixes

    def _pieces(self, layer: int, slices: list[tuple[_Group, range]], prefixes: Prefixes) -> list[Piece]:
        """One piece per slice."""
        pieces = []
        queries = "last" if layer == self.model.n_layers - 1 else "all"
        for group, rows in slices:
            runs = [self.patches[group.rows[row]].run for row in rows]
            table = [self.base_runs.table_keys[run] for run in runs]
            prefix = None
            if group.start:
                source, members = prefixes[group.length]
                prefix = (source, torch.tensor([members[run] for run in runs], device=group.state.device))
            state = group.state[rows.start : rows.stop]
            pieces.append(Piece(state, group.length, group.start, table, prefix, queries))
        return pieces
