"""The slow and obvious way to trace one fact: one model run per cell, plain forward hooks on the unmodified model.

Written from protocol.md alone and for reading, not for speed; it imports nothing of the engine. Where a family
keeps its blocks, how it lays out its experts' weights, and where its shared expert sits is a table by family.
fp32 throughout. Everything is one prompt at a time (a batch of one row), one token and one expert at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import silu

BLOCK = {
    "mixtral": "mlp",
    "qwen3_moe": "mlp",
    "qwen2_moe": "mlp",
    "olmoe": "mlp",
    "deepseek_v3": "mlp",
    "granitemoe": "block_sparse_moe",
    "granitemoeshared": "block_sparse_moe",
    "gpt_oss": "mlp",
    "glm4_moe": "mlp",
    "phimoe": "mlp",
    "ernie4_5_moe": "mlp",
    "qwen3_next": "mlp",
    "jamba": "feed_forward",
}
"""Attribute of the decoder layer that holds the MoE block (a layer whose block has no experts is dense)."""

GATED_SHARED = {"qwen2_moe", "qwen3_next"}
"""Shared expert inside the block, times the sigmoid of a gate."""

PLAIN_SHARED = {"deepseek_v3", "glm4_moe", "ernie4_5_moe"}
"""Shared expert inside the block, added as it is."""

BESIDE_SHARED = {"granitemoeshared"}
"""Shared expert in the decoder layer, beside the block; y is the sum of the two."""


@dataclass(frozen=True)
class Case:
    """One fact as token ids. `noise`: [draws, n_subject_tokens, d], already scaled (embedding units)."""

    input_ids: torch.Tensor
    subject_positions: tuple[int, ...]
    true_id: int
    foil_id: int
    noise: torch.Tensor


Logits = tuple[float, float]
"""(logit of the true object, logit of the foil) at the last position."""


@torch.no_grad()
def make_noise(model: nn.Module, *, draws: int, n_subject: int, seed: int, case_id: int, level: float) -> torch.Tensor:
    """The noise rule of protocol.md, [draws, n_subject, d]: generator seed + case_id, std of the embedding table."""
    table = model.get_input_embeddings().weight.float()
    generator = torch.Generator("cpu").manual_seed(seed + case_id)
    return torch.randn(draws, n_subject, table.shape[1], generator=generator) * level * table.std()


# ---------------------------------------------------------------- where things are


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The decoder layers."""
    return model.model.layers


def find_blocks(model: nn.Module) -> dict[int, nn.Module]:
    """{layer: MoE block} by the family's own attribute path; dense layers are left out."""
    attribute = BLOCK[model.config.model_type]
    blocks = {i: getattr(layer, attribute) for i, layer in enumerate(layers_of(model))}
    return {i: block for i, block in blocks.items() if hasattr(block, "experts")}


def first(output: Any) -> torch.Tensor:
    """A block's hidden states; some families return (hidden states, router scores)."""
    return output[0] if isinstance(output, tuple) else output


def like(output: Any, hidden: torch.Tensor) -> Any:
    """`hidden` in the form in which the block returns it."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


# ---------------------------------------------------------------- one run


@contextmanager
def noise_at_subject(model: nn.Module, positions: tuple[int, ...], noise: torch.Tensor | None) -> Iterator[None]:
    """Add `noise` [n_subject, d] in fp32 to the embedding module's output at `positions`, then cast back."""
    if noise is None:
        yield
        return

    def add(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        embedded = output.float().clone()
        for i, position in enumerate(positions):
            embedded[0, position] += noise[i]
        return embedded.to(output.dtype)

    handle = model.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def hooked(module: nn.Module, hook: Callable[..., Any], *, before: bool = False) -> Iterator[None]:
    """`hook` on `module` while the context lasts."""
    register = module.register_forward_pre_hook if before else module.register_forward_hook
    handle = register(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def shaken(model: nn.Module, size: float, seed: int = 0) -> Iterator[None]:
    """Every decoder layer's output times 1 + `size` × normal noise: what moves by this is at the mercy of rounding."""
    generator = torch.Generator("cpu").manual_seed(seed)

    def shake(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        hidden = first(output)
        return like(output, hidden * (1 + size * torch.randn(hidden.shape, generator=generator)))

    with ExitStack() as stack:
        for layer in layers_of(model):
            stack.enter_context(hooked(layer, shake))
        yield


@torch.no_grad()
def contrast(
    model: nn.Module,
    input_ids: torch.Tensor,
    true_id: int,
    foil_id: int,
    noise: torch.Tensor | None = None,
    subject_positions: tuple[int, ...] = (),
) -> Logits:
    """Clean run (no noise) or corrupt run: (true logit, foil logit) at the last position."""
    with noise_at_subject(model, subject_positions, noise):
        logits = model(input_ids=input_ids.view(1, -1), use_cache=False).logits[0, -1].float()
    return logits[true_id].item(), logits[foil_id].item()


def clean(model: nn.Module, case: Case) -> Logits:
    """The prompt as it is."""
    return contrast(model, case.input_ids, case.true_id, case.foil_id)


def corrupt(model: nn.Module, case: Case, draw: int) -> Logits:
    """The same with noise on the subject."""
    return contrast(model, case.input_ids, case.true_id, case.foil_id, case.noise[draw], case.subject_positions)


# ---------------------------------------------------------------- what a run computes


@dataclass
class BlockRecord:
    """What one MoE block saw and did in one run. `h`, `y`: [T, d]; `index`, `weight`: [T, k]; `shared`: [T, d] or None.

    `h` is what the block receives, `index` and `weight` what its experts receive, `y` the MoE-block output of
    protocol.md (shared expert included, wherever the family keeps it)."""

    h: torch.Tensor
    index: torch.Tensor
    weight: torch.Tensor
    y: torch.Tensor
    shared: torch.Tensor | None

    def active(self, pos: int) -> list[int]:
        """The experts routed at `pos`, in ascending order."""
        return sorted(self.index[pos].tolist())

    def router_weight(self, pos: int, expert: int) -> float:
        """g: the weight that multiplies the expert's output; 0 where it is not routed."""
        chosen = self.index[pos] == expert
        return self.weight[pos][chosen].sum().item()


@torch.no_grad()
def record(model: nn.Module, case: Case, noise: torch.Tensor | None) -> dict[int, BlockRecord]:
    """{layer: BlockRecord} of one run; `noise` None for the clean run."""
    seen: dict[int, dict[str, torch.Tensor]] = {layer: {} for layer in find_blocks(model)}
    length = case.input_ids.numel()

    def at_block(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            seen[layer]["h"] = hidden.reshape(length, -1).clone()
            seen[layer]["y"] = first(output).reshape(length, -1).clone()

        return hook

    def at_experts(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            _, index, weight = [*args, *kwargs.values()][:3]
            seen[layer]["index"] = index.reshape(length, -1).clone()
            seen[layer]["weight"] = weight.reshape(length, -1).clone()

        return hook

    with ExitStack() as stack:
        for layer, block in find_blocks(model).items():
            stack.enter_context(hooked(block, at_block(layer)))
            stack.enter_context(hooked(block.experts, at_experts(layer), before=True))
        contrast(model, case.input_ids, case.true_id, case.foil_id, noise, case.subject_positions)

    records = {}
    for layer, found in seen.items():
        shared = shared_output(model, layer, found["h"])
        beside = model.config.model_type in BESIDE_SHARED
        y = found["y"] + shared if beside else found["y"]
        records[layer] = BlockRecord(found["h"], found["index"], found["weight"], y, shared)
    return records


# ---------------------------------------------------------------- what one expert writes


def expert_output(model: nn.Module, layer: int, expert: int, h: torch.Tensor) -> torch.Tensor:
    """Expert_e(h) of one token, [d] -> [d], from the weights themselves as the family's modeling file uses them."""
    experts = find_blocks(model)[layer].experts
    if model.config.model_type == "gpt_oss":
        # Transposed matrices with biases; gate and up interleaved; both clamped; the gate's sigmoid has slope alpha.
        limit, alpha = model.config.swiglu_limit, model.config.swiglu_alpha
        both = h @ experts.gate_up_proj[expert] + experts.gate_up_proj_bias[expert]
        gate = both[0::2].clamp(max=limit)
        up = both[1::2].clamp(min=-limit, max=limit)
        inner = (up + 1) * gate * torch.sigmoid(alpha * gate)
        return inner @ experts.down_proj[expert] + experts.down_proj_bias[expert]
    width = experts.down_proj.shape[2]
    gate = experts.gate_up_proj[expert, :width] @ h
    up = experts.gate_up_proj[expert, width:] @ h
    return experts.down_proj[expert] @ (silu(gate) * up)


@torch.no_grad()
def contribution(model: nn.Module, layer: int, seen: BlockRecord, pos: int, expert: int) -> torch.Tensor:
    """c[l,t,e] = g[l,t,e] · Expert_e(h[l,t]), [d]; zeros where e is not routed."""
    if expert not in seen.active(pos):
        return torch.zeros_like(seen.y[pos])
    return seen.router_weight(pos, expert) * expert_output(model, layer, expert, seen.h[pos])


@torch.no_grad()
def shared_output(model: nn.Module, layer: int, h: torch.Tensor) -> torch.Tensor | None:
    """What the shared expert adds to y, [T, d] -> [T, d]; None where the family has none. One token at a time."""
    family = model.config.model_type
    block = find_blocks(model)[layer]
    if family in GATED_SHARED:
        rows = [torch.sigmoid(block.shared_expert_gate.weight @ x) * swiglu(block.shared_expert, x) for x in h]
    elif family in PLAIN_SHARED:
        rows = [swiglu(block.shared_experts, x) for x in h]
    elif family in BESIDE_SHARED:
        mlp = layers_of(model)[layer].shared_mlp
        rows = []
        for x in h:
            gate, up = (mlp.input_linear.weight @ x).chunk(2)
            rows.append(mlp.output_linear.weight @ (silu(gate) * up))
    else:
        return None
    return torch.stack(rows)


def swiglu(mlp: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A gated feed-forward network with silu and no biases, [d] -> [d]."""
    return mlp.down_proj.weight @ (silu(mlp.gate_proj.weight @ x) * (mlp.up_proj.weight @ x))


# ---------------------------------------------------------------- patches


@torch.no_grad()
def patched(model: nn.Module, case: Case, draw: int, *, layer: int, pos: int, y: torch.Tensor) -> Logits:
    """The corrupt run of `draw` with the MoE-block output at (layer, pos) set to `y` [d]."""
    block = find_blocks(model)[layer]

    def write(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        hidden = first(output).clone()
        rows = hidden.view(case.input_ids.numel(), -1)
        rows[pos] = y
        return like(output, hidden)

    def write_beside(module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> torch.Tensor:
        hidden = output.clone()
        hidden[0, pos] = 0  # y holds the shared expert's part already
        return hidden

    with ExitStack() as stack:
        stack.enter_context(hooked(block, write))
        if model.config.model_type in BESIDE_SHARED:
            stack.enter_context(hooked(layers_of(model)[layer].shared_mlp, write_beside))
        return corrupt(model, case, draw)


@dataclass
class Oracle:
    """One fact on one model: the recorded clean and corrupt runs, and every patch as a run of its own."""

    model: nn.Module
    case: Case

    def __post_init__(self) -> None:
        self.clean_run = record(self.model, self.case, None)
        self.corrupt_runs = [record(self.model, self.case, noise) for noise in self.case.noise]

    def layer_patch(self, draw: int, layer: int, pos: int) -> Logits:
        """y[l,t] := y_clean[l,t]."""
        return patched(self.model, self.case, draw, layer=layer, pos=pos, y=self.clean_run[layer].y[pos])

    def expert_update(self, draw: int, layer: int, pos: int, expert: int) -> torch.Tensor:
        """δ[l,t,e] = c_clean − c_corrupt, [d]."""
        before = contribution(self.model, layer, self.corrupt_runs[draw][layer], pos, expert)
        return contribution(self.model, layer, self.clean_run[layer], pos, expert) - before

    def shared_update(self, draw: int, layer: int, pos: int) -> torch.Tensor:
        """The same of the shared expert."""
        return self.clean_run[layer].shared[pos] - self.corrupt_runs[draw][layer].shared[pos]

    def expert_patch(self, draw: int, layer: int, pos: int, expert: int) -> Logits:
        """y[l,t] := y_corrupt[l,t] + δ[l,t,e]."""
        y = self.corrupt_runs[draw][layer].y[pos] + self.expert_update(draw, layer, pos, expert)
        return patched(self.model, self.case, draw, layer=layer, pos=pos, y=y)

    def shared_patch(self, draw: int, layer: int, pos: int) -> Logits:
        """y[l,t] := y_corrupt[l,t] + what the shared expert writes in the clean run − in the corrupt run."""
        y = self.corrupt_runs[draw][layer].y[pos] + self.shared_update(draw, layer, pos)
        return patched(self.model, self.case, draw, layer=layer, pos=pos, y=y)

    def experts_at(self, draw: int, layer: int, pos: int) -> list[int]:
        """Experts routed at (layer, pos) in the clean run or in the corrupt run of `draw`."""
        return sorted({*self.clean_run[layer].active(pos), *self.corrupt_runs[draw][layer].active(pos)})

    def row(self, kind: str, draw: int, layer: int, pos: int, expert: int | None) -> Logits:
        """One row of `table` by its key."""
        if kind == "expert":
            return self.expert_patch(draw, layer, pos, expert)
        return (self.layer_patch if kind == "layer" else self.shared_patch)(draw, layer, pos)

    def table(
        self,
        *,
        positions: Iterable[int] | None = None,
        draws: Iterable[int] | None = None,
        kinds: Iterable[str] = ("layer", "expert", "shared"),
    ) -> dict[tuple, Logits]:
        """{(kind, draw, layer, pos, expert): logits} of every patch of `kinds` at `positions` (default: all).

        `expert` is None for layer and shared patches; the clean and corrupt runs, always there, have layer and pos
        None.
        """
        positions = range(self.case.input_ids.numel()) if positions is None else tuple(positions)
        draws = range(len(self.corrupt_runs)) if draws is None else draws
        rows: dict[tuple, Logits] = {("clean", None, None, None, None): clean(self.model, self.case)}
        for draw in draws:
            rows["corrupt", draw, None, None, None] = corrupt(self.model, self.case, draw)
            for layer, seen in self.clean_run.items():
                for pos in positions:
                    keys = [("layer", draw, layer, pos, None)]
                    if seen.shared is not None:
                        keys += [("shared", draw, layer, pos, None)]
                    keys += [("expert", draw, layer, pos, expert) for expert in self.experts_at(draw, layer, pos)]
                    rows |= {key: self.row(*key) for key in keys if key[0] in kinds}
        return rows
