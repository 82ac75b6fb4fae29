"""Bringing in a layer's weights once for everything that is done with the layer, the next layer's meanwhile.

accelerate's hooks fetch a module's weights at every call and drop them behind it; a sweep calls a layer many times.
Inside `one_pass` each layer that accelerate keeps elsewhere (main memory, disk) is fetched whole when it is entered,
and stays until it is left; a thread fetches the one behind it. At most two layers are here at a time. Layers that are
here anyway cost nothing. Knows accelerate's hooks; nothing of runs or patches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, SequentialHook
from accelerate.utils import OffloadedWeightsLoader, PrefixedDataset, named_module_tensors, set_module_tensor_to_device
from torch import nn

from .conversion import StoredWeights

LAYERS_AT_ONCE = 2.2
"""How many layers' weights take memory in a pass: the one that computes, the next one on its way, and what is read of
it before it is converted."""

Hold = Callable[[int], AbstractContextManager[None]]
"""`hold(l)`: a context in which layer l's weights are where the layer runs."""


@dataclass(frozen=True)
class _Slot:
    """One tensor that is kept elsewhere: `source[key]` gives it, `module.name` is where it goes while it is here."""

    module: nn.Module
    name: str
    hook: AlignDevicesHook
    source: Mapping[str, torch.Tensor]
    key: str


@contextlib.contextmanager
def one_pass(layers: nn.ModuleList) -> Iterator[Hold]:
    """A pass through the decoder layers in their order, inside the model's lock: gives `hold`.

    Passes may be nested: a layer that is held already is left alone.
    """
    with contextlib.ExitStack() as stack:
        coming: dict[int, Future[list[torch.Tensor]]] = {}
        thread: list[ThreadPoolExecutor] = []

        def fetch_ahead(layer: int) -> None:
            slots = _slots(layers[layer]) if layer < len(layers) else []
            if slots:
                if not thread:
                    thread.append(ThreadPoolExecutor(1, "expertscope-weights"))
                    stack.callback(thread[0].shutdown, wait=True, cancel_futures=True)
                coming[layer] = thread[0].submit(_fetch, slots)

        @contextlib.contextmanager
        def hold(layer: int) -> Iterator[None]:
            slots = _slots(layers[layer])
            if not slots:
                yield
                return
            for other in [other for other in coming if other != layer]:  # not gone through in order: never mind
                del coming[other]
            ready = coming.pop(layer, None)
            values = _fetch(slots) if ready is None else ready.result()
            try:
                _put(slots, values)
                values.clear()
                fetch_ahead(layer + 1)
                yield
            finally:
                _drop(slots)

        yield hold


def kept_elsewhere(layers: nn.ModuleList) -> int:
    """Bytes of the largest layer that is not here; 0 if all are."""
    return max((sum(_tensor(slot).nbytes for slot in _slots(layer)) for layer in layers), default=0)


def _slots(layer: nn.Module) -> list[_Slot]:
    """The layer's tensors that its hooks would fetch at a call. Those of special kinds are left to the hooks."""
    slots: list[_Slot] = []
    for module in layer.modules():
        hook = getattr(module, "_hf_hook", None)
        for one in hook.hooks if isinstance(hook, SequentialHook) else [hook]:
            if not isinstance(one, AlignDevicesHook) or not one.offload:
                continue
            names = named_module_tensors(
                module, include_buffers=one.offload_buffers, recurse=one.place_submodules, remove_non_persistent=True
            )
            mine = [(name, value) for name, value in names if value.device.type == "meta"]
            if all(type(value) in (nn.Parameter, torch.Tensor) for _, value in mine):
                slots += [_Slot(module, name, one, *_origin(one.weights_map, name)) for name, _ in mine]
    return slots


def _origin(weights: Any, name: str) -> tuple[Mapping[str, torch.Tensor], str]:
    """The mapping behind accelerate's wrappers, and the tensor's name in it."""
    while isinstance(weights, PrefixedDataset):
        weights, name = weights.dataset, weights.prefix + name
    if isinstance(weights, OffloadedWeightsLoader) and isinstance(weights.state_dict, StoredWeights):
        weights = weights.state_dict
    return weights, name


def _fetch(slots: list[_Slot]) -> list[torch.Tensor]:
    """The slots' tensors, in their order."""
    together = {id(slot.source): slot.source for slot in slots if isinstance(slot.source, StoredWeights)}
    found = {
        key: source.fetch([slot.key for slot in slots if slot.source is source]) for key, source in together.items()
    }
    return [found.get(id(slot.source), slot.source)[slot.key] for slot in slots]


def _put(slots: list[_Slot], values: list[torch.Tensor]) -> None:
    for slot, value in zip(slots, values, strict=True):
        set_module_tensor_to_device(
            slot.module, slot.name, slot.hook.execution_device, value=value, clear_cache=False
        )
    for slot in slots:
        slot.hook.offload = False  # a call then fetches nothing and drops nothing


def _drop(slots: list[_Slot]) -> None:
    for slot in slots:
        slot.hook.offload = True
        set_module_tensor_to_device(slot.module, slot.name, "meta")


def _tensor(slot: _Slot) -> torch.Tensor:
    *path, name = slot.name.split(".")
    return getattr(slot.module.get_submodule(".".join(path)), name)
