"""How much work fits into memory at a time: tokens per layer call, facts per sweep.

The cost of a token inside a layer is measured on the model (`Structure.bytes_per_token`); the size of what is kept
follows from the shapes; both are held against the memory that is free now.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .answers import ENDS, LAYER, parts_of, position_of
from .memory import available_bytes
from .moe import MoeModel
from .prompts import PreparedFact
from .requests import TraceRequest
from .room import Room
from .weights import LAYERS_AT_ONCE, kept_elsewhere

_KEPT_SHARE = 0.35  # of the free memory, for rows' states and activations
_WORKING_SHARE = 0.25  # for what a layer call allocates on the way
_MOST_TOKENS = 16_384  # more at a time is not faster
_MOST_TOKENS_CPU = 2048  # larger intermediate results only leave the processor's cache


@dataclass(frozen=True)
class Budget:
    """`chunk_tokens`: tokens that go through a layer at a time (a `Room` is halved where memory runs out all the same).
    `kept_bytes`: for rows and activations of a sweep."""

    chunk_tokens: Room | int
    kept_bytes: int

    @classmethod
    def measure(cls, model: MoeModel) -> Budget:
        """The budget at this moment on the model's device, less what the layers take that come in one by one."""
        free = max(0, available_bytes(model.device) - int(LAYERS_AT_ONCE * kept_elsewhere(model.layers)))
        tokens = int(free * _WORKING_SHARE / model.structure.bytes_per_token)
        most = _MOST_TOKENS_CPU if model.device.type == "cpu" else _MOST_TOKENS
        return cls(chunk_tokens=Room(max(64, min(most, tokens))), kept_bytes=int(free * _KEPT_SHARE))

    @staticmethod
    def part_bytes(model: MoeModel, fact: PreparedFact, part: str) -> int:
        """Bytes that one row set of one draw keeps during a sweep: its rows, and for experts their contributions."""
        layers, length, first = len(model.moe_layers), len(fact.input_ids), fact.subject_positions[0]
        if part == ENDS:
            return 0
        if part == LAYER:
            return layers * sum(range(1, length - first + 1)) * model.hidden * model.dtype.itemsize
        pos = position_of(part)
        if pos < first:
            return 0  # nothing is computed left of the subject
        kept = length - pos + (pos == length - 1)  # positions of a row; at the last one also the updates themselves
        rows = layers * (2 * model.top_k + 1) * kept * model.dtype.itemsize
        return (rows + 2 * model.top_k * 4) * model.hidden

    @classmethod
    def answer_bytes(cls, model: MoeModel, request: TraceRequest, fact: PreparedFact) -> int:
        """Bytes of one answer: the activations of its runs, and every row set of every draw."""
        length = len(fact.input_ids)
        states = model.n_layers + 1 + 2 * len(model.moe_layers)
        activations = (1 + request.draws) * length * states * model.hidden * model.dtype.itemsize
        return activations + request.draws * sum(cls.part_bytes(model, fact, p) for p in parts_of(request, length))

    def smaller(self, taken: int, *, several: bool) -> Budget | None:
        """What to try when a sweep that kept about `taken` bytes ran out of memory: half of them; for `several` False
        (one answer alone) each of its parts alone. None where that was tried already."""
        if several:
            return dataclasses.replace(self, kept_bytes=min(self.kept_bytes, taken) // 2)
        return dataclasses.replace(self, kept_bytes=0) if self.kept_bytes else None

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
