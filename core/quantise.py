"""int8 weights of torchao for fused experts, what a loaded model's weights really are, and expanding stored formats.

Quantised are the matrices inside the decoder layers: the experts' and those of `nn.Linear`. The router, the norms and
both embeddings keep the dtype. Weight-only: activations and sums stay in the dtype, W ≈ s · q with an int8 matrix q and
one fp32 scale s per output row. Knows weights and transformers' quantisers; `quantisation` has the names.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .errors import ModelRefused
from .quantisation import EXPANDED, INT8, NONE, check_stored

if TYPE_CHECKING:
    from .moe import Block, MoeModel

_SMALLEST = 16  # rows and columns; below it there is nothing to save


class Plan:
    """How a model is loaded: `asked` and `stored` as in `quantisation`, `names` of the weights to be quantised.

    `options`: for `from_pretrained`. Raises `ModelRefused` for what cannot be read, before any weights are.
    """

    def __init__(self, asked: str, config: Any, skeleton: nn.Module) -> None:
        self.asked, self.stored = asked, check_stored(config.to_dict(), asked)
        self.names: list[str] = []
        if INT8 in (self.asked, self.stored):
            _require_torchao()
        if self.asked == INT8:
            self.names = int8_names(skeleton)
        if self.stored in EXPANDED:
            for part in (config, config.get_text_config()):
                if isinstance(getattr(part, "quantization_config", None), dict):
                    part.quantization_config["dequantize"] = True

    @property
    def options(self) -> dict[str, Any]:
        """Further arguments for `from_pretrained`."""
        if INT8 not in (self.asked, self.stored):
            return {}
        options: dict[str, Any] = {"experts_implementation": "eager"}  # the others have no product with int8 matrices
        if self.asked == INT8:
            from torchao.quantization import FqnToConfig, Int8WeightOnlyConfig
            from transformers import TorchAoConfig

            each = dict.fromkeys(self.names, Int8WeightOnlyConfig())
            options["quantization_config"] = TorchAoConfig(FqnToConfig(each))
        return options

    @property
    def whole(self) -> bool:
        """Whether the weights can only be read into one place, all of them."""
        return bool(self.stored) or self.asked != NONE

    def weight_bytes(self, skeleton: nn.Module, dtype: torch.dtype) -> int:
        """Memory that the weights will take (tied ones once), activations in `dtype`."""
        parameters = {id(p): (name, p) for name, p in skeleton.named_parameters()}
        small = set(int8_names(skeleton)) if self.stored == INT8 else set(self.names)
        return sum(
            p.numel() + 4 * (p.numel() // p.shape[-1]) if name in small else p.numel() * dtype.itemsize
            for name, p in parameters.values()
        )

    def finish(self, model: nn.Module, dtype: torch.dtype) -> None:
        """After reading: weights that were stored beside quantised ones come in their own dtype; give them `dtype`."""
        if self.stored not in EXPANDED:
            return
        kept = [*(getattr(model, "_keep_in_fp32_modules", None) or ())]
        kept += getattr(model, "_keep_in_fp32_modules_strict", None) or ()
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point() and not any(part in name for part in kept):
                parameter.data = parameter.data.to(dtype)

    def text(self, model: MoeModel) -> str:
        """How the loaded model is quantised, measured from its weights; part of its identity. Empty: not at all."""
        if not self.whole:
            return ""
        found = "; ".join(f"{part} {kind}" for part, kind in formats(model).items())
        if self.stored in EXPANDED:
            return f"stored as {EXPANDED[self.stored]}, expanded: {found}"
        return f"torchao {importlib.metadata.version('torchao')}: {found}"


def _require_torchao() -> None:
    if importlib.util.find_spec("torchao") is None:
        raise ModelRefused("int8 weights need torchao, which is not installed.", "pip install -r requirements.txt")


def int8_names(model: nn.Module) -> list[str]:
    """Names of the weights that int8 quantises: the experts' fused matrices, and `nn.Linear` in the decoder layers.

    Not: routers and gates; matrices of a module that has parameters of its own, which may be read rather than called
    (recurrent mixers). Raises `ModelRefused` where experts are laid out the other way round.
    """
    from .moe import expert_count, find_blocks

    layers, blocks = find_blocks(model)
    fused = {id(p) for block in blocks.values() for p in _fused(block)}
    plain: set[int] = set()
    for index, layer in enumerate(layers):
        block = blocks.get(index)
        small = {1} if block is None else {1, expert_count(block.experts, model.config.get_text_config())}
        inside = set() if block is None else set(block.module.modules())
        for parent in layer.modules():
            if any(True for _ in parent.parameters(recurse=False)) and type(parent) is not nn.Linear:
                continue
            for child in parent.children():
                gate = child in inside and getattr(child, "out_features", 0) in small
                if type(child) is nn.Linear and not gate and min(child.weight.shape) >= _SMALLEST:
                    plain.add(id(child.weight))
    return [name for name, parameter in model.named_parameters() if id(parameter) in fused | plain]


def _fused(block: Block) -> Iterator[nn.Parameter]:
    if getattr(block.experts, "is_transposed", False):
        raise ModelRefused(
            f"The experts of {type(block.experts).__name__} are stored as [experts, in, out]; torchao's int8 has no "
            "product with matrices that lie this way.",
            "Choose quantisation none, with dtype bfloat16 if memory is short.",
        )
    yield from (p for p in block.experts.parameters(recurse=False) if p.ndim == 3)


def formats(model: MoeModel) -> dict[str, str]:
    """{part of the model: number formats of its weights}, most bytes first; measured, not promised.

    Parts: experts, router, shared and dense (the other matrices of MoE blocks and of layers without one), attention
    (whatever else has matrices in a layer), embeddings. Norms and biases are left out.
    """
    sizes: dict[str, dict[str, int]] = {}
    for part, parameter in _parts(model):
        kinds = sizes.setdefault(part, {})
        kind = format_of(parameter)
        kinds[kind] = kinds.get(kind, 0) + parameter.numel() * (1 if kind == INT8 else parameter.element_size())
    order = ("experts", "shared and dense", "attention", "router", "embeddings")
    return {part: " and ".join(sorted(sizes[part], key=lambda k: -sizes[part][k])) for part in order if part in sizes}


def format_of(parameter: torch.Tensor) -> str:
    """`int8` for a quantised weight, else the name of its dtype."""
    inner = getattr(parameter.data, "qdata", None)
    return str((parameter if inner is None else inner).dtype).removeprefix("torch.")


def _parts(model: MoeModel) -> Iterator[tuple[str, torch.Tensor]]:
    for end in (model.embedding, model.unembedding):
        yield "embeddings", end.weight
    for index, layer in enumerate(model.layers):
        block = model.blocks.get(index)
        experts = {id(p) for p in block.experts.parameters()} if block else set()
        inside = {id(p) for p in block.module.parameters()} if block else set()
        for name, parameter in layer.named_parameters():
            if parameter.ndim < 2:
                continue
            if id(parameter) in experts:
                yield "experts", parameter
            elif id(parameter) in inside and parameter.shape[0] in (1, model.n_experts):
                yield "router", parameter
            elif id(parameter) in inside or any(part in name for part in ("mlp", "feed_forward", "ffn")):
                yield "shared and dense", parameter
            else:
                yield "attention", parameter
