"""How a model's layers may be run, found by trying: which mix positions only by attention, which add their block's
output to the residual stream unchanged, which blocks have a shared expert or a transformation after the experts.

Probed once per model (it needs one pass over the weights) and stored with the load-time verdict.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .errors import ModelRefused
from .families import Block, sublayers
from .hooks import hooks, untuple
from .memory import bytes_per_token
from .moe import MoeModel, Routing, Watch, contributions, without_experts
from .packing import LayerArguments, Piece, call_full, call_packed, packed_mode, record_layer_calls
from .residual import factor, recorded, replayed
from .room import ran_out

PROBE_TOKENS = 7
_PROBE_START = 3


@dataclass
class Structure:
    """`packed[l]`: the layer is exact on the packed axis (else it runs on full-length rows). `additive[l]`: the MoE
    output is added to the stream as it is, so that a patched row may join after the layer. `branch[l]`: the factor with
    which it is added, None where a norm or the like stands between; `stream[l]`: the factor with which the stream
    itself passes the layer, None likewise (see `residual`). `local[l]`: within the layer the MoE output reaches no
    later position. `tail[l]`: experts' outputs are transformed after their sum. `has_shared`: some block
    has a shared expert. `sum_error`: largest relative difference of Σ contributions + shared from the block output.
    `reroutable`: every router selects some of its experts by one plain top-k, so that one can be masked there.
    `attention[l]`: name of the layer's attention sublayer, or of what stands in its place. `top_k`: routed experts per
    token.
    `bytes_per_token`: memory that a token takes inside a layer call, measured; `prefix_cost`: that of a position of a
    row's prefix, in tokens. `ids_inside`: token ids enter elsewhere than by the embeddings. `arguments`: recorded layer
    arguments; None where the layers cannot be run one at a time, so that every row is a forward pass of the whole model
    (`whole`). Then `rows_together`: rows of a batch do not change each other; `causal`: nor do later tokens earlier
    ones."""

    packed: list[bool]
    additive: dict[int, bool]
    branch: dict[int, float | None]
    stream: list[float | None]
    local: dict[int, bool]
    tail: dict[int, bool]
    has_shared: bool
    sum_error: float
    reroutable: bool
    top_k: int
    bytes_per_token: float
    prefix_cost: float
    attention: list[str]
    ids_inside: bool
    arguments: LayerArguments | None
    rows_together: bool = True
    causal: bool = True

    @property
    def whole(self) -> bool:
        """Every row is a forward pass of the whole model."""
        return self.arguments is None

    def mode(self, model: MoeModel) -> contextlib.AbstractContextManager[None]:
        """What a pass must run inside of, besides the model's lock."""
        return contextlib.nullcontext() if self.whole else packed_mode(model.model)

    @property
    def needs_block_input(self) -> bool:
        """Whether contributions or the shared part need the block's own input."""
        return self.has_shared or any(self.tail.values())

    def first_to_matter(self, layer: int, subject: int, length: int) -> int:
        """First position at which a change of the MoE output of `layer`, between runs that differ from position
        `subject` on, can change the last position's logits in a prompt of `length` tokens."""
        if not self.causal:
            return 0
        return length - 1 if layer == len(self.packed) - 1 and self.local.get(layer, False) else subject

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
            "local": {str(k): v for k, v in self.local.items()},
            "tail": {str(k): v for k, v in self.tail.items()}, "has_shared": self.has_shared,
            "sum_error": self.sum_error, "reroutable": self.reroutable, "top_k": self.top_k,
            "bytes_per_token": self.bytes_per_token, "prefix_cost": self.prefix_cost,
            "ids_inside": self.ids_inside, "whole": self.whole, "rows_together": self.rows_together,
            "causal": self.causal,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: dict[str, Any], model: MoeModel) -> Structure:
        """Read back what `to_dict` wrote."""
        return cls(
            packed=list(data["packed"]),
            additive={int(k): v for k, v in data["additive"].items()},
            branch={int(k): v for k, v in data["branch"].items()},
            stream=list(data["stream"]),
            local={int(k): v for k, v in data["local"].items()},
            tail={int(k): v for k, v in data["tail"].items()},
            has_shared=data["has_shared"],
            sum_error=data["sum_error"],
            reroutable=data["reroutable"],
            top_k=data["top_k"],
            bytes_per_token=data["bytes_per_token"],
            prefix_cost=data["prefix_cost"],
            attention=list(data["attention"]),
            ids_inside=data["ids_inside"],
            arguments=None if data["whole"] else _arguments(model),
            rows_together=data["rows_together"],
            causal=data["causal"],
        )


def _arguments(model: MoeModel) -> LayerArguments:
    with model.lock, packed_mode(model.model):
        return LayerArguments.probe(model.model, model.layers, int(model.config.vocab_size), model.device)


def _tolerance(dtype: torch.dtype, *, fp32: float, half: float) -> float:
    return fp32 if dtype == torch.float32 else half


def probe_ids(model: MoeModel) -> torch.Tensor:
    """Two short sequences of arbitrary tokens, [2, T]."""
    ids = torch.arange(2 * PROBE_TOKENS) * 7919 + 13
    return ids.remainder(int(model.config.vocab_size)).view(2, -1).to(model.device)


class Probing:
    """Runs two short token sequences through every layer in different ways and compares.

    Call `step(l)` for l = 0, 1, ... in turn, inside the model's lock and `packed_mode`; `structure` then holds
    everything about the layers so far, and `finish()` gives it when all are done.
    """

    def __init__(self, model: MoeModel) -> None:
        self._model, arguments = model, _arguments(model)
        self.structure = Structure(
            packed=[], additive={}, branch={}, stream=[], local={}, tail={}, has_shared=False, sum_error=0.0,
            reroutable=True, top_k=0, bytes_per_token=1.0, prefix_cost=1.0, attention=[],
            ids_inside=arguments.by_content, arguments=arguments,
        )  # fmt: skip
        ids = probe_ids(model)
        self._keys: list[Any] = []
        for row in range(2):
            key = ("probe", row) if arguments.by_content else PROBE_TOKENS
            arguments.add(key, record_layer_calls(model.model, model.layers, input_ids=ids[row : row + 1])[1])
            self._keys.append(key)
        self.hidden, _ = record_layer_calls(model.model, model.layers, input_ids=ids)

    def step(self, layer: int) -> None:
        """Find out about one layer. Raises `ModelRefused` (see `probe`)."""
        model, structure, before = self._model, self.structure, self.hidden
        self.hidden = _probe_layer(model, structure, layer, before, self._keys)
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
    rows = [Piece(hidden, PROBE_TOKENS, 0, keys)]
    with contextlib.ExitStack() as stack:
        watch = stack.enter_context(Watch(block, model.n_experts)) if block else None
        called = stack.enter_context(children_called(module))
        put_out = stack.enter_context(recorded(module))
        (want,) = call_full(module, layer, rows, [0], arguments)
    others = hidden.roll(1, -1)  # another input of the same size
    others[:, -1] = hidden[:, -1]
    changed = [Piece(others, PROBE_TOKENS, 0, keys)]
    again = functools.partial(call_full, module, layer, changed, [0], arguments)
    structure.attention.append(mixer(module, block, called, again, want.shape))
    structure.stream.append(_stream_factor(module, layer, hidden, keys, arguments, put_out, want))
    structure.packed.append(_packed_agrees(module, layer, hidden, keys, arguments, want))
    if watch:
        note_routing(model, structure, layer, watch)
        _probe_shift(model, structure, layer, rows, want)
    return want


@contextlib.contextmanager
def children_called(layer: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Collects {name: output} of the layer's parts that may be its attention sublayer, in the order of their calls."""
    seen: dict[str, torch.Tensor] = {}

    def note(name: str) -> Callable:
        def hook(module, args, output):  # noqa: ANN001, ANN202 - a torch hook
            first = untuple(output)
            if torch.is_tensor(first):
                seen[name] = first

        return hook

    with hooks(*(layer.get_submodule(name).register_forward_hook(note(name)) for name in sublayers(layer))):
        yield seen


def mixer(
    layer: nn.Module, block: Block | None, called: dict[str, torch.Tensor], again: Callable[[], None], shape: torch.Size
) -> str:
    """The sublayer that mixes positions: the first to put out something else at the last position when what the layer
    is given changes at all others. `called`: what the parts put out before; `again`: runs the changed layer."""
    with children_called(layer) as changed:
        again()
    for name, before in called.items():
        if before.shape != shape or name not in changed:
            continue
        if block is not None and block.module in set(layer.get_submodule(name).modules()):
            continue
        last, now = before[:, -1].float(), changed[name][:, -1].float()
        if (now - last).norm() > 1e-3 * last.norm():
            return name
    return ""


def _measure_memory(
    model: MoeModel, structure: Structure, hidden: torch.Tensor, keys: list[Any]
) -> tuple[float, float]:
    """(bytes per token of a call of the first MoE layer, bytes per position of a row's prefix ÷ that)."""
    layer = model.moe_layers[0]
    module, arguments, key = model.layers[layer], structure.arguments, keys[0]

    def whole_rows(n_tokens: int) -> None:
        rows = hidden[:1].expand(max(1, n_tokens // PROBE_TOKENS), -1, -1)
        pieces = [Piece(rows, PROBE_TOKENS, 0, [key] * rows.shape[0])]
        if structure.packed[layer]:
            call_packed(module, layer, pieces, arguments)
        else:
            call_full(module, layer, pieces, [0], arguments)

    def last_positions(n_rows: int) -> None:  # of rows with two different prefixes, which have to be copied together
        prefix = Piece(hidden[:, :-1], PROBE_TOKENS, 0, keys, queries="none")
        owner = torch.arange(n_rows, device=hidden.device) % 2
        table = [keys[i % 2] for i in range(n_rows)]
        piece = Piece(hidden[owner, -1:], PROBE_TOKENS, PROBE_TOKENS - 1, table, (0, owner))
        call_packed(module, layer, [prefix, piece], arguments)

    token = bytes_per_token(whole_rows, small=10 * PROBE_TOKENS, large=40 * PROBE_TOKENS)
    if not structure.packed[layer]:
        return token, 1.0  # whole rows are run
    row = bytes_per_token(last_positions, small=70, large=280)
    return token, max(0.0, (row - token) / (PROBE_TOKENS - 1) / token)


def _packed_agrees(module, layer, hidden, keys, arguments, want) -> bool:  # noqa: ANN001
    """Does a suffix on the packed axis, with its prefix elsewhere, give what the full rows give?"""
    suffix = hidden[:, _PROBE_START:]
    prefix = Piece(hidden[:, :_PROBE_START], PROBE_TOKENS, 0, keys, queries="none")
    piece = Piece(suffix, PROBE_TOKENS, _PROBE_START, keys, prefix=(0, torch.arange(hidden.shape[0])))
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


def note_routing(model: MoeModel, structure: Structure, layer: int, watch: Watch) -> None:
    """What a watched call of the layer's block tells. Raises `ModelRefused` where contributions do not add up to y."""
    seen = watch.routing()
    structure.top_k = max(structure.top_k, seen.k)
    plain = seen.scores is not None and len(watch.top_k.calls) == 1 and not watch.top_k.others
    structure.reroutable &= plain and seen.scores.shape[-1] > seen.k
    _probe_sum(model, structure, layer, seen)


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
    if block.pattern.rest_is_shared and (shared.norm(dim=-1).max() / scale).item() > 1e-7:
        structure.has_shared = True


def _probe_shift(model: MoeModel, structure: Structure, layer: int, rows: list[Piece], want: torch.Tensor) -> None:
    """Does a vector added to the block's output at one token come out of the layer there, unchanged or by some factor,
    and nowhere else?"""
    module, block = model.layers[layer], model.blocks[layer]
    vector = _large_vector(layer, want)

    def shifted(first: torch.Tensor) -> torch.Tensor:
        flat = first.reshape(-1, first.shape[-1]).clone()
        flat[_PROBE_START] = (flat[_PROBE_START].float() + vector.to(flat.device)).to(flat.dtype)
        return flat.view(first.shape)

    def moved(*handles: Any) -> torch.Tensor:
        with hooks(*handles):
            (got,) = call_full(module, layer, rows, [0], structure.arguments)
        return got[0].float() - want[0].float()

    by_block = moved(*block.changing(shifted))
    relative = _tolerance(want.dtype, fp32=1e-5, half=2.0**-6)
    limit = relative * vector.norm()
    structure.local[layer] = bool((by_block[_PROBE_START + 1 :].norm(dim=-1) <= limit).all())
    structure.additive[layer] = structure.local[layer] and bool((by_block[_PROBE_START] - vector).norm() <= limit)
    structure.branch[layer] = factor(by_block[_PROBE_START], vector, relative) if structure.local[layer] else None
    if block.beside is not None:
        behind = block.beside.register_forward_hook(lambda module, args, output: shifted(output))
        if not bool((moved(behind) - by_block).norm() <= limit):
            raise ModelRefused(
                f"Layer {layer} has a shared expert beside its MoE block, and does not simply add the two.",
                "What the MoE block puts out cannot be told; this model family is not supported.",
            )


def _stream_factor(module, layer, hidden, keys, arguments, put_out, want) -> float | None:  # noqa: ANN001
    """By which factor does a vector added to the layer's input come out, if what its parts put out stays the same?"""
    vector = _large_vector(layer, want)
    shifted = (hidden.float() + vector).to(hidden.dtype)
    try:
        with replayed(put_out):
            (got,) = call_full(module, layer, [Piece(shifted, PROBE_TOKENS, 0, keys)], [0], arguments)
    except (IndexError, RuntimeError):  # it runs differently on another input
        return None
    moved = got.float() - want.float()
    return factor(moved, shifted.float() - hidden.float(), _tolerance(want.dtype, fp32=1e-5, half=2.0**-6))


def _large_vector(seed: int, stream: torch.Tensor) -> torch.Tensor:
    """A random vector [d] as large as the stream itself, so that half precision can tell."""
    vector = torch.randn(stream.shape[-1], generator=torch.Generator("cpu").manual_seed(seed)).to(stream.device)
    return vector * (stream[:, -1].float().norm(dim=-1).mean() / vector.norm())
