"""How much work fits into memory at a time: tokens per layer call, facts per sweep.

The cost of a token inside a layer is measured on the model (`Structure.bytes_per_token`); the size of what is kept
follows from the shapes; both are held against the memory that is free now.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .memory import available_bytes
from .moe import MoeModel

_KEPT_SHARE = 0.35  # of the free memory, for rows' states and activations
_WORKING_SHARE = 0.25  # for what a layer call allocates on the way
_MOST_TOKENS = 16_384  # more at a time is not faster


@dataclass(frozen=True)
class Budget:
    """`chunk_tokens`: tokens that go through a layer at a time. `kept_bytes`: for rows and activations of a sweep."""

    chunk_tokens: int
    kept_bytes: int

    @classmethod
    def measure(cls, model: MoeModel) -> Budget:
        """The budget at this moment on the model's device."""
        free = available_bytes(model.device)
        tokens = int(free * _WORKING_SHARE / model.structure.bytes_per_token)
        return cls(chunk_tokens=max(64, min(_MOST_TOKENS, tokens)), kept_bytes=int(free * _KEPT_SHARE))

    @staticmethod
    def rows_bytes(model: MoeModel, length: int, start: int, draws: int, experts: str | tuple[int, ...]) -> int:
        """Bytes of one fact's rows and activations, from the shapes (experts: every slot of clean and corrupt)."""
        layers, per_token = len(model.moe_layers), model.hidden * model.dtype.itemsize
        suffixes = sum(range(1, length - start + 1))
        tokens = layers * draws * suffixes
        per_place = 2 * model.top_k + 1
        if experts == "all":
            tokens += layers * draws * suffixes * per_place
        elif experts == "last":
            tokens += layers * draws * per_place
        elif experts != "none":
            tokens += layers * draws * per_place * sum(length - min(length, pos) for pos in experts)
        activations = (1 + draws) * length * (model.n_layers + 1 + 2 * layers)
        return (tokens + activations) * per_token

    def batches(self, sizes: Sequence[int]) -> Iterator[list[int]]:
        """Indices of `sizes`, in order, cut where the kept bytes would be exceeded; one too large stands alone."""
        batch: list[int] = []
        total = 0
        for i, size in enumerate(sizes):
            if batch and total + size > self.kept_bytes:
                yield batch
                batch, total = [], 0
            batch.append(i)
            total += size
        if batch:
            yield batch
