"""How a model's layers may be run, found by trying: which mix positions only by attention, which add their block's
output to the residual stream unchanged, which blocks have a shared expert or a transformation after the experts.

Probed once per model (it needs one pass over the weights) and stored with the load-time verdict.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .errors import ModelRefused
from .hooks import hooks, retuple, untuple
from .memory import bytes_per_token
from .moe import Block, MoeModel, Routing, Watch, contributions, without_experts
from .packing import LayerArguments, Piece, call_full, call_packed, packed_mode, record_layer_calls
from .residual import factor, recorded, replayed
from .room import ran_out
from .weights import one_pass

_PROBE_TOKENS = 7
_PROBE_START = 3


@dataclass
class Structure:
    """`packed[l]`: the layer is exact on the packed axis (else it runs on full-length rows). `additive[l]`: the MoE
    output is added to the stream as it is, so that a patched row may join after the layer. `branch[l]`: the factor with
    which it is added, None where a norm or the like stands between; `stream[l]`: the factor with which the stream
    itself passes the layer, None likewise (see `residual`). `tail[l]`: experts' outputs are transformed after their
    sum. `has_shared`: some block has a shared expert. `sum_error`: largest relative difference of Σ contributions +
    shared from the block output. `reroutable`: every router selects by one plain top-k, so that an expert can be masked
    there. `attention[l]`: name of the layer's attention sublayer, or of what stands in its place. `top_k`: routed
    experts per token. `bytes_per_token`: memory that a token takes inside a layer call, measured; `prefix_cost`: that
    of a position of a row's prefix, in tokens. `arguments`: recorded layer arguments."""

    packed: list[bool]
    additive: dict[int, bool]
    branch: dict[int, float | None]
    stream: list[float | None]
    tail: dict[int, bool]
    has_shared: bool
    sum_error: float
    reroutable: bool
    top_k: int
    bytes_per_token: float
    prefix_cost: float
    attention: list[str]
    arguments: LayerArguments

    @property
    def needs_block_input(self) -> bool:
        """Whether contributions or the shared part need the block's own input."""
        return self.has_shared or any(self.tail.values())

    def attention_of(self, model: MoeModel, layer: int) -> nn.Module | None:
        """The attention sublayer of a layer, or what stands in its place; None where the layer has neither."""
        name = self.attention[layer]
        return model.layers[layer].get_submodule(name) if name else None

    def to_dict(self) -> dict[str, Any]:
        """JSON values, for the store; the recorded arguments are made anew."""
        return {
            "attention": self.attention,
            "packed": self.packed, "additive": {str(k): v for k, v in self.additive.items()},
            "branch": {str(k): v for k, v in self.branch.items()}, "stream": self.stream,
            "tail": {str(k): v for k, v in self.tail.items()}, "has_shared": self.has_shared,
            "sum_error": self.sum_error, "reroutable": self.reroutable, "top_k": self.top_k,
            "bytes_per_token": self.bytes_per_token, "prefix_cost": self.prefix_cost,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: dict[str, Any], model: MoeModel) -> Structure:
        """Read back what `to_dict` wrote."""
        return cls(
            packed=list(data["packed"]),
            additive={int(k): v for k, v in data["additive"].items()},
            branch={int(k): v for k, v in data["branch"].items()},
            stream=list(data["stream"]),
            tail={int(k): v for k, v in data["tail"].items()},
            has_shared=data["has_shared"],
            sum_error=data["sum_error"],
            reroutable=data["reroutable"],
            top_k=data["top_k"],
            bytes_per_token=data["bytes_per_token"],
            prefix_cost=data["prefix_cost"],
            attention=list(data["attention"]),
            arguments=_arguments(model),
        )


def _arguments(model: MoeModel) -> LayerArguments:
    with model.lock, packed_mode(model.model):
        return LayerArguments.probe(model.model, model.layers, int(model.config.vocab_size), model.device)


def _tolerance(dtype: torch.dtype, *, fp32: float, half: float) -> float:
    return fp32 if dtype == torch.float32 else half


@torch.no_grad()
def probe(model: MoeModel) -> Structure:
    """Find out the structure of a model in a pass of its own over the weights. Inside no lock of yours.

    Raises `ModelRefused` where the experts' contributions do not add up to the block's output.
    """
    with model.lock, packed_mode(model.model), one_pass(model.layers) as hold:
        probing = Probing(model)
        for layer in range(model.n_layers):
            with hold(layer):
                probing.step(layer)
        return probing.finish()


class Probing:
    """Runs two short token sequences through every layer in different ways and compares.

    Call `step(l)` for l = 0, 1, ... in turn, inside the model's lock and `packed_mode`; `structure` then holds
    everything about the layers so far, and `finish()` gives it when all are done.
    """

    def __init__(self, model: MoeModel) -> None:
        self._model, arguments = model, _arguments(model)
        self.structure = Structure([], {}, {}, [], {}, False, 0.0, True, 0, 1.0, 1.0, [], arguments)
        vocabulary = int(model.config.vocab_size)
        ids = (torch.arange(2 * _PROBE_TOKENS) * 7919 + 13).remainder(vocabulary).view(2, -1).to(model.device)
        self._keys: list[Any] = []
        for row in range(2):
            key = ("probe", row) if arguments.by_content else _PROBE_TOKENS
            arguments.add(key, record_layer_calls(model.model, model.layers, input_ids=ids[row : row + 1])[1])
            self._keys.append(key)
        self._hidden, _ = record_layer_calls(model.model, model.layers, input_ids=ids)

    def step(self, layer: int) -> None:
        """Find out about one layer. Raises `ModelRefused` (see `probe`)."""
        model, structure, before = self._model, self.structure, self._hidden
        self._hidden = _probe_layer(model, structure, layer, before, self._keys)
        if layer == model.moe_layers[0]:
            structure.bytes_per_token, structure.prefix_cost = _measure_memory(model, structure, before, self._keys)

    def finish(self) -> Structure:
        """The structure, once every layer had its step."""
        done = len(self.structure.packed)
        if done != self._model.n_layers:
            raise ModelRefused(
                f"Only {done} of the model's {self._model.n_layers} layers take part in a forward pass.",
                "Its family is not supported.",
            )
        for key in set(self._keys):
            del self.structure.arguments.recorded[key]
        return self.structure


def _probe_layer(
    model: MoeModel, structure: Structure, layer: int, hidden: torch.Tensor, keys: list[Any]
) -> torch.Tensor:
    module, block, arguments = model.layers[layer], model.blocks.get(layer), structure.arguments
    rows = [Piece(hidden, _PROBE_TOKENS, 0, keys)]
    with contextlib.ExitStack() as stack:
        watch = stack.enter_context(Watch(block, model.n_experts)) if block else None
        called = stack.enter_context(_children_called(module))
        put_out = stack.enter_context(recorded(module))
        (want,) = call_full(module, layer, rows, [0], arguments)
    structure.attention.append(_mixer(module, block, called, want.shape))
    structure.stream.append(_stream_factor(module, layer, hidden, keys, arguments, put_out, want))
    structure.packed.append(_packed_agrees(module, layer, hidden, keys, arguments, want))
    if watch:
        seen = watch.routing()
        structure.top_k = max(structure.top_k, seen.k)
        structure.reroutable &= seen.scores is not None and len(watch.top_k.calls) == 1 and not watch.top_k.others
        _probe_sum(model, structure, layer, seen)
        structure.additive[layer], structure.branch[layer] = _joins(module, layer, rows, arguments, block.module, want)
    return want


@contextlib.contextmanager
def _children_called(layer: nn.Module) -> Iterator[list[tuple[str, nn.Module, torch.Size]]]:
    """Collects (name, child, output shape) of the layer's direct children, in the order of their calls."""
    seen: list[tuple[str, nn.Module, torch.Size]] = []

    def note(name: str) -> Callable:
        def hook(module, args, output):  # noqa: ANN001, ANN202 - a torch hook
            first = untuple(output)
            if torch.is_tensor(first):
                seen.append((name, module, first.shape))

        return hook

    with hooks(*(child.register_forward_hook(note(name)) for name, child in layer.named_children())):
        yield seen


def _mixer(layer: nn.Module, block: Block | None, called: list[tuple[str, nn.Module, torch.Size]], shape) -> str:  # noqa: ANN001
    """The sublayer that mixes positions: the first child with matrices that puts out a stream and is no MoE block."""
    for name, child, put_out in called:
        matrices = any(p.ndim >= 2 for p in child.parameters())
        if matrices and put_out == shape and (block is None or block.module not in set(child.modules())):
            return name
    return ""


def _measure_memory(
    model: MoeModel, structure: Structure, hidden: torch.Tensor, keys: list[Any]
) -> tuple[float, float]:
    """(bytes per token of a call of the first MoE layer, bytes per position of a row's prefix ÷ that)."""
    layer = model.moe_layers[0]
    module, arguments, key = model.layers[layer], structure.arguments, keys[0]

    def whole_rows(n_tokens: int) -> None:
        rows = hidden[:1].expand(max(1, n_tokens // _PROBE_TOKENS), -1, -1)
        pieces = [Piece(rows, _PROBE_TOKENS, 0, [key] * rows.shape[0])]
        if structure.packed[layer]:
            call_packed(module, layer, pieces, arguments)
        else:
            call_full(module, layer, pieces, [0], arguments)

    def last_positions(n_rows: int) -> None:  # of rows with two different prefixes, which have to be copied together
        prefix = Piece(hidden[:, :-1], _PROBE_TOKENS, 0, keys, queries="none")
        owner = torch.arange(n_rows, device=hidden.device) % 2
        table = [keys[i % 2] for i in range(n_rows)]
        piece = Piece(hidden[owner, -1:], _PROBE_TOKENS, _PROBE_TOKENS - 1, table, (0, owner))
        call_packed(module, layer, [prefix, piece], arguments)

    token = bytes_per_token(whole_rows, small=10 * _PROBE_TOKENS, large=40 * _PROBE_TOKENS)
    if not structure.packed[layer]:
        return token, 1.0  # whole rows are run
    row = bytes_per_token(last_positions, small=70, large=280)
    return token, max(0.0, (row - token) / (_PROBE_TOKENS - 1) / token)


def _packed_agrees(module, layer, hidden, keys, arguments, want) -> bool:  # noqa: ANN001
    """Does a suffix on the packed axis, with its prefix elsewhere, give what the full rows give?"""
    suffix = hidden[:, _PROBE_START:]
    prefix = Piece(hidden[:, :_PROBE_START], _PROBE_TOKENS, 0, keys, queries="none")
    piece = Piece(suffix, _PROBE_TOKENS, _PROBE_START, keys, prefix=(0, torch.arange(hidden.shape[0])))
    try:
        _, got = call_packed(module, layer, [prefix, piece], arguments)
    except (RuntimeError, ValueError, IndexError, AttributeError, AssertionError) as error:
        if ran_out(error):
            raise
        return False  # a layer that cannot even run on this axis
    wanted = want[:, _PROBE_START:].float()
    moved = (wanted - suffix.float()).norm(dim=-1)  # what the layer does, so that a large stream hides nothing
    error = (got.float() - wanted).norm(dim=-1)
    limit = _tolerance(hidden.dtype, fp32=1e-4, half=2.0**-5)
    floor = _tolerance(hidden.dtype, fp32=1e-6, half=2.0**-7) * wanted.norm(dim=-1)
    return bool((error <= limit * moved + floor).all())


def _probe_sum(model: MoeModel, structure: Structure, layer: int, seen: Routing) -> None:
    """Σ contributions + shared = block output, with or without the transformation after the experts."""
    block, y = model.blocks[layer], seen.y.float()
    shared = without_experts(block, seen.block_input).float()
    plain = contributions(block, seen.x, seen.index, seen.weight)
    scale = y.norm(dim=-1).max().clamp_min(1e-30)
    limit = _tolerance(model.dtype, fp32=5e-6, half=2.0**-7)
    error = float("inf")
    if plain.shape[-1] == y.shape[-1]:
        error = ((plain.float().sum(1) + shared - y).norm(dim=-1).max() / scale).item()
    structure.tail[layer] = error > limit
    if structure.tail[layer]:
        mapped = contributions(block, seen.x, seen.index, seen.weight, seen.block_input)
        error = ((mapped.float().sum(1) + shared - y).norm(dim=-1).max() / scale).item()
    if not error <= limit:
        raise ModelRefused(
            f"In layer {layer} the experts' contributions do not add up to the MoE block's output "
            f"(relative difference {error:.1e}, allowed {limit:.1e}).",
            "This model family is not supported: a trace of it would be wrong.",
        )
    structure.sum_error = max(structure.sum_error, error)
    if (shared.norm(dim=-1).max() / scale).item() > 1e-7:
        structure.has_shared = True


def _joins(module, layer, rows, arguments, block, want) -> tuple[bool, float | None]:  # noqa: ANN001
    """Does a vector added to the block's output come out of the layer unchanged? And by which factor, if by one?"""
    vector = _large_vector(layer, want)

    def shift(_module, args, output):  # noqa: ANN001, ANN202 - a torch hook
        first = untuple(output)
        flat = first.reshape(-1, first.shape[-1]).clone()
        flat[_PROBE_TOKENS - 1] = (flat[_PROBE_TOKENS - 1].float() + vector).to(flat.dtype)
        return retuple(output, flat.view(first.shape))

    with hooks(block.register_forward_hook(shift)):
        (got,) = call_full(module, layer, rows, [0], arguments)
    moved = got[0, -1].float() - want[0, -1].float()
    limit = _tolerance(want.dtype, fp32=1e-5, half=2.0**-6)
    return bool((moved - vector).norm() <= limit * vector.norm()), factor(moved, vector, limit)


def _stream_factor(module, layer, hidden, keys, arguments, put_out, want) -> float | None:  # noqa: ANN001
    """By which factor does a vector added to the layer's input come out, if what its parts put out stays the same?"""
    vector = _large_vector(layer, want)
    shifted = (hidden.float() + vector).to(hidden.dtype)
    try:
        with replayed(put_out):
            (got,) = call_full(module, layer, [Piece(shifted, _PROBE_TOKENS, 0, keys)], [0], arguments)
    except (IndexError, RuntimeError):  # it runs differently on another input
        return None
    moved = got.float() - want.float()
    return factor(moved, shifted.float() - hidden.float(), _tolerance(want.dtype, fp32=1e-5, half=2.0**-6))


def _large_vector(seed: int, stream: torch.Tensor) -> torch.Tensor:
    """A random vector [d] as large as the stream itself, so that half precision can tell."""
    vector = torch.randn(stream.shape[-1], generator=torch.Generator("cpu").manual_seed(seed)).to(stream.device)
    return vector * (stream[:, -1].float().norm(dim=-1).mean() / vector.norm())
