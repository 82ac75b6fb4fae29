"""The slow exact way: every patched row is a row of a plain forward pass of the whole model, changed as it goes.

For families whose layers cannot be run one at a time with rows of their own: state beside the residual stream passes
from layer to layer, or tokens of one prompt meet outside attention. Costs about as much as hooks on batched forwards.
A `WholePass` stands in for `core.sweep.Pass`. Knows steps and runs; nothing of families, kinds or tables.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from .activations import Activations
from .base import BaseLayer, Run
from .corruption import noised
from .editing import Edit, Parts, edited
from .head import object_logits
from .hooks import hooks, outputs_of, retuple, untuple
from .moe import MoeModel, Watch, margins, near_ties
from .patches import Patch
from .progress import SILENT, Progress
from .room import Room
from .structure import Structure
from .sweep import Objects, Outcome, Pass, Plan
from .writing import edit_for, table_for, vector_of

_SPLIT = ("y", "x", "index", "weight", "block_input")


def pass_for(
    model: MoeModel, structure: Structure, runs: Sequence[Run], plan: Plan, **options: Any
) -> Pass | WholePass:
    """The pass that is right for the model (options as for `Pass`)."""
    return (WholePass if structure.whole else Pass)(model, structure, runs, plan, **options)


class WholePass:
    """As `Pass`: make it, enter it, call `step(l)` for l = 0, 1, ... in turn, leave it, ask for the `outcome`.

    All unpatched runs go through the model in the first step, all patches in the last one. Runs are computed even
    where they are known.
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
        self._model, self._structure, self._runs, self._plan = model, structure, list(runs), plan
        self._room, self._keep, self._attention = Room.of(chunk_tokens), keep, with_attention
        self._progress = progress
        self._bases = [BaseLayer(model, structure, layer, self._room, h_in={}) for layer in range(model.n_layers)]
        self._final: dict[int, torch.Tensor] = {}
        self._patches: list[Patch] = []
        self._patched: dict[int, torch.Tensor] = {}

    def __enter__(self) -> WholePass:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def step(self, layer: int) -> None:
        """Ask for the patches of a layer; in the last one, run them all."""
        self._progress.check()
        if layer == 0:
            for some in self._together(range(len(self._runs)), lambda i: i, self._final):
                self._record(some)
        self._patches += self._plan(self._bases[layer])
        if layer == self._model.n_layers - 1:
            for some in self._together(range(len(self._patches)), lambda i: self._patches[i].run, self._patched):
                self._run(some)

    def outcome(self, objects: Objects, *, keep_final: bool = False) -> Outcome:
        """What came out, once every layer had its step. Final states are what the unembedding receives."""
        final = torch.stack([self._final[i] for i in range(len(self._runs))])
        patched = torch.stack([self._patched[i] for i in range(len(self._patches))]) if self._patches else final[:0]
        wanted = torch.as_tensor(objects(final) if callable(objects) else objects)
        owners = torch.tensor([patch.run for patch in self._patches], dtype=torch.long)
        return Outcome(
            patches=self._patches,
            patched=object_logits(self._model, patched, wanted[owners]),
            runs=object_logits(self._model, final, wanted),
            final=final,
            activations=self._kept,
            patched_final=patched if keep_final else None,
        )

    # ---- forwards

    def _together(
        self, items: Sequence[int], run_of: Callable[[int], int], done: dict[int, torch.Tensor]
    ) -> Iterator[list[int]]:
        """Items that go through the model in one forward: of one length, as many as there is room for."""
        by_length: dict[int, list[int]] = {}
        for i in items:
            by_length.setdefault(self._runs[run_of(i)].length, []).append(i)
        for length, members in by_length.items():
            while left := [i for i in members if i not in done]:
                most = max(1, self._room.tokens // length) if self._structure.rows_together else 1
                yield left[:most]
                self._progress.check()
                self._progress.update(len(done), len(items), "tracing")

    def _forward(self, owners: Sequence[int]) -> torch.Tensor:
        """What the unembedding receives at the last position of copies of some runs, [n, d]."""
        runs = [self._runs[i] for i in owners]
        ids = torch.tensor([run.ids for run in runs], device=self._model.device)
        seen: list[torch.Tensor] = []
        handle = self._model.unembedding.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        with hooks(handle), noised(self._model.embedding, [r.noise for r in runs], [r.subject for r in runs]):
            self._model.model(input_ids=ids, use_cache=False)
        return seen[0][:, -1]

    def _record(self, some: list[int]) -> None:
        """Some unpatched runs, with everything that patches need of them."""
        model, structure = self._model, self._structure
        watches: dict[int, Watch] = {}
        streams: list[tuple[torch.Tensor, torch.Tensor]] = []
        mixed: dict[int, list[torch.Tensor]] = {}

        def passed(module, args, kwargs, output):  # noqa: ANN001, ANN202 - a torch hook
            streams.append((_stream(given_to(args, kwargs)), _stream(untuple(output))))

        def work() -> torch.Tensor:
            streams.clear()
            with contextlib.ExitStack() as stack:
                for layer in model.moe_layers:
                    watches[layer] = stack.enter_context(Watch(model.blocks[layer], model.n_experts))
                for layer in range(model.n_layers) if self._attention else ():
                    attention = structure.attention_of(model, layer)
                    if attention is not None:
                        mixed[layer] = stack.enter_context(outputs_of(attention))
                handles = [each.register_forward_hook(passed, with_kwargs=True) for each in model.layers]
                stack.enter_context(hooks(*handles))
                return self._forward(some)

        final = self._room.within(work)
        length, n = self._runs[some[0]].length, len(some)
        for layer, base in enumerate(self._bases):
            for target, values in zip((base.h_in, base.h_out), streams[layer], strict=True):
                target.update(zip(some, values, strict=True))
            if layer in mixed:
                base.attention.update(zip(some, mixed[layer][0].reshape(n, length, -1), strict=True))
            if layer in watches:
                seen = watches[layer].routing()
                rows = n * length
                noted = {name: getattr(seen, name) for name in _SPLIT}
                noted["margin"] = margins(seen.scores, seen.k, rows)
                noted["near_tie"] = near_ties(seen.scores, seen.k, rows)
                for name, values in noted.items():
                    if name != "block_input" or structure.needs_block_input:
                        getattr(base, name).update(zip(some, values.reshape(n, length, *values.shape[1:]), strict=True))
        self._final.update(zip(some, final, strict=True))

    def _run(self, some: list[int]) -> None:
        """Some patches of runs of one length."""
        patches = [self._patches[i] for i in some]
        length = self._runs[patches[0].run].length
        acting = sorted({step.layer for patch in patches for step in patch.steps})

        def work() -> torch.Tensor:
            with contextlib.ExitStack() as stack:
                for layer in acting:
                    stack.enter_context(self._edits(layer, patches, length))
                return self._forward([patch.run for patch in patches])

        before = self._room.tokens
        final = self._room.within(work) if len(some) == 1 else _or_fewer(self._room, work)
        if final is not None:
            self._patched.update(zip(some, final, strict=True))
        assert final is not None or self._room.tokens < before

    @contextlib.contextmanager
    def _edits(self, layer: int, patches: Sequence[Patch], length: int) -> Iterator[None]:
        """Everything that the patches do in one layer, for the forward inside; row i is patch i."""
        model, base = self._model, self._bases[layer]
        steps = [(row, step) for row, patch in enumerate(patches) for step in patch.steps if step.layer == layer]
        table = table_for(base, [step for _, step in steps])
        edits, behind = [], []
        for row, step in steps:
            for pos in step.positions:
                if step.site == "residual":
                    behind.append((row, pos, vector_of(step, pos, base, table), step.mode == "restore"))
                else:
                    edits.append(edit_for(step, pos, base, table, piece=0, row=row))

        def locate(edit: Edit) -> int:
            return edit.row * length + edit.pos

        def change(module, args, output):  # noqa: ANN001, ANN202 - a torch hook
            first = untuple(output).clone()
            for row, pos, vector, restore in behind:
                old = first[row, pos]
                vector = vector.view(old.shape).to(old.device)
                first[row, pos] = (vector if restore else old.float() + vector).to(old.dtype)
            return retuple(output, first)

        attention, tail = self._structure.attention_of(model, layer), self._structure.tail.get(layer, False)
        parts = Parts(attention, model.blocks.get(layer), model.n_experts, tail)
        handles = [model.layers[layer].register_forward_hook(change)] if behind else []
        with edited(parts, edits, locate), hooks(*handles):
            yield

    @property
    def _kept(self) -> dict[int, Activations]:
        """What each run that was not known leaves behind."""
        found = {}
        blocks = [self._bases[layer] for layer in self._model.moe_layers]
        for i, run in enumerate(self._runs if self._keep else ()):
            if run.known is None:
                names = [name for name in (*_SPLIT, "margin", "near_tie") if i in getattr(blocks[0], name)]
                parts = {name: torch.stack([getattr(base, name)[i].cpu() for base in blocks]) for name in names}
                stream = [self._bases[0].h_in[i], *(base.h_out[i] for base in self._bases)]
                found[i] = Activations(resid=torch.stack([each.cpu() for each in stream]), **parts)
        return found


def _or_fewer(room: Room, work: Callable[[], torch.Tensor]) -> torch.Tensor | None:
    """What `work()` returns, or None where memory ran out: then the room is smaller, and fewer rows are to be tried."""
    tried = False

    def once() -> torch.Tensor | None:
        nonlocal tried
        if tried:
            return None
        tried = True
        return work()

    return room.within(once)


def given_to(args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
    """The hidden states that a layer was called with."""
    return args[0] if args else kwargs["hidden_states"]


def _stream(hidden: torch.Tensor) -> torch.Tensor:
    """[n, T, ...] as [n, T, d]: several streams side by side count as one."""
    return hidden.reshape(*hidden.shape[:2], -1)
