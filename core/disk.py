"""A model larger than memory: its layers stay in the checkpoint's own files and are read when they are needed.

transformers' own loader builds it, from stand-ins for the stored tensors: those of the layers turn out empty, the
others are read. accelerate then fetches an empty layer's weights whenever it is called (a pass over the layers fetches
each once, see `weights`). Nothing is written to the disk.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from accelerate import dispatch_model
from torch import nn

from .by_rows import RowTable, embed_by_rows, unembed_by_rows
from .checkpoint import Checkpoint
from .conversion import Group, StoredWeights, groups_of
from .errors import ModelRefused
from .memory import return_large_blocks
from .moe import find_blocks
from .placement import Placement


def load_from_disk(
    folder: Path, config: Any, skeleton: nn.Module, placement: Placement
) -> tuple[nn.Module, dict[str, Any], StoredWeights]:
    """The model with its decoder layers left on the disk, transformers' account of the loading, and where they are.

    `skeleton`: the model without memory. Raises `ModelError` for damaged files, `ModelRefused` where this checkpoint's
    layout does not let a layer be read by itself.
    """
    return_large_blocks()
    checkpoint = Checkpoint(folder)
    try:
        groups = groups_of(skeleton, checkpoint)
    except (RuntimeError, ValueError, KeyError, AttributeError) as error:
        raise _unreadable(str(error)) from None
    layers = _name_of(skeleton, find_blocks(skeleton)[0])
    ties = dict(getattr(skeleton, "all_tied_weights_keys", None) or {})
    tables = _tables(skeleton, groups, ties) if placement.by_rows else {}
    away = {stored for group in groups if _of_one_layer(group, skeleton, layers) for _, stored in group.sources}
    away |= set(tables.values())
    stand_ins = {
        stored: _StandIn(checkpoint, stored, stored in away) for group in groups for _, stored in group.sources
    }
    model, info = type(skeleton).from_pretrained(
        None, config=config, dtype=placement.dtype, state_dict=stand_ins, device_map={"": "cpu"},
        output_loading_info=True,
    )  # fmt: skip
    weights = StoredWeights(model, checkpoint, groups, ties)
    weights.per_pass = sum(checkpoint.tensors[stored].nbytes for stored in away - set(tables.values()))
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if value.device.type == "meta" and name not in weights and name not in info["missing_keys"]:
            raise _unreadable(f"nothing says where {name} comes from")
    left = {name.rpartition(".")[0] for name in tables}
    _dispatch(model, weights, _device_map(model, layers, left, placement.device), placement.device)
    for name, stored in tables.items():
        module = model.get_submodule(name.rpartition(".")[0])
        table = RowTable(checkpoint, stored, placement.dtype, placement.device)
        leave = embed_by_rows if module is model.get_input_embeddings() else unembed_by_rows
        leave(module, table)
    return model, info, weights


def _unreadable(reason: str) -> ModelRefused:
    reason = reason.strip().splitlines()[0][:200] if reason.strip() else "unknown"
    return ModelRefused(
        f"This checkpoint cannot be read layer by layer ({reason}).",
        "It has to fit into memory: choose a smaller dtype (bfloat16), or use a machine with more memory.",
    )


class _StandIn:
    """A stored tensor as transformers' loader takes it: sliced, then brought to a device and a number format."""

    def __init__(self, checkpoint: Checkpoint, stored: str, empty: bool) -> None:
        self._checkpoint, self._stored, self._empty = checkpoint, stored, empty

    def __getitem__(self, index: Any) -> _StandIn:
        return self

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        if self._empty:
            entry = self._checkpoint.tensors[self._stored]
            return torch.empty(entry.shape, dtype=dtype or entry.dtype, device="meta")
        return self._checkpoint.read(self._stored).to(device=device, dtype=dtype)


def _name_of(model: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)


def _of_one_layer(group: Group, model: nn.Module, layers: str) -> bool:
    """Whether the group makes parameters of one decoder layer. Raises `ModelRefused` where it makes several layers'."""
    parameters = dict(model.named_parameters())
    owners = {name.removeprefix(f"{layers}.").split(".")[0] for name in group.made if name.startswith(f"{layers}.")}
    if len(owners) > 1:
        raise _unreadable(f"{group.sources[0][1]} belongs to several layers")
    return bool(owners) and all(name.startswith(f"{layers}.") and name in parameters for name in group.made)


def _tables(model: nn.Module, groups: list[Group], ties: dict[str, str]) -> dict[str, str]:
    """{parameter: stored tensor} of embedding and unembedding, where rows can be read: it is stored as it stands.

    Tables that are one and the same stay together.
    """
    stored = {name: group.sources[0][1] for group in groups if group.plain for name in group.made}
    found: dict[str, str] = {}
    for module, kind in ((model.get_input_embeddings(), nn.Embedding), (model.get_output_embeddings(), nn.Linear)):
        name = f"{_name_of(model, module)}.weight"
        source = stored.get(ties.get(name, name))
        if source is not None and isinstance(module, kind) and (kind is nn.Embedding or type(module) is kind):
            found[name] = source
    return found if not ties or len(found) == 2 else {}


def _device_map(model: nn.Module, layers: str, left: set[str], device: torch.device) -> dict[str, Any]:
    """accelerate's device map: every decoder layer and the tables in `left` on the disk, all else on `device`."""
    places: dict[str, Any] = {}

    def walk(prefix: str, module: nn.Module) -> None:
        for name, child in module.named_children():
            name = f"{prefix}{name}"
            if name == layers:
                places.update({f"{name}.{i}": "disk" for i in range(len(child))})  # type: ignore[arg-type]
            elif layers.startswith(f"{name}."):
                walk(f"{name}.", child)
            else:
                places[name] = "disk" if name in left else device

    walk("", model)
    return places


def _dispatch(model: nn.Module, weights: StoredWeights, places: dict[str, Any], device: torch.device) -> None:
    log = logging.getLogger("accelerate.big_modeling")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns that parameters are on the meta device: that is the point
    try:
        # an empty index, as nothing was written to any folder: the "state" is read from the checkpoint when asked for
        dispatch_model(model, places, main_device=device, state_dict=weights, offload_index={})  # type: ignore[arg-type]
    except ValueError as error:
        raise _unreadable(str(error)) from None
    finally:
        log.setLevel(level)
