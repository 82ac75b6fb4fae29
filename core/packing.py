"""Many sequences of many lengths on one token axis, run by unmodified decoder layers in one call.

A `Piece` is a stack of equally long rows: the positions start..length−1 of sequences whose earlier positions are
somebody else's (the `prefix`: rows of another piece, whose keys and values they attend to). All pieces of a call
lie one after the other on the axis [1, S, d]. Only attention needs to know: the registered function below groups
the tokens by piece, puts the prefix's keys and values in front, and calls the model's own kernel. Layers that mix
positions otherwise (mamba, linear attention, convolution) run on rebuilt full-length rows instead.

Knows nothing of clean, corrupt or patched.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .editing import Edit, Parts, edited
from .hooks import retuple, stub, untuple

ATTENTION_NAME = "expertscope_packed"


class NotPackable(RuntimeError):
    """The layer does something in or around its attention that the packed axis cannot do."""


@dataclass
class Piece:
    """`rows`: [n, length − start, d]. `prefix`: (index of an earlier piece, its row for each of the n rows).

    `table`: for each row, the key of the recorded layer arguments that belong to its sequence (see
    `LayerArguments`). `queries`: `all`, `last` (only the last position's output is needed) or `none` (the rows only
    serve others as prefix; their output is meaningless).
    """

    rows: torch.Tensor
    length: int
    start: int
    table: list[Any]
    prefix: tuple[int, torch.Tensor] | None = None
    queries: str = "all"

    @property
    def n(self) -> int:
        return self.rows.shape[0]

    @property
    def span(self) -> int:
        """Positions per row on the packed axis."""
        return self.rows.shape[1]


@dataclass
class _Plan:
    pieces: list[Piece]
    offsets: list[int]
    masks: Callable[[torch.Tensor, Piece], torch.Tensor]


_current = threading.local()


def packed_attention(module, query, key, value, attention_mask, **kwargs):  # noqa: ANN001, ANN003, ANN201
    """The attention function that layers call while a model is inside `packed_mode`."""
    kernel = getattr(_current, "kernel", None)
    kernel = kernel or sys.modules[type(module).__module__].eager_attention_forward
    plan: _Plan | None = getattr(_current, "plan", None)
    if plan is None:
        return kernel(module, query, key, value, attention_mask, **kwargs)
    if any("indices" in name and value is not None for name, value in kwargs.items()):
        raise NotPackable("This attention is given the positions that an index selected.")
    heads, kv_heads = query.shape[1], key.shape[1]

    def rows_of(tensor: torch.Tensor, n_heads: int, piece: Piece, offset: int) -> torch.Tensor:
        flat = tensor[0, :, offset : offset + piece.n * piece.span]  # [heads, n * span, hd]
        return flat.view(n_heads, piece.n, piece.span, -1).transpose(0, 1)

    out = None
    for piece, offset in zip(plan.pieces, plan.offsets, strict=True):
        if piece.queries == "none":
            continue
        q = rows_of(query, heads, piece, offset)
        k, v = rows_of(key, kv_heads, piece, offset), rows_of(value, kv_heads, piece, offset)
        if piece.start:
            assert piece.prefix is not None
            source, row = piece.prefix
            origin, at = plan.pieces[source], plan.offsets[source]
            k_before = rows_of(key, kv_heads, origin, at)[:, :, : piece.start]
            v_before = rows_of(value, kv_heads, origin, at)[:, :, : piece.start]
            k = torch.cat([_pick(k_before, row), k], 2)
            v = torch.cat([_pick(v_before, row), v], 2)
        mask = plan.masks(attention_mask, piece)[..., piece.start :, : k.shape[2]].to(q.device)
        if piece.queries == "last":
            q, mask = q[:, :, -1:], mask[..., -1:, :]
        got = untuple(kernel(module, q, k, v, mask, **kwargs))  # [n, span or 1, heads, hd]
        if out is None:
            out = got.new_zeros((1, query.shape[2], *got.shape[2:]))
        view = out[0, offset : offset + piece.n * piece.span].view(piece.n, piece.span, *got.shape[2:])
        if piece.queries == "last":
            view[:, -1:] = got
        else:
            view.copy_(got)
    return out, None


def _pick(before: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """Rows `row` of `before`; no copy where there is only one to choose from."""
    if before.shape[0] == 1:
        return before.expand(row.shape[0], -1, -1, -1)
    return before[row.to(before.device)]


ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, packed_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, eager_mask)  # without it masks silently become None


@contextlib.contextmanager
def packed_mode(model: nn.Module) -> Iterator[None]:
    """Route the model's attention through `packed_attention`; put its own implementation back at the end.

    Changes the shared model: only inside the model's lock.
    """
    config = model.config.get_text_config()
    previous = config._attn_implementation
    if previous == ATTENTION_NAME:  # inside already
        yield
        return
    _current.kernel = sdpa_attention_forward if previous == "sdpa" else None
    _current.native = config, previous
    model.set_attn_implementation(ATTENTION_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(previous)
        _current.kernel = _current.plan = _current.native = None


@contextlib.contextmanager
def _native_attention() -> Iterator[None]:
    """Inside `packed_mode`: the model's own implementation for a moment. Some families ask for its name and do more
    than call it (attention to positions that an index selects)."""
    config, own = _current.native
    config._attn_implementation = own
    try:
        yield
    finally:
        config._attn_implementation = ATTENTION_NAME


# ---- what the model passes to its layers -------------------------------------------------------------------------


def record_layer_calls(
    model: nn.Module, layers: nn.ModuleList, **inputs: Any
) -> tuple[torch.Tensor, list[tuple[tuple, dict]]]:
    """Run the model with its layers stubbed: (input of the first layer [B, T, d], [(args, kwargs) per layer]).

    The unembedding is stubbed too: nobody asks for logits, and its table may be on the disk.
    """
    calls: list[tuple[tuple, dict]] = []
    first: list[torch.Tensor] = []
    with contextlib.ExitStack() as stack:
        for layer in layers:

            def forward(hidden=None, *args, **kwargs):  # noqa: ANN001, ANN202, ANN002, ANN003
                if hidden is None:
                    hidden = kwargs.pop("hidden_states")
                if not first:
                    first.append(hidden)
                calls.append((args, kwargs))
                return hidden

            stack.enter_context(stub(layer, forward))
        stack.enter_context(stub(model.get_output_embeddings(), lambda hidden: hidden[..., :1]))
        with torch.no_grad():
            model(use_cache=False, logits_to_keep=1, **inputs)
    return first[0], calls


@dataclass
class LayerArguments:
    """The model's own arguments for its layers (masks, rotary tables, ...), recorded per sequence kind.

    `axes[l]`: for each tensor leaf of layer l's arguments the axis that follows the sequence length, None where
    none does, or `mask` where two do. `by_content`: the leaves depend on token ids or embeddings, so that every
    sequence needs its own recording; otherwise one per length serves all.
    """

    axes: list[list[int | str | None]]
    by_content: bool
    recorded: dict[Any, list[tuple[list[Any], Any]]] = field(default_factory=dict)

    @classmethod
    def probe(cls, model: nn.Module, layers: nn.ModuleList, vocabulary: int, device: torch.device) -> LayerArguments:
        """Find the axes by recording two lengths, and `by_content` by recording two texts of one length."""
        step = max(1, vocabulary // 11)
        a = torch.arange(1, 6, device=device)[None] * step % vocabulary
        b = torch.cat([a, a[:, :1]], 1)
        other = (a + step // 2 + 1) % vocabulary
        at5 = [tree_flatten(call)[0] for call in record_layer_calls(model, layers, input_ids=a)[1]]
        at6 = [tree_flatten(call)[0] for call in record_layer_calls(model, layers, input_ids=b)[1]]
        alt = [tree_flatten(call)[0] for call in record_layer_calls(model, layers, input_ids=other)[1]]
        axes = [[_axis(x, y) for x, y in zip(p, q, strict=True)] for p, q in zip(at5, at6, strict=True)]
        by_content = any(
            torch.is_tensor(x) and not torch.equal(x, y)
            for p, q in zip(at5, alt, strict=True)
            for x, y in zip(p, q, strict=True)
        )
        return cls(axes=axes, by_content=by_content)

    def add(self, key: Any, calls: list[tuple[tuple, dict]]) -> None:
        """Keep one recording (batch size 1) under `key`."""
        if key not in self.recorded:
            self.recorded[key] = [tree_flatten(call) for call in calls]

    def of_full_rows(self, layer: int, keys: Sequence[Any]) -> tuple[tuple, dict]:
        """Arguments for a batch of full-length rows of one length."""
        distinct = list(dict.fromkeys(keys))
        leaves, spec = self.recorded[distinct[0]][layer]
        out = []
        for i, leaf in enumerate(leaves):
            axis = self.axes[layer][i]
            if torch.is_tensor(leaf) and axis is not None:
                if len(distinct) > 1 and leaf.shape[0] == 1 and axis != 0:
                    leaf = torch.cat([self.recorded[key][layer][0][i] for key in keys])
                elif leaf.shape[0] == 1 and (leaf.ndim == 2 or axis == "mask"):
                    leaf = leaf.expand(len(keys), *leaf.shape[1:])
            out.append(leaf)
        return tree_unflatten(out, spec)

    def packed(self, layer: int, pieces: Sequence[Piece]) -> tuple[tuple, dict, Callable]:
        """Arguments for the packed axis, and the function that finds the mask of a piece in the attention call."""
        keys = list(dict.fromkeys(key for piece in pieces for key in piece.table))
        lengths = {key: piece.length for piece in pieces for key in piece.table}
        longest = max(keys, key=lambda key: lengths[key])
        leaves, spec = self.recorded[longest][layer]
        offsets, total = {}, 0
        for key in keys:
            offsets[key], total = total, total + lengths[key]
        gather, out = None, []
        masks: dict[int, int] = {}
        for i, leaf in enumerate(leaves):
            axis = self.axes[layer][i]
            if not torch.is_tensor(leaf) or axis is None:
                out.append(leaf)
            elif axis == "mask":
                masks[leaf.data_ptr()] = i
                out.append(leaf)
            else:
                parts = [self.recorded[key][layer][0][i] for key in keys]
                table = parts[0] if len(parts) == 1 else torch.cat(parts, axis)
                if gather is None:
                    gather = torch.cat([_positions(piece, offsets) for piece in pieces])
                out.append(table.index_select(axis, gather.to(table.device)))

        def mask_of(given: torch.Tensor, piece: Piece) -> torch.Tensor:
            leaf = masks.get(given.data_ptr())
            if leaf is None:
                raise NotPackable("This layer makes an attention mask of its own.")
            if len(keys) == 1:
                return given[..., : piece.length, : piece.length]
            return self.recorded[piece.table[0]][layer][0][leaf]

        args, kwargs = tree_unflatten(out, spec)
        return args, kwargs, mask_of


def _axis(x: Any, y: Any) -> int | str | None:
    """The axis along which leaf `x` grows with the sequence (y is one token longer)."""
    if not torch.is_tensor(x) or not torch.is_tensor(y) or x.ndim != y.ndim:
        return None
    grown = [d for d, (a, b) in enumerate(zip(x.shape, y.shape, strict=True)) if a != b]
    if len(grown) > 1:
        return "mask"
    return grown[0] if grown else None


def _positions(piece: Piece, offsets: dict[Any, int]) -> torch.Tensor:
    """Indices of the piece's tokens into the concatenated tables, [n * span]."""
    rows = torch.tensor([offsets[key] for key in piece.table])
    steps = torch.arange(piece.start, piece.start + piece.span)
    return (rows[:, None] + steps).reshape(-1)


# ---- calling a layer -----------------------------------------------------------------------------------------------


def call_packed(
    layer: nn.Module,
    index: int,
    pieces: list[Piece],
    arguments: LayerArguments,
    *,
    parts: Parts | None = None,
    edits: Sequence[Edit] = (),
) -> list[torch.Tensor]:
    """Outputs [n, span, d] of each piece after decoder layer `index`, in one call. Inside `packed_mode` only.

    With `parts` the layer's MoE block runs only on the tokens whose output is needed (see `Piece.queries`), and
    `edits` are applied; other tokens' outputs are meaningless.
    """
    hidden = torch.cat([piece.rows.reshape(-1, piece.rows.shape[-1]) for piece in pieces])[None]
    offsets, total = [], 0
    for piece in pieces:
        offsets.append(total)
        total += piece.n * piece.span
    args, kwargs, mask_of = arguments.packed(index, pieces)
    with contextlib.ExitStack() as stack:
        needed = None
        if parts is not None and parts.trimmable(edits):
            module = parts.block.module
            needed = _needed(pieces, offsets)
            if needed is not None:
                stack.enter_context(stub(module, _on_tokens(module.forward, needed.to(hidden.device))))
        stack.enter_context(edited(parts, edits, lambda e: _packed_index(e, pieces, offsets), needed))
        _current.plan = _Plan(pieces, offsets, mask_of)
        stack.callback(setattr, _current, "plan", None)
        with torch.no_grad():
            out = untuple(layer(hidden, *args, **kwargs))[0].to(hidden.device)  # a layer may be on another GPU
    return [
        out[offset : offset + piece.n * piece.span].view(piece.n, piece.span, -1)
        for piece, offset in zip(pieces, offsets, strict=True)
    ]


def call_full(
    layer: nn.Module,
    index: int,
    pieces: list[Piece],
    members: Sequence[int],
    arguments: LayerArguments,
    *,
    parts: Parts | None = None,
    edits: Sequence[Edit] = (),
) -> list[torch.Tensor]:
    """As `call_packed` for the pieces `members` (all of one sequence length), by full-length rows.

    Exact for layers that mix positions in their own way, with the model's own attention implementation, at the price
    of computing every prefix again. Inside `packed_mode` only.
    """
    rows = torch.cat([full_rows(pieces, pieces[i]) for i in members])
    firsts, at = {}, 0
    for i in members:
        firsts[i], at = at, at + pieces[i].n
    length = rows.shape[1]
    args, kwargs = arguments.of_full_rows(index, [key for i in members for key in pieces[i].table])
    here = [edit for edit in edits if edit.piece in firsts]
    where = edited(parts, here, lambda e: (firsts[e.piece] + e.row) * length + e.pos)
    with where, _native_attention(), torch.no_grad():
        got = untuple(layer(rows, *args, **kwargs)).to(rows.device)
    return [got[firsts[i] : firsts[i] + pieces[i].n, pieces[i].start :] for i in members]


def rectangles(pieces: list[Piece]) -> list[list[int]]:
    """Indices of the pieces that compute something, grouped by sequence length."""
    groups: dict[int, list[int]] = {}
    for i, piece in enumerate(pieces):
        if piece.queries != "none":
            groups.setdefault(piece.length, []).append(i)
    return list(groups.values())


def full_rows(pieces: list[Piece], piece: Piece) -> torch.Tensor:
    """The piece's rows with their prefix in front: [n, length, d]."""
    if not piece.start:
        return piece.rows
    assert piece.prefix is not None
    source, row = piece.prefix
    return torch.cat([pieces[source].rows[row, : piece.start], piece.rows], 1)


def _needed(pieces: list[Piece], offsets: list[int]) -> torch.Tensor | None:
    """Packed indices of the tokens whose output is needed; None if that is all of them."""
    if all(piece.queries == "all" for piece in pieces):
        return None
    parts = []
    for piece, offset in zip(pieces, offsets, strict=True):
        if piece.queries == "all":
            parts.append(torch.arange(offset, offset + piece.n * piece.span))
        elif piece.queries == "last":
            parts.append(offset + torch.arange(1, piece.n + 1) * piece.span - 1)
    return torch.cat(parts)


def _packed_index(edit: Edit, pieces: list[Piece], offsets: list[int]) -> int:
    piece = pieces[edit.piece]
    return offsets[edit.piece] + edit.row * piece.span + edit.pos - piece.start


def _on_tokens(forward: Callable, tokens: torch.Tensor) -> Callable:
    """A block forward that computes only `tokens` of the packed axis and leaves zeros elsewhere."""

    def trimmed(hidden, *args, **kwargs):  # noqa: ANN001, ANN202, ANN002, ANN003
        here = tokens.to(hidden.device)
        some = forward(hidden[:, here], *args, **kwargs)
        full = torch.zeros_like(hidden)
        full[:, here] = untuple(some)
        return retuple(some, full)

    return trimmed
