"""The unpatched runs of a sweep, one layer at a time: computed in one packed call, or read from what is known.

`BaseRuns.step(l)` yields a `BaseLayer`: everything that patched rows of this layer need (hidden states before and
after, MoE outputs, expert contributions). Knows nothing of patches.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from .activations import Activations
from .corruption import noised
from .editing import Parts
from .hooks import outputs_of
from .moe import MoeModel, Watch, contributions, margins, near_ties, without_experts
from .packing import Piece, call_full, call_packed, record_layer_calls, rectangles
from .room import Room
from .structure import Structure


@dataclass
class Run:
    """One unpatched sequence: `ids`, and for a corrupt run the noise [n_subject, hidden] at positions `subject`.

    `known`: its activations from an earlier sweep, if any.
    """

    ids: tuple[int, ...]
    noise: torch.Tensor | None = None
    subject: tuple[int, ...] = ()
    known: Activations | None = None

    @property
    def length(self) -> int:
        return len(self.ids)


@dataclass
class _Stack:
    """All runs of one length: their indices, and per-layer tensors with one row per run."""

    runs: list[int]
    hidden: torch.Tensor  # [n, T, d], input of the layer about to run
    fresh: list[int]  # rows that are not known


Prefixes = dict[int, tuple[int, dict[int, int]]]
"""Where unpatched rows lie in a call: {sequence length: (index of their piece, {run: row in it})}."""


@dataclass(frozen=True)
class Company:
    """Patched rows that go through a layer in the call of the unpatched runs, so that its weights are read once.

    `pieces(prefixes, room)`: their pieces, of at most about `room` tokens; `take`: receives the outputs of those;
    `parts`: of the layer. Where memory runs out, `pieces` is asked again and must give what was not taken.
    """

    pieces: Callable[[Prefixes, int], list[Piece]]
    take: Callable[[list[torch.Tensor]], None]
    parts: Parts


@dataclass
class BaseLayer:
    """The runs at one layer, by run index. `room`: tokens to compute at a time. `h_in`, `h_out`: [T, d];
    `attention`: [T, d], only where it was asked for; MoE tensors only where the layer has a block."""

    model: MoeModel
    structure: Structure
    layer: int
    room: Room
    h_in: dict[int, torch.Tensor]
    h_out: dict[int, torch.Tensor] = field(default_factory=dict)
    attention: dict[int, torch.Tensor] = field(default_factory=dict)
    y: dict[int, torch.Tensor] = field(default_factory=dict)
    x: dict[int, torch.Tensor] = field(default_factory=dict)
    index: dict[int, torch.Tensor] = field(default_factory=dict)
    weight: dict[int, torch.Tensor] = field(default_factory=dict)
    margin: dict[int, torch.Tensor] = field(default_factory=dict)
    near_tie: dict[int, torch.Tensor] = field(default_factory=dict)
    block_input: dict[int, torch.Tensor] = field(default_factory=dict)
    _tables: dict[tuple[int, int], _Contributions] = field(default_factory=dict)

    def routed(self, run: int, pos: int) -> dict[int, float]:
        """{expert: router weight} of what a run routes at one position of this layer."""
        weights: dict[int, float] = {}
        for expert, weight in zip(self.index[run][pos].tolist(), self.weight[run][pos].float().tolist(), strict=True):
            if expert < self.model.n_experts:  # some families mark an unused slot with an index past the last expert
                weights[expert] = weights.get(expert, 0.0) + weight
        return weights

    def updates_at(self, places: Sequence[tuple[int, int]]) -> ContributionTable:
        """Expert contributions of every (run, pos) in `places`: those not asked for before are computed together."""
        new = [place for place in dict.fromkeys(places) if place not in self._tables]
        if new:
            self._tables |= dict.fromkeys(new, _Contributions(self, new))
        return ContributionTable(self._tables)


@dataclass(frozen=True)
class ContributionTable:
    """c[e] (and the shared part) for a set of (run, pos) at one layer, fp32."""

    _tables: dict[tuple[int, int], _Contributions]

    def expert(self, run: int, pos: int, expert: int) -> torch.Tensor:
        """c[l, pos, expert] of a run: [d], zero where the expert is not routed."""
        return self._tables[run, pos].expert((run, pos), expert)

    def shared(self, run: int, pos: int) -> torch.Tensor:
        """The shared expert's part of the block output: [d]."""
        return self._tables[run, pos].shared((run, pos))

    def updates(self, clean: int, corrupt: int, pos: int, experts: Sequence[int]) -> torch.Tensor:
        """δ[l, pos, e] of several experts between two runs: [n, d]."""
        row = {expert: i for i, expert in enumerate(experts)}
        out: torch.Tensor | None = None
        for run, sign in ((clean, 1), (corrupt, -1)):
            index, c = self._tables[run, pos].slots((run, pos))
            out = c.new_zeros(len(experts), c.shape[-1]) if out is None else out
            known = [(slot, row[e]) for slot, e in enumerate(index.tolist()) if e in row]
            if known:
                slots, rows = torch.tensor(known, device=c.device).T
                out.index_add_(0, rows, c[slots], alpha=sign)
        assert out is not None
        return out


class _Contributions:
    """What a `ContributionTable` has of places that were asked for together."""

    def __init__(self, base: BaseLayer, places: list[tuple[int, int]]) -> None:
        block = base.model.blocks[base.layer]
        self._row = {place: i for i, place in enumerate(places)}
        self._base = base

        def gather(source: dict[int, torch.Tensor]) -> torch.Tensor:
            return torch.stack([source[run][pos] for run, pos in places])

        self._index = gather(base.index)
        tail = base.structure.tail.get(base.layer, False)
        self._block_input = gather(base.block_input) if tail or base.structure.has_shared else None
        x, weight, given = gather(base.x), gather(base.weight), self._block_input if tail else None

        def compute() -> torch.Tensor:
            step = max(1, base.room.tokens // self._index.shape[1])
            return torch.cat([
                contributions(
                    block, x[at : at + step], self._index[at : at + step], weight[at : at + step],
                    None if given is None else given[at : at + step],
                ).float()
                for at in range(0, len(places), step)
            ])  # fmt: skip

        self._c = base.room.within(compute)
        self._index = self._index.cpu()
        self._shared: torch.Tensor | None = None

    def slots(self, place: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Routed experts [k] and their contributions [k, d]."""
        row = self._row[place]
        return self._index[row], self._c[row]

    def expert(self, place: tuple[int, int], expert: int) -> torch.Tensor:
        index, c = self.slots(place)
        slots = (index == expert).nonzero().flatten()
        return c[slots.to(c.device)].sum(0)

    def shared(self, place: tuple[int, int]) -> torch.Tensor:
        if self._shared is None:
            room, block, given = self._base.room, self._base.model.blocks[self._base.layer], self._block_input
            self._shared = room.within(
                lambda: torch.cat([without_experts(block, some).float() for some in given.split(room.tokens)])
            )
        return self._shared[self._row[place]]


class BaseRuns:
    """Runs going through the layers together. Call `step(l)` for l = 0, 1, ... in turn, inside the model's lock.

    With `keep`, `activations()` is complete after the last step for every run that was not known before. Attention
    outputs are not among what is known: `with_attention` runs every run anew.
    """

    def __init__(
        self,
        model: MoeModel,
        structure: Structure,
        runs: Sequence[Run],
        *,
        room: Room,
        keep: bool = True,
        with_attention: bool = False,
    ) -> None:
        if with_attention:
            runs = [dataclasses.replace(run, known=None) for run in runs]
        self.model, self.structure, self.runs = model, structure, list(runs)
        self.room, self.keep, self.with_attention = room, keep, with_attention
        self.arguments = structure.arguments
        self.table_keys = [self._record(i, run) for i, run in enumerate(self.runs)]
        self._stacks = self._start()
        self._parts: dict[int, dict[str, list[torch.Tensor]]] = {
            i: {} for i, run in enumerate(self.runs) if run.known is None
        }

    def _record(self, i: int, run: Run) -> object:
        """Record the model's layer arguments for this run; the key under which they are kept."""
        key: object = (run.ids, i) if self.arguments.by_content else run.length
        if key not in self.arguments.recorded:
            ids = torch.tensor([run.ids], device=self.model.device)
            with noised(self.model.embedding, [run.noise], [run.subject]):
                _, calls = record_layer_calls(self.model.model, self.model.layers, input_ids=ids)
            self.arguments.add(key, calls)
        return key

    def _start(self) -> list[_Stack]:
        """First-layer inputs, runs grouped by length."""
        by_length: dict[int, list[int]] = {}
        for i, run in enumerate(self.runs):
            by_length.setdefault(run.length, []).append(i)
        stacks = []
        for members in by_length.values():
            fresh = [row for row, i in enumerate(members) if self.runs[i].known is None]
            hidden: list[torch.Tensor | None] = [None] * len(members)
            if fresh:
                some = [self.runs[members[row]] for row in fresh]
                for row, values in zip(fresh, self.room.within(functools.partial(self._embedded, some)), strict=True):
                    hidden[row] = values
            for row, i in enumerate(members):
                known = self.runs[i].known
                if known is not None:
                    hidden[row] = known.resid[0].to(self.model.device)
            stacks.append(_Stack(members, torch.stack(hidden), fresh))  # type: ignore[arg-type]
        return stacks

    def _embedded(self, runs: Sequence[Run]) -> list[torch.Tensor]:
        """Input of the first layer, [T, d] for each of some runs of one length."""
        step, found = max(1, self.room.tokens // runs[0].length), []
        for at in range(0, len(runs), step):
            some = runs[at : at + step]
            ids = torch.tensor([run.ids for run in some], device=self.model.device)
            with noised(self.model.embedding, [r.noise for r in some], [r.subject for r in some]):
                found += record_layer_calls(self.model.model, self.model.layers, input_ids=ids)[0]
        return found

    def step(self, layer: int, company: Company | None = None) -> BaseLayer:
        """Take every run through layer `layer`. `company` comes along if all runs go through in one packed call."""
        base = BaseLayer(self.model, self.structure, layer, self.room, h_in={})
        for stack in self._stacks:
            for row, i in enumerate(stack.runs):
                base.h_in[i] = stack.hidden[row]
        self.room.within(lambda: self._compute(base, company))
        self._recall(base)
        for stack in self._stacks:
            stack.hidden = torch.stack([base.h_out[i] for i in stack.runs])
        self._remember(base)
        return base

    def forget(self) -> None:
        """Drop recorded layer arguments that belong to these runs alone."""
        if self.arguments.by_content:
            for key in self.table_keys:
                self.arguments.recorded.pop(key, None)

    @property
    def final(self) -> dict[int, torch.Tensor]:
        """After the last step: the output of the last layer at the last position, [d], by run index."""
        return {i: stack.hidden[row, -1] for stack in self._stacks for row, i in enumerate(stack.runs)}

    # ---- the parts of a step

    def _compute(self, base: BaseLayer, company: Company | None) -> None:
        layer = base.layer
        module = self.model.layers[layer]
        block = self.model.blocks.get(layer)
        attention = self.structure.attention_of(self.model, layer) if self.with_attention else None
        chunks = list(self._chunks())
        if len(chunks) != 1 or not self.structure.packed[layer] or any(run.known is not None for run in self.runs):
            company = None
        for pieces, owners in chunks:
            groups = [list(range(len(pieces)))] if self.structure.packed[layer] else rectangles(pieces)
            for members in groups:
                with contextlib.ExitStack() as stack:
                    watch = stack.enter_context(Watch(block, self.model.n_experts)) if block else None
                    mixed = stack.enter_context(outputs_of(attention)) if attention is not None else None
                    if self.structure.packed[layer]:
                        outs = self._call(module, layer, pieces, owners, company)
                    else:
                        outs = call_full(module, layer, pieces, members, self.arguments)
                for member, out in zip(members, outs, strict=True):
                    for row, i in enumerate(owners[member]):
                        base.h_out[i] = out[row]
                if watch:
                    self._split(base, watch.routing(), [owners[m] for m in members])
                if mixed:
                    self._divide(base.attention, mixed[0], [owners[m] for m in members])

    def _call(
        self, module: torch.nn.Module, layer: int, pieces: list[Piece], owners: list[list[int]], company: Company | None
    ) -> list[torch.Tensor]:
        """The packed call; with company its tokens lie behind the runs' own."""
        if company is None:
            return call_packed(module, layer, pieces, self.arguments)
        prefixes = {
            piece.length: (at, {run: row for row, run in enumerate(mine)})
            for at, (piece, mine) in enumerate(zip(pieces, owners, strict=True))
        }
        room = self.room.tokens - sum(piece.n * piece.span for piece in pieces)
        others = company.pieces(prefixes, room)
        outs = call_packed(module, layer, [*pieces, *others], self.arguments, parts=company.parts)
        company.take(outs[len(pieces) :])
        return [out.clone() for out in outs[: len(pieces)]]  # not a view that keeps the whole call's output

    def _chunks(self):  # noqa: ANN202 - generator of (pieces, run indices of each piece)
        pieces, owners, tokens = [], [], 0
        for stack in self._stacks:
            length = stack.hidden.shape[1]
            at = 0
            while at < len(stack.fresh):
                room = max(1, (self.room.tokens - tokens) // length)
                if tokens and tokens + length > self.room.tokens:
                    yield pieces, owners
                    pieces, owners, tokens = [], [], 0
                    continue
                rows = stack.fresh[at : at + room]
                at += len(rows)
                mine = [stack.runs[row] for row in rows]
                pieces.append(Piece(stack.hidden[rows], length, 0, [self.table_keys[i] for i in mine]))
                owners.append(mine)
                tokens += len(rows) * length
        if pieces:
            yield pieces, owners

    def _split(self, base: BaseLayer, seen, owners: list[list[int]]) -> None:  # noqa: ANN001
        n = sum(self.runs[run].length for group in owners for run in group)
        scores = None if seen.scores is None else seen.scores[:n]
        margin, tie = margins(scores, seen.k, n), near_ties(scores, seen.k, n)
        for name in ("y", "x", "index", "weight", "block_input"):
            if name != "block_input" or self.structure.needs_block_input:
                self._divide(getattr(base, name), getattr(seen, name), owners)
        self._divide(base.margin, margin[:, None], owners)
        self._divide(base.near_tie, tie[:, None], owners)
        for run in (i for group in owners for i in group):
            base.margin[run], base.near_tie[run] = base.margin[run][:, 0], base.near_tie[run][:, 0]

    def _divide(self, target: dict[int, torch.Tensor], values: torch.Tensor, owners: list[list[int]]) -> None:
        """Give each run its part of `values` (all runs' tokens one after the other, others' behind them)."""
        n = sum(self.runs[run].length for group in owners for run in group)
        flat, at = values.reshape(-1, values.shape[-1]).to(self.model.device), 0
        flat = flat[:n].clone() if flat.shape[0] > n else flat
        for run in (i for group in owners for i in group):
            target[run] = flat[at : at + self.runs[run].length]
            at += self.runs[run].length

    def _recall(self, base: BaseLayer) -> None:
        device = self.model.device
        for i, run in enumerate(self.runs):
            if run.known is None:
                continue
            base.h_out[i] = run.known.resid[base.layer + 1].to(device)
            if base.layer in self.model.blocks:
                m = self.model.moe_layers.index(base.layer)
                for name in ("y", "x", "index", "weight", "margin", "near_tie", "block_input"):
                    values = getattr(run.known, name)
                    if values is not None:
                        getattr(base, name)[i] = values[m].to(device)

    def _remember(self, base: BaseLayer) -> None:
        if not self.keep:
            return
        for i, parts in self._parts.items():
            if base.layer == 0:
                parts["resid"] = [base.h_in[i].cpu()]
            parts["resid"].append(base.h_out[i].cpu())
            for name in ("y", "x", "index", "weight", "margin", "near_tie", "block_input"):
                values = getattr(base, name)
                if i in values:
                    parts.setdefault(name, []).append(values[i].cpu())

    def activations(self) -> dict[int, Activations]:
        """After the last step: what each fresh run leaves behind (see `keep`), by run index."""
        return {
            i: Activations(**{name: torch.stack(values) for name, values in parts.items()})
            for i, parts in self._parts.items()
        }
