"""Where a MoE block's parts are, and the declared exceptions: families whose block does not follow the pattern.

The pattern: a module with a child `experts` that takes (hidden states [N, d], routed indices [N, k], router weights
[N, k]); what the module puts out is the MoE-block output y of protocol.md. Everything else in the engine goes through
`Block` and `Pattern`, so an exception is a subclass of a few lines here, found by the name of the block's class, and
needs nothing anywhere else. That what is declared is true of a model is seen to by the load-time checks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .hooks import hooks, retuple, stub, untuple

Tell = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]
"""Receives what is routed: x [N, d_in], index [N, k], weight [N, k]."""


class Pattern:
    """How the routing of a block is read and its experts are run; this class is the rule, subclasses the exceptions.

    `rest_is_shared`: what the block puts out without its routed experts is a shared expert. `weight_on_input`: the
    router weight multiplies what an expert is given, not what it puts out.
    """

    rest_is_shared = True
    weight_on_input = False

    def listen(self, block: Block, tell: Tell) -> list[Any]:
        """Register hooks that call `tell` once in each call of the block."""

        def called(module, args, kwargs):  # noqa: ANN001, ANN202 - a torch hook
            values = [*args, *kwargs.values()][:3]
            if len(values) == 3:
                tell(*values)

        return [block.experts.register_forward_pre_hook(called, with_kwargs=True)]

    def muting(self, block: Block, keep: int | None) -> list[Any]:
        """Register hooks that set all router weights to zero but those of expert `keep` (None: all of them)."""

        def mute(module, args, kwargs):  # noqa: ANN001, ANN202 - a torch hook
            values = [*args, *kwargs.values()]
            values[2] = _kept(values[1].view(values[2].shape), values[2], keep)
            return tuple(values[: len(args)]), dict(zip(kwargs, values[len(args) :], strict=True))

        return [block.experts.register_forward_pre_hook(mute, with_kwargs=True)]

    def run(self, block: Block, x: torch.Tensor, index: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """What the experts put out for each routed slot alone, [N, k, d_out]: one slot per row."""
        n, k = index.shape
        out = block.experts(x.repeat_interleave(k, 0), index.reshape(-1, 1), weight.reshape(-1, 1))
        return untuple(out).reshape(n, k, -1)

    @contextlib.contextmanager
    def putting_out(self, block: Block, value: torch.Tensor | None) -> Iterator[None]:
        """Inside, the experts put out `value` [N, d_out] (None: zeros), whatever they are given."""

        def fixed(hidden, *args, **kwargs):  # noqa: ANN001, ANN202 - stands in for the experts' forward
            return torch.zeros_like(hidden) if value is None else value.reshape(hidden.shape).to(hidden)

        with stub(block.experts, fixed):
            yield

    def output(self, block: Block, block_input: torch.Tensor) -> torch.Tensor:
        """y of some tokens [N, d] by a call of the block alone."""
        seen: list[torch.Tensor] = []
        with hooks(*block.reading(seen.append)):
            block.module(block_input[None])
            if block.beside is not None:
                block.beside(block_input[None])
        return seen[0].reshape(block_input.shape[0], -1)


@dataclass(frozen=True)
class Block:
    """One MoE block of decoder layer `layer`.

    `module`: what is called with the block's input; `experts`: its fused experts; `router`: the module during whose
    call the experts are selected. y is what `module` puts out, unless: `beside`, a shared expert that the decoder
    layer runs on the same input and adds (y is the sum); `norm`, the module's last act (y is what it is given).
    """

    layer: int
    module: nn.Module
    experts: nn.Module
    pattern: Pattern
    router: nn.Module
    beside: nn.Module | None = None
    norm: nn.Module | None = None

    @property
    def sees_stream(self) -> bool:
        """The module takes the layer's tokens as they come, [1, N, d], so that it may be called with some of them."""
        return self.module is not self.experts

    def reading(self, tell: Callable[[torch.Tensor], None]) -> list[Any]:
        """Register hooks that call `tell` with y, [.., d], in each call of the block."""
        if self.norm is not None:
            return [self.norm.register_forward_pre_hook(lambda module, args: tell(args[0]))]
        if self.beside is None:
            return [self.module.register_forward_hook(lambda module, args, output: tell(untuple(output)))]
        parts: dict[nn.Module, torch.Tensor] = {}

        def both(module, args, output):  # noqa: ANN001, ANN202 - a torch hook
            parts[module] = untuple(output)
            if len(parts) == 2:
                a, b = parts.values()
                parts.clear()
                tell(a.reshape(b.shape) + b)

        return [part.register_forward_hook(both) for part in (self.module, self.beside)]

    def changing(self, change: Callable[[torch.Tensor], torch.Tensor | None]) -> list[Any]:
        """Register hooks that put `change(y)` in y's place (None: leave it) in each call of the block.

        With `beside`, what is changed is the module's part of y: writing y means `silencing` the other part too.
        """

        def before(module, args):  # noqa: ANN001, ANN202 - a torch hook
            changed = change(args[0])
            return None if changed is None else (changed, *args[1:])

        def behind(module, args, output):  # noqa: ANN001, ANN202
            changed = change(untuple(output))
            return None if changed is None else retuple(output, changed)

        if self.norm is not None:
            return [self.norm.register_forward_pre_hook(before)]
        return [self.module.register_forward_hook(behind)]

    def silencing(self, tokens: Sequence[int], *, unless: Callable[[], bool] = lambda: False) -> list[Any]:
        """Register hooks that put zeros in the place of what `beside` puts out at some tokens of the call; a call
        during which `unless()` holds is left alone."""

        def silent(module, args, output):  # noqa: ANN001, ANN202 - a torch hook
            if unless():
                return output
            flat = output.reshape(-1, output.shape[-1]).clone()
            flat[list(tokens)] = 0
            return flat.view(output.shape)

        return [] if self.beside is None or not tokens else [self.beside.register_forward_hook(silent)]


def _kept(index: torch.Tensor, weight: torch.Tensor, keep: int | None) -> torch.Tensor:
    return torch.where(index == (-1 if keep is None else keep), weight, torch.zeros_like(weight))


class _ScaledInput(Pattern):
    """llama4: the scores multiply what the experts are given, and every expert gets every token (times zero where it
    is not routed). The experts take all experts' tokens, sorted: [n_experts × M, d]."""

    weight_on_input = True

    def listen(self, block: Block, tell: Tell) -> list[Any]:
        def called(module, args, output):  # noqa: ANN001, ANN202 - a torch hook
            scores = output[0]
            index = scores.topk(module.top_k, dim=-1).indices
            tell(args[0], index, scores.gather(-1, index))

        return [block.router.register_forward_hook(called)]

    def muting(self, block: Block, keep: int | None) -> list[Any]:
        def mute(module, args, output):  # noqa: ANN001, ANN202 - a torch hook
            expert = torch.arange(output[0].shape[-1], device=output[0].device)
            return _kept(expert.expand(output[0].shape), output[0], keep), *output[1:]

        return [block.router.register_forward_hook(mute)]

    def run(self, block: Block, x: torch.Tensor, index: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        n, k = index.shape
        given = (x[:, None] * weight[..., None].to(x.dtype)).reshape(n * k, -1)
        return _sorted_by_expert(block.experts, given, index.reshape(-1), block.experts.num_experts).view(n, k, -1)


def _sorted_by_expert(experts: nn.Module, given: torch.Tensor, expert: torch.Tensor, n: int) -> torch.Tensor:
    """Run experts that take [n × M, d], M rows for each expert (zeros fill up), on row i for `expert[i]`."""
    sizes = torch.bincount(expert, minlength=n)
    order = expert.argsort(stable=True)
    first = sizes.cumsum(0) - sizes
    place = torch.empty_like(expert)
    place[order] = torch.arange(len(expert), device=expert.device) - first[expert[order]]
    most = int(sizes.max())
    rows = given.new_zeros(n * most, given.shape[-1])
    at = expert * most + place
    rows[at] = given
    return experts(rows)[at]


class _SortedSlots(Pattern):
    """jetmoe: no module of experts; the router hands on slots sorted by expert (order, token, router weight, number
    per expert, logits). What is left without the experts is a bias."""

    rest_is_shared = False

    def listen(self, block: Block, tell: Tell) -> list[Any]:
        def called(module, args, output):  # noqa: ANN001, ANN202 - a torch hook
            _, token, gate, sizes, _ = output
            order, expert = token.argsort(stable=True), self._experts(sizes, token.device)
            tell(args[0], expert[order].view(-1, module.top_k), gate[order].view(-1, module.top_k))

        return [block.router.register_forward_hook(called)]

    @staticmethod
    def _experts(sizes: list[int], device: torch.device) -> torch.Tensor:
        """Which expert each sorted slot belongs to."""
        return torch.arange(len(sizes), device=device).repeat_interleave(torch.tensor(sizes, device=device))

    def muting(self, block: Block, keep: int | None) -> list[Any]:
        def mute(module, args, output):  # noqa: ANN001, ANN202 - a torch hook
            order, token, gate, sizes, logits = output
            return order, token, _kept(self._experts(sizes, gate.device), gate, keep), sizes, logits

        return [block.router.register_forward_hook(mute)]

    def run(self, block: Block, x: torch.Tensor, index: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        n, k = index.shape
        expert = index.reshape(-1)
        order = expert.argsort(stable=True)
        sizes = torch.bincount(expert, minlength=block.router.num_experts).tolist()
        module, slots = block.module, x.repeat_interleave(k, 0)[order]
        one, two = module.input_linear(slots, sizes).chunk(2, dim=-1)
        out = torch.empty_like(slots)
        out[order] = module.output_linear(module.activation(one) * two, sizes) * weight.reshape(-1)[order, None]
        return out.view(n, k, -1)

    @contextlib.contextmanager
    def putting_out(self, block: Block, value: torch.Tensor | None) -> Iterator[None]:
        assert value is None, "nothing follows the experts' sum here"
        last = block.module.output_linear
        with stub(last, lambda hidden, sizes: hidden.new_zeros(hidden.shape[0], last.output_size)):
            yield


class _BareExperts(Pattern):
    """gemma4: router and experts lie in the decoder layer, a norm follows, and a dense branch is added: y is what
    the experts put out."""

    def output(self, block: Block, block_input: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(block_input)  # only ever asked for without the experts


class _TwoSlots(Pattern):
    """longcat_flash: the experts' own code fails with one slot per token, so each gets an empty second one."""

    def run(self, block: Block, x: torch.Tensor, index: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        n, k = index.shape
        index, weight = index.reshape(-1, 1), weight.reshape(-1, 1)
        doubled = torch.cat([weight, torch.zeros_like(weight)], 1)
        return untuple(block.experts(x.repeat_interleave(k, 0), index.expand(-1, 2), doubled)).reshape(n, k, -1)


class _TokenRouter(Pattern):
    """deepseek_v4: in some layers the token ids choose the experts, and a call of the block alone has none."""

    @contextlib.contextmanager
    def putting_out(self, block: Block, value: torch.Tensor | None) -> Iterator[None]:
        gate = block.module.gate

        def nothing(hidden, *args):  # noqa: ANN001, ANN202 - stands in for the router, which nobody heeds here
            weight = hidden.new_zeros(hidden.numel() // hidden.shape[-1], gate.top_k)
            return None, weight, weight.long()

        with stub(gate, nothing), super().putting_out(block, value):
            yield


class _Retrieval(Pattern):
    """doge: every expert is a row of two embedding tables, found by two keys; no module of experts."""

    def listen(self, block: Block, tell: Tell) -> list[Any]:
        given: list[torch.Tensor] = []

        def called(module, args):  # noqa: ANN001, ANN202 - a torch hook
            given[:] = args[:1]

        def chosen(module, args, output):  # noqa: ANN001, ANN202
            x = given[0].reshape(-1, given[0].shape[-1])
            scores, keys = output.view(2, len(x), -1).topk(block.module.num_keys, dim=-1)
            sums = (scores[0][..., None] + scores[1][..., None, :]).flatten(1)
            pairs = (keys[0][..., None] * block.module.num_keys + keys[1][..., None, :]).flatten(1)
            best, at = sums.topk(block.module.top_k, dim=-1)
            weight = best.softmax(-1)
            if block.module.norm_topk_prob:
                weight = weight / weight.sum(-1, keepdim=True)
            tell(x, pairs.gather(-1, at), weight)

        return [
            block.module.register_forward_pre_hook(called),
            block.module.router_gate.register_forward_hook(chosen),
        ]

    def muting(self, block: Block, keep: int | None) -> list[Any]:
        def mute(module, args, output):  # noqa: ANN001, ANN202 - a torch hook
            return _kept(args[0][..., None].expand(output.shape), output, keep)

        return [block.module.up_embed.register_forward_hook(mute)]

    def run(self, block: Block, x: torch.Tensor, index: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        inner = (block.module.down_embed(index) * x[:, None]).sum(-1)
        return (block.module.act_fn(inner) * weight)[..., None] * block.module.up_embed(index)

    @contextlib.contextmanager
    def putting_out(self, block: Block, value: torch.Tensor | None) -> Iterator[None]:
        assert value is None, "nothing follows the experts' sum here"
        with stub(block.module.up_embed, lambda index: block.module.up_embed.weight.new_zeros(1).expand(
            *index.shape, block.module.hidden_size
        )):  # fmt: skip
            yield


@dataclass(frozen=True)
class _Place:
    """Where the parts are: attributes of the found module (or the decoder layer itself where that is what is found)."""

    pattern: Pattern
    module: str = ""
    experts: str = "experts"
    router: str = ""
    norm: str = ""


_RULE = _Place(Pattern())
_EXCEPTIONS = {
    "AXK1MoE": _Place(Pattern(), norm="post_mlp_layernorm"),
    "DeepseekV4SparseMoeBlock": _Place(_TokenRouter()),
    "DogeCDMoE": _Place(_Retrieval(), experts=""),
    "Gemma4TextDecoderLayer": _Place(_BareExperts(), module="experts", router="router"),
    "JetMoeMoE": _Place(_SortedSlots(), experts="", router="router"),
    "Llama4TextMoe": _Place(_ScaledInput(), router="router"),
    "LongcatFlashMoE": _Place(_TwoSlots()),
}
"""By the name of the class that has the experts (its own or an inherited one)."""

_WRAPPED = {"DbrxNormAttentionNorm": "attn"}
"""Children of a decoder layer that hold the attention sublayer beside other things, by class: its name in them."""


def sublayers(layer: nn.Module) -> list[str]:
    """Names of the parts of a decoder layer among which its attention sublayer is to be found."""
    names = []
    for name, child in layer.named_children():
        inner = _WRAPPED.get(type(child).__name__)
        names.append(f"{name}.{inner}" if inner else name)
    return names


def exception_for(module: nn.Module) -> _Place | None:
    """What is declared for a module's class, if it has experts at all."""
    place = next((_EXCEPTIONS[c.__name__] for c in type(module).__mro__ if c.__name__ in _EXCEPTIONS), None)
    return None if place is None or (place.experts and not hasattr(module, place.experts)) else place


def block_at(layer: int, module: nn.Module, decoder_layer: nn.Module) -> Block:
    """The block whose experts were found in `module`."""
    place = exception_for(module) or _RULE
    body = module.get_submodule(place.module)
    inside = set(module.modules())
    beside = [
        child for name, child in decoder_layer.named_children()
        if "shared" in name and child not in inside and any(p.ndim >= 2 for p in child.parameters())
    ]  # fmt: skip
    return Block(
        layer, body, module.get_submodule(place.experts), place.pattern,
        router=module.get_submodule(place.router) if place.router else body,
        beside=beside[0] if beside else None,
        norm=module.get_submodule(place.norm) if place.norm else None,
    )  # fmt: skip
