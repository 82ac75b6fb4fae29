"""Where a model's weights go, and in which number format: decided before any of them is read, from what is free.

In memory where they fit (a GPU, several, GPU and main memory together: accelerate places them); else the decoder layers
stay on the disk and come in one after the other. Knows sizes; reads no weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .errors import InputError, ModelError
from .formats import size
from .memory import available_bytes, limited
from .moe import find_blocks
from .quantise import Plan
from .requests import ModelSpec
from .weights import LAYERS_AT_ONCE

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HEADROOM = 1.1  # of the weights: what tracing needs beside them
_GPU_SHARE = 0.85  # of a GPU's free memory that accelerate may fill with weights: rows need the rest
_WORKING = 32 * 2**20  # bytes: the least that tracing takes beside the weights, where those are few


@dataclass(frozen=True)
class Placement:
    """`device_map`: accelerate's, for weights in memory; None: the layers stay on the disk. `max_memory`: bytes that
    accelerate may fill, by device, where it divides them. `by_rows`: with layers on the disk, the embedding and the
    unembedding stay there too. `needed`, `free`: bytes for all weights in memory, and bytes that are free."""

    dtype: torch.dtype
    device: torch.device
    device_map: Any
    needed: int
    free: int
    by_rows: bool = False
    max_memory: dict[int | str, int] | None = None

    @property
    def on_disk(self) -> bool:
        """Whether the layers are read from the disk at every pass."""
        return self.device_map is None


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters: of the largest layer, of embedding and unembedding, of all that is in neither."""

    layer: int
    tables: int
    rest: int

    @classmethod
    def of(cls, model: nn.Module) -> Sizes:
        """Of a model, which may be without memory; tied weights count once."""
        layers, _ = find_blocks(model)
        ends = [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module]
        total, tables = _count(model.parameters()), _count(p for module in ends for p in module.parameters())
        return cls(
            layer=max(_count(layer.parameters()) for layer in layers), tables=tables,
            rest=total - tables - _count(layers.parameters()),
        )  # fmt: skip


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in {id(p): p for p in parameters}.values())


def choose(spec: ModelSpec, config: Any, skeleton: nn.Module, plan: Plan, *, stored: int) -> Placement:
    """Where the weights of `skeleton` (without memory) go, as `spec` asks for.

    `plan`: how they are quantised; `stored`: bytes of their files.

    The first number format that fits into memory: fp32 on a CPU, else the checkpoint's own; where none does, the first
    one of which two layers fit. Raises `ModelError` with the numbers where nothing fits, `InputError` for a GPU that is
    not there.
    """
    device, sizes = _device(spec.device), Sizes.of(skeleton)
    dtypes = _dtypes(spec, config, device)
    needed = {dtype: int(plan.weight_bytes(skeleton, dtype) * _HEADROOM) for dtype in dtypes}
    placements: list[Placement | None] = []
    if spec.placement != "disk":
        placements += [_in_memory(sizes, needed[dtype], dtype, device, plan, stored) for dtype in dtypes]
    if spec.placement != "memory" and not plan.whole:
        placements += [_on_disk(sizes, needed[dtype], dtype, device) for dtype in dtypes]
    if spec.placement == "disk" and plan.whole:
        raise ModelError(
            "Quantised weights cannot be read layer by layer.",
            "Choose placement memory, or a checkpoint that is not quantised and quantisation none.",
        )
    found = next((placement for placement in placements if placement is not None), None)
    if found is None:
        raise _does_not_fit(spec, sizes, needed[dtypes[-1]], dtypes[-1], device, plan)
    return found


def wanted(spec: ModelSpec, config: Any, skeleton: nn.Module, plan: Plan, *, stored: int) -> tuple[torch.device, int]:
    """(device, bytes free on it) with which `choose` would choose as on a machine that has nothing else in memory."""
    device = _device(spec.device)
    dtype = _dtypes(spec, config, device)[0]
    if spec.placement == "disk":
        return device, _least(Sizes.of(skeleton), dtype)
    return device, int(plan.weight_bytes(skeleton, dtype) * _HEADROOM) + (stored if limited() else 0)


def _device(device: str) -> torch.device:
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("There is no GPU that torch can use.", "Choose device cpu or auto.", field="device")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def _dtypes(spec: ModelSpec, config: Any, device: torch.device) -> list[torch.dtype]:
    """Number formats to try, the best first."""
    if spec.dtype != "auto":
        return [_DTYPES[spec.dtype]]
    own = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    own = own if isinstance(own, torch.dtype) else torch.float32
    return [own] if device.type == "cuda" else list(dict.fromkeys([torch.float32, own]))


def _in_memory(
    sizes: Sizes, needed: int, dtype: torch.dtype, device: torch.device, plan: Plan, stored: int
) -> Placement | None:
    free = available_bytes(device)
    mapped = stored if limited() else 0  # transformers maps the files while it reads them, and that counts then
    if needed + mapped <= free:
        return Placement(dtype, device, {"": device}, needed, free)
    if device.type != "cuda" or plan.whole:
        return None
    shares = _shares()
    # accelerate divides by layers, so that up to one of them is left over on each device
    if needed + len(shares) * sizes.layer * dtype.itemsize > sum(shares.values()):
        return None
    return Placement(dtype, device, "auto", needed, sum(shares.values()), max_memory=shares)


def _shares() -> dict[int | str, int]:
    """Bytes that accelerate may fill with weights: {GPU: .., "cpu": ..}."""
    gpus = range(torch.cuda.device_count())
    shares: dict[int | str, int] = {i: int(_GPU_SHARE * torch.cuda.mem_get_info(i)[0]) for i in gpus}
    return {**shares, "cpu": int(available_bytes("cpu") / _HEADROOM)}


def _together(device: torch.device) -> int:
    """Bytes that are free where accelerate may put weights."""
    return sum(_shares().values()) if device.type == "cuda" else available_bytes(device)


def _on_disk(sizes: Sizes, all_needed: int, dtype: torch.dtype, device: torch.device) -> Placement | None:
    free, needed = min(available_bytes(device), available_bytes("cpu")), _least(sizes, dtype)
    if needed > free:
        return None
    tables = sizes.tables * dtype.itemsize
    # small tables are kept; large ones would take what the rows of a sweep can use
    return Placement(dtype, device, None, all_needed, _together(device), by_rows=tables > (free - needed) / 4)


def _least(sizes: Sizes, dtype: torch.dtype) -> int:
    """Bytes that a trace takes at the least, with the layers on the disk."""
    return int((sizes.rest + LAYERS_AT_ONCE * sizes.layer) * dtype.itemsize * _HEADROOM) + _WORKING


def _does_not_fit(
    spec: ModelSpec, sizes: Sizes, needed: int, dtype: torch.dtype, device: torch.device, plan: Plan
) -> ModelError:
    name, free = str(dtype).removeprefix("torch."), available_bytes(device) if plan.whole else _together(device)
    what = f"The model needs about {size(needed)} in {name}, and {size(free)} are free"
    advice = "a smaller dtype (bfloat16), free memory, use a machine with more, or choose a smaller model."
    if spec.placement == "memory":
        return ModelError(f"{what}.", f"Choose placement auto or disk (layers are read from the disk), {advice}")
    if plan.whole:
        return ModelError(f"{what}; quantised weights cannot be read layer by layer.", f"Choose {advice}")
    free = min(available_bytes(device), available_bytes("cpu"))
    return ModelError(
        f"{what}; with its layers on the disk it still takes {size(_least(sizes, dtype))} "
        f"where {size(free)} can be used.",
        f"Choose {advice}",
    )
