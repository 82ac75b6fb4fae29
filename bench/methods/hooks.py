"""Plain PyTorch forward hooks on the unmodified model: one forward per cell, and the cells of a layer batched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..case import OBJECTS, Case
from .method import HeatMap, Method


@contextmanager
def hooked(module: torch.nn.Module, hook) -> Iterator[None]:  # noqa: ANN001 - a torch hook
    """The hook is there inside only."""
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def clean_outputs(case: Case) -> list[torch.Tensor]:
    """The MoE block output of every layer in the clean run, [1, T, d] each, by one hooked forward."""
    seen: list[torch.Tensor] = []
    handles = [
        layer.mlp.register_forward_hook(lambda module, args, output: seen.append(output.clone()))
        for layer in case.model.model.layers
    ]
    try:
        case.model(input_ids=case.ids, use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _object_logits(case: Case, embedded: torch.Tensor) -> torch.Tensor:
    """Logits of the two objects at the last position, [rows, 2]; no other position's logits are computed."""
    return case.model(inputs_embeds=embedded, use_cache=False, logits_to_keep=1).logits[:, -1, list(OBJECTS)]


def _prepare_plain(case: Case) -> HeatMap:
    @torch.no_grad()
    def heat_map() -> torch.Tensor:
        clean = clean_outputs(case)
        corrupt = case.corrupt_embeddings()
        cells = []
        for embedded in corrupt:
            for layer, y in zip(case.model.model.layers, clean, strict=True):
                for pos in case.positions:

                    def restore(module, args, output, pos=pos, y=y):  # noqa: ANN001, ANN202
                        output[:, pos] = y[:, pos]
                        return output

                    with hooked(layer.mlp, restore):
                        cells.append(_object_logits(case, embedded[None]))
        return torch.cat(cells).view(case.draws, len(clean), len(case.positions), 2)

    return heat_map


def _prepare_batched(case: Case) -> HeatMap:
    @torch.no_grad()
    def heat_map() -> torch.Tensor:
        clean = clean_outputs(case)
        positions = torch.tensor(case.positions).repeat(case.draws)
        rows = torch.arange(len(positions))
        embedded = case.corrupt_embeddings().repeat_interleave(len(case.positions), 0)
        layers = []
        for layer, y in zip(case.model.model.layers, clean, strict=True):

            def restore(module, args, output, y=y):  # noqa: ANN001, ANN202
                output[rows, positions] = y[0, positions]
                return output

            with hooked(layer.mlp, restore):
                layers.append(_object_logits(case, embedded).view(case.draws, -1, 2))
        return torch.stack(layers, 1)

    return heat_map


PLAIN = Method(
    key="hooks",
    name="plain forward hooks",
    per_cell="one forward of the corrupt prompt with a hook on the layer's MoE block",
    prepare=_prepare_plain,
    role="baseline",
)
BATCHED = Method(
    key="hooks_batched",
    name="plain forward hooks, a layer's cells batched",
    per_cell="one row of a batch: one forward per layer holds all its cells (of all draws)",
    prepare=_prepare_batched,
    role="batched",
)
