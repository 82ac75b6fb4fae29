"""How a vector added to the stream, or to a block's output, comes out of its layer: times a factor, if it is one.

Found by trying, so that residual multipliers need no family's name. A layer whose residual path is no plain factor
(a norm on it, say) has None. Knows one layer at a time, no model.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from .hooks import hooks, stub


def factor(moved: torch.Tensor, vector: torch.Tensor, tolerance: float) -> float | None:
    """f with moved = f · vector (both [..., d]) within `tolerance`, relative; None where there is none, or it is 0.

    1 itself where that is within `tolerance`.
    """
    moved, vector = moved.double().reshape(-1), vector.double().expand(moved.shape).reshape(-1)
    found = (moved @ vector / (vector @ vector)).item()
    found = 1.0 if abs(found - 1) <= tolerance else found
    error = (moved - found * vector).norm().item()
    return found if found and error <= tolerance * abs(found) * vector.norm().item() else None


@contextlib.contextmanager
def recorded(layer: nn.Module) -> Iterator[dict[nn.Module, deque[Any]]]:
    """Collects what the parts of a layer that hold matrices put out, call by call."""
    seen: dict[nn.Module, deque[Any]] = {part: deque() for part in _parts(layer)}

    def note(part: nn.Module) -> Callable:
        return lambda module, args, output: seen[part].append(tree_map(_copy, output))

    with hooks(*(part.register_forward_hook(note(part)) for part in seen)):
        yield seen


@contextlib.contextmanager
def replayed(seen: dict[nn.Module, deque[Any]]) -> Iterator[None]:
    """Inside, the parts of `recorded` put out again what they put out then, whatever they are given; once."""

    def again(outputs: deque[Any]) -> Callable:
        return lambda *args, **kwargs: outputs.popleft()

    with contextlib.ExitStack() as stack:
        for part, outputs in seen.items():
            stack.enter_context(stub(part, again(outputs)))
        yield


def _copy(value: Any) -> Any:
    """What comes out may be changed in place later on."""
    return value.clone() if torch.is_tensor(value) else value


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost descendants that hold a matrix of their own: linear maps, fused experts, routers, mixers."""
    for child in module.children():
        if any(p.ndim >= 2 for p in child.parameters(recurse=False)):
            yield child
        else:
            yield from _parts(child)
