"""Noise on the subject's embeddings: how much, which draw, and adding it to a running model.

The rule is protocol.md's: Gaussian noise of std = noise level × std of the whole input-embedding table, one
generator per (seed + case_id), added in fp32 to what the embedding module puts out.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from .by_rows import rows_per_piece


def embedding_std(embedding: nn.Module) -> float:
    """Std (unbiased, as `Tensor.std`) over all entries of the embedding table as the module puts it out, in fp32.

    A module that scales inside (gemma's) counts with its scale. One pass over chunks, in fp64, so that the result does
    not depend on the chunk size (Chan, Golub, LeVeque 1979, on joining sums of squares).
    """
    n_rows = embedding.num_embeddings if hasattr(embedding, "num_embeddings") else embedding.weight.shape[0]
    device, step = embedding.weight.device, rows_per_piece(embedding.weight.shape[-1])
    plain = type(embedding) is nn.Embedding and embedding.max_norm is None and device.type != "meta"

    def chunks() -> Iterator[torch.Tensor]:
        for start in range(0, n_rows, step):
            if plain:
                yield embedding.weight[start : start + step].float()
            else:
                ids = torch.arange(start, min(start + step, n_rows), device=None if device.type == "meta" else device)
                yield embedding(ids).float()

    with torch.no_grad():
        count, mean, squares = 0, 0.0, 0.0
        for chunk in chunks():
            values = chunk.double()
            n, own = values.numel(), values.mean().item()
            squares += (values - own).square_().sum().item() + (own - mean) ** 2 * count * n / (count + n)
            count, mean = count + n, (mean * count + own * n) / (count + n)
    return math.sqrt(squares / (count - 1))


def draw_noise(*, seed: int, case_id: int, draws: int, n_subject: int, hidden: int, sigma: float) -> torch.Tensor:
    """Noise of all draws of one fact: [draws, n_subject, hidden], fp32, on the CPU.

    sigma = noise level × `embedding_std`, in embedding units.
    """
    generator = torch.Generator("cpu").manual_seed(seed + case_id)
    return torch.randn(draws, n_subject, hidden, generator=generator) * sigma


@contextlib.contextmanager
def noised(
    embedding: nn.Module, noise: Sequence[torch.Tensor | None], positions: Sequence[Sequence[int]]
) -> Iterator[None]:
    """Inside, row i of the embedding output gets `noise[i]` ([n_subject, hidden], fp32) at `positions[i]`.

    Added in fp32, then cast back to the output's dtype. None leaves a row as it is.
    """

    def add(module, args, output):  # noqa: ANN001, ANN202 - a torch hook
        output = output.clone()
        for row, (values, where) in enumerate(zip(noise, positions, strict=True)):
            if values is not None:
                at = torch.as_tensor(where, device=output.device)
                output[row, at] = (output[row, at].float() + values.to(output.device)).to(output.dtype)
        return output

    handle = embedding.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
