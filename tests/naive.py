"""The slow and obvious way for any family: nothing but full forwards of the unmodified model and plain hooks.

Imports nothing of the engine. What one expert writes is what the MoE block puts out when every other router weight is
zero, minus what it puts out when all are: no family's experts have to be known. Where the MoE-block output of
protocol.md is found is written down for the families that keep it elsewhere than in the output of the module that has
`experts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tests.oracle import Logits, first, hooked, like, noise_at_subject

Change = tuple[nn.Module, Callable[..., Any], bool]
"""(module, hook, whether it is a pre-hook)."""


def _listed(module: nn.Module, index: torch.Tensor, weight: torch.Tensor, keep: int | None) -> torch.Tensor:
    """Router weights with all but those of expert `keep` at zero (None: all)."""
    return torch.where(index == (-1 if keep is None else keep), weight, torch.zeros_like(weight))


class _Block:
    """One MoE block: where its output is read and written, and how its experts are muted and listed."""

    def __init__(self, layer: nn.Module, name: str) -> None:
        self.module = layer.get_submodule(name)
        self.experts = self.module.experts

    def reading(self, keep: Callable[[torch.Tensor], None]) -> list[Change]:
        """Hands y to `keep`, flat."""
        return [(self.module, lambda m, a, k, out: keep(_flat(first(out))), False)]

    def writing(self, pos: int, value: torch.Tensor) -> list[Change]:
        """y[pos] := value."""

        def write(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            return like(output, _written(first(output), pos, value))

        return [(self.module, write, False)]

    def muting(self, keep: int | None) -> list[Change]:
        """Only expert `keep` has a router weight (None: no expert)."""

        def mute(module: nn.Module, args: Any, kwargs: Any) -> Any:
            values = [*args, *kwargs.values()]
            values[2] = _listed(module, values[1].view(values[2].shape), values[2], keep)
            return tuple(values[: len(args)]), dict(zip(kwargs, values[len(args) :], strict=True))

        return [(self.experts, mute, True)]

    def listing(self, keep: Callable[[torch.Tensor], None]) -> list[Change]:
        """Hands the routed experts [T, k] to `keep`."""
        return [(self.experts, lambda m, a, k: keep([*a, *k.values()][1]), True)]


class _Gemma4(_Block):
    """y is what the experts put out: a norm follows, and a dense branch beside them."""

    def __init__(self, layer: nn.Module, name: str) -> None:
        self.module = self.experts = layer.experts


class _Normed(_Block):
    """The block's last act is a norm of routed + shared: y is what the norm is given."""

    def reading(self, keep: Callable[[torch.Tensor], None]) -> list[Change]:
        return [(self.module.post_mlp_layernorm, lambda m, a, k: keep(_flat(a[0])), True)]

    def writing(self, pos: int, value: torch.Tensor) -> list[Change]:
        return [(self.module.post_mlp_layernorm, lambda m, a, k: ((_written(a[0], pos, value),), k), True)]


class _Beside(_Block):
    """The shared expert is a module of the decoder layer; y is the sum of both."""

    def __init__(self, layer: nn.Module, name: str) -> None:
        super().__init__(layer, name)
        self.shared = layer.shared_mlp

    def reading(self, keep: Callable[[torch.Tensor], None]) -> list[Change]:
        parts: list[torch.Tensor] = []

        def block(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            parts.append(_flat(first(output)))

        def beside(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            keep(parts[0] + _flat(output))

        return [(self.module, block, False), (self.shared, beside, False)]

    def writing(self, pos: int, value: torch.Tensor) -> list[Change]:
        zero = torch.zeros_like(value)
        return [
            (self.module, lambda m, a, k, out: like(out, _written(first(out), pos, value)), False),
            (self.shared, lambda m, a, k, out: _written(out, pos, zero), False),
        ]


class _Llama4(_Block):
    """The scores [T, E], zero where an expert is not routed, multiply what the experts are given."""

    def muting(self, keep: int | None) -> list[Change]:
        def mute(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            chosen = torch.arange(output[0].shape[1]) == (-1 if keep is None else keep)
            return (output[0] * chosen, output[1])

        return [(self.module.router, mute, False)]

    def listing(self, keep: Callable[[torch.Tensor], None]) -> list[Change]:
        k = self.module.top_k
        return [(self.module.router, lambda m, a, kw, out: keep(out[1].topk(k, dim=1).indices), False)]


class _JetMoe(_Block):
    """The router hands on (order, token, gate, number of tokens per expert, logits), sorted by expert."""

    def __init__(self, layer: nn.Module, name: str) -> None:
        self.module = layer.mlp

    def muting(self, keep: int | None) -> list[Change]:
        def mute(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            order, token, gate, sizes, logits = output
            expert = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
            return order, token, _listed(module, expert, gate, keep), sizes, logits

        return [(self.module.router, mute, False)]

    def listing(self, keep: Callable[[torch.Tensor], None]) -> list[Change]:
        k = self.module.router.top_k
        return [(self.module.router, lambda m, a, kw, out: keep(out[4].topk(k, dim=1).indices), False)]


class _Doge(_Block):
    """Every expert is a row of two embedding tables; the indices that they are looked up by are the routing."""

    def __init__(self, layer: nn.Module, name: str) -> None:
        self.module = layer.mlp

    def muting(self, keep: int | None) -> list[Change]:
        def mute(module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> torch.Tensor:
            return output * (args[0] == (-1 if keep is None else keep))[..., None]

        return [(self.module.up_embed, mute, False)]

    def listing(self, keep: Callable[[torch.Tensor], None]) -> list[Change]:
        return [(self.module.up_embed, lambda m, a, k: keep(a[0]), True)]


ELSEWHERE: dict[str, type[_Block]] = {
    "gemma4_text": _Gemma4, "axk1": _Normed, "llama4_text": _Llama4, "jetmoe": _JetMoe, "doge": _Doge,
}  # fmt: skip


def find_blocks(model: nn.Module) -> dict[int, _Block]:
    """{decoder layer: its MoE block}."""
    kind = model.config.get_text_config().model_type
    modules = dict(model.named_modules())
    lists = [m for name, m in modules.items() if isinstance(m, nn.ModuleList) and name.split(".")[-1] in _LAYERS]
    layers = max(lists, key=lambda m: sum(p.numel() for p in m.parameters()))
    found = {}
    for i, layer in enumerate(layers):
        if kind in ("jetmoe", "doge"):
            found[i] = ELSEWHERE[kind](layer, "")
            continue
        for name, module in layer.named_modules():
            if isinstance(getattr(module, "experts", None), nn.Module):
                rule = _Beside if getattr(layer, "shared_mlp", None) is not None else _Block
                found[i] = ELSEWHERE.get(kind, rule)(layer, name)
                break
    return found


_LAYERS = ("layers", "blocks", "h")


@dataclass(frozen=True)
class Fact:
    """Token ids [T], the subject's positions, object ids, and one noise draw [n_subject, d]."""

    ids: torch.Tensor
    subject: tuple[int, ...]
    objects: tuple[int, int]
    noise: torch.Tensor


class Naive:
    """One fact on one model: every patch a forward of its own."""

    def __init__(self, model: nn.Module, fact: Fact) -> None:
        self.model, self.fact = model, fact
        self.blocks = find_blocks(model)
        self.y = [self._record("reading", noise) for noise in (None, fact.noise)]
        self.routed = [self._record("listing", noise) for noise in (None, fact.noise)]
        self._parts: dict[tuple[int, int, int | None], torch.Tensor] = {}

    @torch.no_grad()
    def forward(self, noise: torch.Tensor | None, changes: list[Change] = []) -> Logits:  # noqa: B006 - not changed
        """(true logit, foil logit) at the last position."""
        with ExitStack() as stack:
            for module, hook, before in changes:
                stack.enter_context(hooked(module, hook, before=before))
            stack.enter_context(noise_at_subject(self.model, self.fact.subject, noise))
            logits = self.model(input_ids=self.fact.ids[None], use_cache=False).logits[0, -1].float()
        true, foil = self.fact.objects
        return logits[true].item(), logits[foil].item()

    def _record(self, what: str, noise: torch.Tensor | None) -> dict[int, torch.Tensor]:
        seen: dict[int, list[torch.Tensor]] = {layer: [] for layer in self.blocks}
        changes = [
            change
            for layer, block in self.blocks.items()
            for change in getattr(block, what)(lambda value, layer=layer: seen[layer].append(value.clone()))
        ]
        self.forward(noise, changes)
        return {layer: values[0].reshape(len(self.fact.ids), -1) for layer, values in seen.items()}

    def output(self, run: int, layer: int, keep: int | None) -> torch.Tensor:
        """y of a run [T, d] with the router weights of all experts but `keep` (None: of all) at zero in this layer."""
        if (run, layer, keep) not in self._parts:
            block, seen = self.blocks[layer], []
            changes = block.muting(keep) + block.reading(lambda value: seen.append(value.clone()))
            self.forward(self.fact.noise if run else None, changes)
            self._parts[run, layer, keep] = seen[0].reshape(len(self.fact.ids), -1)
        return self._parts[run, layer, keep]

    def contribution(self, run: int, layer: int, pos: int, expert: int) -> torch.Tensor:
        """c[l,t,e] of a run (0 clean, 1 corrupt), [d]."""
        return (self.output(run, layer, expert) - self.output(run, layer, None))[pos]

    def has_shared(self, layer: int) -> bool:
        """Something that differs from token to token is left of y without the routed experts."""
        rest = self.output(0, layer, None)
        return bool((rest - rest[:1]).abs().max() > 1e-6 * self.y[0][layer].abs().max())

    def patched(self, layer: int, pos: int, y: torch.Tensor) -> Logits:
        """The corrupt run with y[layer, pos] := `y`."""
        return self.forward(self.fact.noise, self.blocks[layer].writing(pos, y))

    def first_to_differ(self) -> int:
        """The first position at which the two runs differ in some block's output: the first subject token, but for
        families that let later tokens change earlier ones."""
        apart = torch.stack([(self.y[0][layer] - self.y[1][layer]).abs().amax(-1) for layer in self.blocks])
        return int((apart.amax(0) > 0).nonzero()[0])

    def cells(self, positions: Iterable[int]) -> dict[tuple, Logits]:
        """Every layer patch at some positions: {("layer", draw, layer, pos, None): logits}."""
        return {
            ("layer", 0, layer, pos, None): self.patched(layer, pos, self.y[0][layer][pos])
            for layer in self.blocks
            for pos in positions
        }

    def table(self, positions: Iterable[int], expert_positions: Iterable[int]) -> dict[tuple, Logits]:
        """{(kind, draw, layer, pos, expert): logits}, as `tests.compare` wants it: the two runs, layer patches, and at
        other positions the expert and shared patches."""
        rows: dict[tuple, Logits] = {
            ("clean", None, None, None, None): self.forward(None),
            ("corrupt", 0, None, None, None): self.forward(self.fact.noise),
        }
        rows |= self.cells(positions)
        for layer in self.blocks:
            corrupt = self.y[1][layer]
            for pos in expert_positions:
                for expert in sorted({e for run in self.routed for e in run[layer][pos].tolist()}):
                    update = self.contribution(0, layer, pos, expert) - self.contribution(1, layer, pos, expert)
                    rows["expert", 0, layer, pos, expert] = self.patched(layer, pos, corrupt[pos] + update)
                if self.has_shared(layer):
                    update = (self.output(0, layer, None) - self.output(1, layer, None))[pos]
                    rows["shared", 0, layer, pos, None] = self.patched(layer, pos, corrupt[pos] + update)
        return rows


def _flat(hidden: torch.Tensor) -> torch.Tensor:
    return hidden.reshape(-1, hidden.shape[-1])


def _written(hidden: torch.Tensor, pos: int, value: torch.Tensor) -> torch.Tensor:
    hidden = hidden.clone()
    hidden.view(-1, hidden.shape[-1])[pos] = value
    return hidden
