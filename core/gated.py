"""One expert's weights as a gated MLP: Expert(h) = Σ_j a_j · w_out,j + b with a_j = f(w_gate,j · h, w_in,j · h).

Nothing of a layout is taken on trust: which matrix is which, which way round it lies, how gate and input rows share a
fused one and what f is are found by trying, on tokens for which the experts' own module says what it puts out. Where no
reading gives that, there is none. Knows one block at a time; names no family.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from .families import Block
from .moe import MoeModel, contributions, without_experts

TOLERANCE, TOLERANCE_HALF = 1e-4, 2.0**-5
"""Largest relative difference of a recomputed output that counts as equal: fp32, and half precision."""
_PROBE_WEIGHT = 0.7  # not 1: it must show whether it multiplies what an expert is given or what it puts out
_COLUMNS_AT_ONCE = 1024
Gate = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class NotReadable(Exception):
    """The expert's weights cannot be read as a gated MLP; the text says why, for people."""


@dataclass(frozen=True)
class GatedExpert:
    """One expert's neurons, fp32, on the model's device.

    `gate_rows`, `in_rows` [m, d_in] and their biases [m] (or None): pre-activations are x · rows + bias; `out_rows`
    [m, d]: what each neuron writes into the block output per unit of activation (in block space, whatever follows the
    experts' sum); `raw_rows` [m, d_out]: the same as it stands in the weights; `out_bias` [d] or None, in block
    space; `activate`: f; `error`: relative difference of the recomputed contributions from the model's own.
    """

    gate_rows: torch.Tensor
    in_rows: torch.Tensor
    gate_bias: torch.Tensor | None
    in_bias: torch.Tensor | None
    out_rows: torch.Tensor
    raw_rows: torch.Tensor
    out_bias: torch.Tensor | None
    activate: Gate
    weight_on_input: bool
    error: float

    def pre_activations(self, x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of gate and input, each [n, m], for what the expert receives [n, d_in] with router weights [n]."""
        x = x.float() * weight.float()[:, None] if self.weight_on_input else x.float()
        return _affine(x, self.gate_rows, self.gate_bias), _affine(x, self.in_rows, self.in_bias)

    def strength(self, weight: torch.Tensor) -> torch.Tensor:
        """What the neurons' outputs are multiplied with at each token, [n]: the router weight, or 1."""
        return torch.ones_like(weight).float() if self.weight_on_input else weight.float()

    def contribution(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """c recomputed from the neurons, [n, d]."""
        out = self.activate(*self.pre_activations(x, weight)) @ self.out_rows
        out = out if self.out_bias is None else out + self.out_bias
        return out * self.strength(weight)[:, None]


def _affine(x: torch.Tensor, rows: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return x @ rows.T if bias is None else x @ rows.T + bias


@torch.no_grad()
def read_expert(
    model: MoeModel, layer: int, expert: int, x: torch.Tensor, block_input: torch.Tensor | None
) -> GatedExpert:
    """The expert's neurons. Inside the model's lock, with the layer's weights in place.

    `x` [n, d_in]: some tokens as experts of the layer receive them (any, a few), on which the reading is checked;
    `block_input` [n, d]: theirs, where the block transforms the experts' sum. Raises `NotReadable`.
    """
    block = model.blocks[layer]
    index = torch.full((len(x), 1), expert, device=x.device)
    weight = torch.full((len(x), 1), _PROBE_WEIGHT, device=x.device, dtype=x.dtype)
    try:
        raw = block.pattern.run(block, x, index, weight)[:, 0].float().to(x.device)
    except (RuntimeError, IndexError) as error:
        raise NotReadable(f"The expert cannot be run alone ({type(error).__name__}).") from None
    matrices, vectors = _weights_of(block.experts, expert, model.n_experts, x.device)
    limit = TOLERANCE if model.dtype == torch.float32 else TOLERANCE_HALF
    size, g = raw.norm(dim=-1).max().clamp_min(1e-30), weight[:, 0]
    best = float("inf")
    for found in _readings(block, matrices, vectors, x.shape[-1], raw.shape[-1]):
        error = ((found.contribution(x, g) - raw).norm(dim=-1).max() / size).item()
        best = min(best, error)
        if error <= limit:
            return _in_block_space(model, layer, found, x, weight, index, block_input, limit)
    if best == float("inf"):
        raise NotReadable(
            f"Its weights are not those of a gated MLP (matrices: "
            f"{', '.join('×'.join(map(str, matrix.shape)) for matrix in matrices) or 'none'})."
        )
    raise NotReadable(
        f"Read as a gated MLP, its weights do not give what the expert puts out (relative difference {best:.0e}, "
        f"allowed {limit:.0e}): it computes something else."
    )


# ---- the weights of one expert


def _weights_of(
    experts: nn.Module, expert: int, n_experts: int, device: torch.device
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """(matrices, vectors) among the module's parameters that may belong to one expert alone, fp32 copies."""
    n = min((p.shape[0] for p in experts.parameters() if p.ndim == 3), default=n_experts)
    if expert >= n:
        raise NotReadable("It has no weights of its own: it puts out what it is given, or nothing.")
    matrices, vectors = [], []
    for parameter in experts.parameters():
        parameter = parameter.detach()
        if parameter.device.type == "meta":
            raise NotReadable("Its weights are not in memory.")
        if parameter.ndim == 3:
            matrices.append(_plain(parameter[expert], device))
        elif parameter.ndim == 2 and parameter.shape[0] == n:
            vectors.append(_plain(parameter[expert], device))
        elif parameter.ndim == 2 and parameter.shape[0] % n == 0:  # experts one below the other
            rows = parameter.shape[0] // n
            matrices.append(_plain(parameter[expert * rows : (expert + 1) * rows], device))
    return matrices, vectors


def _plain(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """fp32 numbers of their own, whatever number format they are stored in."""
    if type(tensor) not in (torch.Tensor, nn.Parameter):
        try:
            tensor = tensor.dequantize()
        except (RuntimeError, NotImplementedError, AttributeError):
            raise NotReadable(f"Its weights are quantised ({type(tensor).__name__}) and cannot be expanded.") from None
    return tensor.to(device, torch.float32, copy=True)


# ---- readings


def _readings(
    block: Block, matrices: list[torch.Tensor], vectors: list[torch.Tensor], d_in: int, d_out: int
) -> Iterator[GatedExpert]:
    """Every way in which matrices of these shapes may be a gated MLP from d_in to d_out."""
    gates = list(_activations(block))
    for first, last in itertools.permutations(matrices, 2):
        for rows, out in itertools.product(_laid(first, d_in), _laid(last, d_out)):
            if len(rows) == 2 * len(out):
                for split, gate_first, gate in [*_own_gate(block.experts, len(out), out.device), *_products(gates)]:
                    for in_bias, out_bias in _biases(vectors, len(rows), d_out):
                        halves = split(rows.T), (None, None) if in_bias is None else split(in_bias)
                        parts = [(half.T, bias) for half, bias in zip(*halves, strict=True)]
                        (g, g_bias), (u, u_bias) = parts if gate_first else parts[::-1]
                        yield _expert(block, g, u, g_bias, u_bias, out, out_bias, gate)
    for one, two, last in itertools.permutations(matrices, 3):
        for g, u, out in itertools.product(_laid(one, d_in), _laid(two, d_in), _laid(last, d_out)):
            if len(g) == len(u) == len(out):
                for activation in gates:
                    yield _expert(block, g, u, None, None, out, None, _times(activation))


def _expert(block: Block, g, u, g_bias, u_bias, out, out_bias, gate: Gate) -> GatedExpert:  # noqa: ANN001
    return GatedExpert(g, u, g_bias, u_bias, out, out, out_bias, gate, block.pattern.weight_on_input, float("nan"))


def _laid(matrix: torch.Tensor, width: int) -> list[torch.Tensor]:
    """The matrix with rows of that width: as it lies, on its side, both or neither."""
    return [way for way in (matrix, matrix.T) if way.shape[1] == width]


def _biases(
    vectors: list[torch.Tensor], n_in: int, n_out: int
) -> Iterator[tuple[torch.Tensor | None, torch.Tensor | None]]:
    into = [v for v in vectors if len(v) == n_in]
    behind = [v for v in vectors if len(v) == n_out]
    yield from itertools.product([*into, None], [*behind, None])


def _halves(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gate and input one behind the other on the last dimension."""
    return values.chunk(2, dim=-1)  # type: ignore[return-value]


def _interleaved(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gate and input in turn."""
    return values[..., 0::2], values[..., 1::2]


def _together(split: Callable, one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    """The inverse of the two above."""
    return torch.cat([one, two], -1) if split is _halves else torch.stack([one, two], -1).flatten(-2)


def _own_gate(experts: nn.Module, m: int, device: torch.device) -> list[tuple[Callable, bool, Gate]]:
    """How the experts' module itself makes m activations of 2 m pre-activations, where it has a method for that."""
    own = getattr(experts, "_apply_gate", None)
    if own is None:
        return []
    generator = torch.Generator().manual_seed(0)
    values = (torch.rand(4, 2 * m, generator=generator) * 0.6 - 0.3).to(device)
    for split in (_halves, _interleaved):

        def apply(one: torch.Tensor, two: torch.Tensor, split: Callable = split) -> torch.Tensor:
            return own(_together(split, one, two))

        one, two = split(values)
        try:
            before, after = apply(one, two), apply(one + 0.1 * (torch.arange(m, device=one.device) % 2 == 0), two)
        except RuntimeError:
            return []
        moved = (before != after).any(0)
        if before.shape != one.shape or not bool(moved[0::2].any()) or bool(moved[1::2].any()):
            continue  # here a neuron's two pre-activations lie elsewhere
        if _linear(lambda shift: apply(one, two + shift)):  # noqa: B023 - used at once
            return [(split, True, apply)]
        if _linear(lambda shift: apply(one + shift, two)):  # noqa: B023
            return [(split, False, lambda gate, into: apply(into, gate))]  # noqa: B023
    return []


def _linear(shifted: Callable[[float], torch.Tensor]) -> bool:
    """Whether a function of a shift moves in proportion to it."""
    low, middle, high = (shifted(by) for by in (0.0, 0.1, 0.2))
    return bool((low + high - 2 * middle).abs().max() <= 1e-3 * (high - low).abs().max())


def _products(activations: list[Callable]) -> Iterator[tuple[Callable, bool, Gate]]:
    for activation, split, gate_first in itertools.product(activations, (_halves, _interleaved), (True, False)):
        yield split, gate_first, _times(activation)


def _times(activation: Callable) -> Gate:
    return lambda gate, into: activation(gate) * into


def _activations(block: Block) -> Iterator[Callable]:
    """The activation functions that the block has at hand: functions, and modules without weights, of one tensor."""
    found: dict[str, Callable] = {}
    for module in (*block.experts.modules(), *block.module.modules()):
        for value in (*vars(module).values(), *module.children()):
            weights = isinstance(value, nn.Module) and any(True for _ in value.parameters())
            if callable(value) and not weights and not inspect.isclass(value) and _elementwise(value):
                found.setdefault(repr(value), value)
    yield from found.values()


def _elementwise(function: Callable) -> bool:
    values = torch.linspace(-1, 1, 5)
    try:
        out = function(values)
        return torch.is_tensor(out) and out.shape == values.shape and torch.equal(out[1:4], function(values[1:4]))
    except Exception:  # noqa: BLE001 - it is something else
        return False


# ---- behind the experts' sum


def _in_block_space(
    model: MoeModel,
    layer: int,
    found: GatedExpert,
    x: torch.Tensor,
    weight: torch.Tensor,
    index: torch.Tensor,
    block_input: torch.Tensor | None,
    limit: float,
) -> GatedExpert:
    """The reading with what its neurons write as it arrives in the block's output; checked again there."""
    block, raw = model.blocks[layer], found.raw_rows
    if model.structure.tail.get(layer, False):
        assert block_input is not None
        out = torch.cat([_mapped(block, some, block_input).to(x.device) for some in raw.split(_COLUMNS_AT_ONCE)])
        bias = None if found.out_bias is None else _mapped(block, found.out_bias[None], block_input)[0].to(x.device)
    else:
        out, bias, block_input = raw, found.out_bias, None
    done = dataclasses.replace(found, out_rows=out, out_bias=bias)
    want = contributions(block, x, index, weight, block_input)[:, 0].float()
    size = want.norm(dim=-1).max().clamp_min(1e-30)
    error = ((done.contribution(x, weight[:, 0]) - want).norm(dim=-1).max() / size).item()
    if not error <= limit:
        raise NotReadable(
            f"What follows the experts' sum in the block cannot be read neuron by neuron (relative difference "
            f"{error:.0e}, allowed {limit:.0e})."
        )
    return dataclasses.replace(done, error=error)


def _mapped(block: Block, values: torch.Tensor, block_input: torch.Tensor) -> torch.Tensor:
    """What comes out of the block when its experts put out `values` [n, d_out], less what comes out without: [n, d]."""
    given = block_input[:1].expand(len(values), -1)
    with block.pattern.putting_out(block, values):
        return (block.pattern.output(block, given) - without_experts(block, given)).float()
