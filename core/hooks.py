"""Borrowing a module for a moment: replacing its forward, watching its inputs and outputs.

Everything here is a context manager that leaves the module exactly as it was, also after an exception. It knows
nothing of what the modules are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


def untuple(output: Any) -> torch.Tensor:
    """The first element where a module returns a tuple, else the output itself."""
    return output[0] if isinstance(output, tuple) else output


def retuple(output: Any, first: torch.Tensor) -> Any:
    """`output` with its (first) tensor replaced by `first`."""
    return (first, *output[1:]) if isinstance(output, tuple) else first


@contextlib.contextmanager
def stub(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace `module.forward` for a while.

    An instance attribute `forward` may exist already: accelerate keeps its offloading hooks there. It is put
    back, never just deleted.
    """
    previous = module.__dict__.get("forward")
    module.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        if previous is None:
            del module.forward
        else:
            module.forward = previous  # type: ignore[method-assign]


@contextlib.contextmanager
def hooks(*handles: Any) -> Iterator[None]:
    """Remove registered hook handles at the end, whatever happens."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def outputs_of(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collects the (first) outputs of `module` for every call inside."""
    seen: list[torch.Tensor] = []
    with hooks(module.register_forward_hook(lambda module, args, output: seen.append(untuple(output)))):
        yield seen


class TopKWatch(TorchFunctionMode):
    """Remembers every `torch.topk` over a last dimension of `width`: (scores, k), in call order; counts the others.

    Routers of all families select with `topk`; watching the call gives the selection scores without knowing
    what a family's router returns.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.calls: list[tuple[torch.Tensor, int]] = []
        self.others = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204 - torch's signature
        kwargs = kwargs or {}
        if func in (torch.topk, torch.Tensor.topk):
            scores = args[0] if args else kwargs["input"]
            k = args[1] if len(args) > 1 else kwargs["k"]
            if scores.shape[-1] == self.width:
                self.calls.append((scores.detach(), int(k)))
            else:
                self.others += 1
        return func(*args, **kwargs)
