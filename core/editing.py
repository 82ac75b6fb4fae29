"""Changing what a layer's parts put out for single tokens, while the layer runs.

An `Edit` is one change at one token. All edits of a call are gathered into a few hooks that are gone when the call is
over. Knows the parts of one layer; nothing of rows, runs or the sweep.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .families import Block
from .hooks import hooks, retuple, untuple
from .moe import contributions, without_experts
from .patches import SHARED

ATTENTION, MOE, ROUTER = "attention", "moe", "router"


@dataclass(frozen=True)
class Parts:
    """What can be edited in one layer: the attention sublayer (or what stands in its place) and the MoE block.

    `tail`: the block transforms its experts' output after the sum.
    """

    attention: nn.Module | None
    block: Block | None
    n_experts: int
    tail: bool = False

    def trimmable(self, edits: Sequence[Edit]) -> bool:
        """Whether the block may run on some of a call's tokens only (to map contributions through what follows the
        experts, and for the shared expert's, the block is called again, with tokens of its own)."""
        own = [edit for edit in edits if edit.site == MOE and edit.value is None]
        again = any(self.tail or SHARED in edit.experts for edit in own)
        return self.block is not None and self.block.sees_stream and not again


@dataclass(frozen=True)
class Edit:
    """One change during a call, at row `row`, position `pos` of piece `piece`.

    `site`: `attention` or `moe` (what that part puts out), or `router` (`experts` are masked where top-k selects).
    `value` [d], fp32, is written over the output (`restore`) or added to it. Without a value, `scale` × what `experts`
    contribute in this very call is added; several of those at one token multiply (1 + `scale`).
    """

    piece: int
    row: int
    pos: int
    site: str
    value: torch.Tensor | None = None
    restore: bool = False
    experts: tuple[int | str, ...] = ()
    scale: float = 1.0


@dataclass
class _Again:
    """`now`: an edit runs the block once more, on tokens of its own; nothing is to be changed in that."""

    now: bool = False


@contextlib.contextmanager
def edited(
    parts: Parts | None, edits: Sequence[Edit], locate: Callable[[Edit], int], kept: torch.Tensor | None = None
) -> Iterator[None]:
    """Apply `edits` to everything that runs inside.

    `locate` gives the index of an edit's token on the call's token axis; `kept`: the tokens (ascending) that the block
    really runs on, None for all.
    """
    if not edits:
        yield
        return
    assert parts is not None
    again = _Again()
    with contextlib.ExitStack() as stack:
        written = [e for e in edits if e.site == ATTENTION]
        if written:
            assert parts.attention is not None
            stack.enter_context(hooks(parts.attention.register_forward_hook(_writer(written, locate))))
        on_block = [e for e in edits if e.site == MOE]
        if on_block:
            assert parts.block is not None
            stack.enter_context(_block_edited(parts, on_block, locate, kept, again))
        masked = _placed([e for e in edits if e.site == ROUTER], locate, kept)
        if masked:
            assert parts.block is not None
            stack.enter_context(_during(parts.block.router, _MaskedTopK(masked, parts.n_experts, again)))
        yield


def _writer(edits: Sequence[Edit], locate: Callable[[Edit], int]) -> Callable:
    """A forward hook that writes or adds the edits' values."""
    write = _writing([(edit, locate(edit)) for edit in edits])
    return lambda module, args, output: retuple(output, write(untuple(output)))


def _writing(placed: Sequence[tuple[Edit, int]]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Writes or adds the edits' values at their tokens; sums are taken in fp32."""
    at = torch.tensor([token for _, token in placed])
    values = torch.stack([edit.value for edit, _ in placed])  # type: ignore[misc]
    restore = torch.tensor([edit.restore for edit, _ in placed])[:, None]

    def write(first: torch.Tensor) -> torch.Tensor:
        flat = first.reshape(-1, first.shape[-1]).clone()
        device = flat.device
        for some in _distinct(at):  # several edits of one token apply one after the other
            where, wanted = at[some].to(device), values[some].to(device)
            flat[where] = torch.where(restore[some].to(device), wanted, flat[where].float() + wanted).to(flat.dtype)
        return flat.view(first.shape)

    return write


def _distinct(at: torch.Tensor) -> list[list[int]]:
    """Indices of `at` in rounds, no token twice in a round."""
    rounds: list[list[int]] = []
    taken: list[set[int]] = []
    for i, token in enumerate(at.tolist()):
        for some, seen in zip(rounds, taken, strict=True):
            if token not in seen:
                some.append(i)
                seen.add(token)
                break
        else:
            rounds.append([i])
            taken.append({token})
    return rounds


def _placed(
    edits: Sequence[Edit], locate: Callable[[Edit], int], kept: torch.Tensor | None
) -> list[tuple[Edit, int]]:
    """Each edit with its token's row inside the block; edits at tokens that the block does not run on fall away
    (their output is not needed)."""
    if kept is None:
        return [(edit, locate(edit)) for edit in edits]
    rows = {token: row for row, token in enumerate(kept.tolist())}
    return [(edit, rows[locate(edit)]) for edit in edits if locate(edit) in rows]


@contextlib.contextmanager
def _block_edited(
    parts: Parts, edits: Sequence[Edit], locate: Callable[[Edit], int], kept: torch.Tensor | None, again: _Again
) -> Iterator[None]:
    """Changes y where it is (see `Block.changing`): first what depends on the call's own contributions, then the rest.

    `_placed` gives a token's row where the block runs, `locate` that in what comes out of it.
    """
    block = parts.block
    assert block is not None
    inside = block.norm is not None  # y is seen while the block still runs
    own = _placed([e for e in edits if e.value is None], locate, kept)
    given = [e for e in edits if e.value is not None]
    places = _placed(given, locate, kept) if inside else [(edit, locate(edit)) for edit in given]
    write = _writing(places) if places else None
    seen: dict[str, Any] = {}

    def routed(*given: torch.Tensor) -> None:
        seen.setdefault("routed", given)  # contributions run the experts again

    def block_called(module, args, kwargs):  # noqa: ANN001, ANN202 - a torch hook
        seen.setdefault("input", args[0] if args else next(v for v in kwargs.values() if torch.is_tensor(v)))

    def change(y: torch.Tensor) -> torch.Tensor | None:
        if "done" in seen:
            return None
        seen["done"] = True
        if own:
            again.now = True
            y = _with_own(parts, own, [row if inside else locate(edit) for edit, row in own], y, seen)
            again.now = False
        return y if write is None else write(y)

    handles = block.changing(change)
    if own:
        handles += block.pattern.listen(block, routed)
        handles.append(block.module.register_forward_pre_hook(block_called, with_kwargs=True))
    silent = [locate(edit) for edit in given if edit.restore]  # written into the other part already
    handles += block.silencing(silent, unless=lambda: again.now)
    with hooks(*handles):
        yield


def _with_own(
    parts: Parts, placed: Sequence[tuple[Edit, int]], at: Sequence[int], y: torch.Tensor, seen: dict[str, Any]
) -> torch.Tensor:
    """y with `scale` × what the edits' experts contribute in the call itself added at tokens `at`."""
    assert parts.block is not None
    x, index, weight = seen["routed"]
    index = index.reshape(-1, index.shape[-1])
    rows = torch.tensor([row for _, row in placed], device=index.device)
    again = parts.tail or any(SHARED in edit.experts for edit, _ in placed)
    block_input = seen["input"].reshape(-1, seen["input"].shape[-1])[rows] if again else None
    x, weight = x.reshape(-1, x.shape[-1])[rows], weight.reshape(index.shape)[rows]
    index = index[rows]
    c = contributions(parts.block, x, index, weight, block_input if parts.tail else None)
    slots = torch.where((index >= 0) & (index < parts.n_experts), index, parts.n_experts)
    if again:  # the shared expert in a slot behind the routed ones
        c = torch.cat([c, without_experts(parts.block, block_input)[:, None].to(c)], 1)
        slots = torch.cat([slots, torch.full_like(slots[:, :1], parts.n_experts + 1)], 1)
    flat = y.reshape(-1, y.shape[-1]).clone()
    row_of = {token: i for i, token in enumerate(at)}
    left = torch.ones(len(placed), parts.n_experts + 2, device=index.device)  # of each expert, of none, of the shared
    for token, (edit, _) in zip(at, placed, strict=True):  # edits of one token multiply: out twice is out
        columns = [parts.n_experts + 1 if expert == SHARED else int(expert) for expert in edit.experts]
        left[row_of[token], columns] *= 1 + edit.scale
    for token, i in row_of.items():
        part = ((left[i, slots[i]] - 1)[:, None] * c[i].float()).sum(0)
        flat[token] = (flat[token].float() + part).to(flat.dtype)
    return flat.view(y.shape)


@contextlib.contextmanager
def _during(module: torch.nn.Module, mode: TorchFunctionMode) -> Iterator[None]:
    """The mode is on while `module` is called."""
    with contextlib.ExitStack() as inside:

        def called(module, args):  # noqa: ANN001, ANN202 - a torch hook
            inside.enter_context(mode)

        def done(module, args, output):  # noqa: ANN001, ANN202
            inside.close()

        with hooks(module.register_forward_pre_hook(called), module.register_forward_hook(done)):
            yield


class _MaskedTopK(TorchFunctionMode):
    """Masks experts in the tensor that the router's top-k selects from, for single tokens; the scores stay."""

    def __init__(self, placed: Sequence[tuple[Edit, int]], width: int, again: _Again) -> None:
        super().__init__()
        self._again = again
        pairs = [(row, int(expert)) for edit, row in placed for expert in edit.experts]
        self._rows = torch.tensor([row for row, _ in pairs])
        self._experts = torch.tensor([expert for _, expert in pairs])
        self._width = width

    def __torch_function__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204 - torch's signature
        kwargs = dict(kwargs or {})
        if func in (torch.topk, torch.Tensor.topk) and not self._again.now:
            scores = args[0] if args else kwargs["input"]
            if scores.shape[-1] == self._width:
                masked = scores.reshape(-1, self._width).clone()
                masked[self._rows.to(scores.device), self._experts.to(scores.device)] = -torch.inf
                masked = masked.view(scores.shape)
                if args:
                    args = (masked, *args[1:])
                else:
                    kwargs["input"] = masked
        return func(*args, **kwargs)
