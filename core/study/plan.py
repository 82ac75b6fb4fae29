"""The plan of a study: how its work is cut into batches. Fixed when the study starts and stored with it.

A result moves in its last digits with the rows that share a call, so a study that goes on elsewhere or later must cut
its work the same way. Knows sizes of work; no numbers that come out of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .settings import StudySettings

if TYPE_CHECKING:  # they load torch, which showing a study does without
    from ..moe import MoeModel
    from ..prompts import PreparedFact
    from .measure import Item

_BATCH_TOKENS_CPU = 4096  # a batch is committed every few seconds
_BATCH_TOKENS = 65_536
_FETCHED_TOKENS = 10**9  # where weights are fetched for every pass, memory alone decides
_TYPICAL_TOKENS = 16  # of a prompt; only for the size of a batch of the scan
_SPARE = 3.0  # candidates per fact wanted, in a batch of the scan that may be as large as it likes


@dataclass(frozen=True)
class Plan:
    """`chunk_tokens`: tokens that go through a layer at a time; `threads`: torch's; `prefix_cost`: see
    `core.structure.Structure`; `scan_facts`: candidates per batch of the scan; a batch of patches holds facts of at
    most `batch_tokens` packed tokens and `batch_bytes` of rows; `fresh_seed`: of the fresh draw."""

    chunk_tokens: int
    threads: int
    prefix_cost: float
    scan_facts: int
    batch_tokens: int
    batch_bytes: int
    fresh_seed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """The inverse of `to_dict`. Raises `InputError` for what is no plan."""
        types = {"prefix_cost": (int, float)}
        wrong = set(data) ^ {f.name for f in dataclasses.fields(cls)}
        wrong |= {k for k, v in data.items() if isinstance(v, bool) or not isinstance(v, types.get(k, int)) or v < 0}
        if wrong:
            raise InputError(
                f"The study's plan is damaged: {', '.join(sorted(wrong))}.", "Export it again.", field="plan"
            )
        return cls(**data)

    @classmethod
    def make(
        cls, model: MoeModel, settings: StudySettings, *, largest_case_id: int, batch_tokens: int | None = None
    ) -> Plan:
        """The plan for this model on this machine at this moment. `batch_tokens`: smaller or larger batches."""
        import torch

        from ..budget import Budget
        from ..room import Room

        budget = Budget.measure(model)
        if batch_tokens is None:
            batch_tokens = most_tokens(model)
        per_fact = _TYPICAL_TOKENS * (1 + settings.draws)
        # a power of two, so that a little more or less free memory makes no other plan
        kept_bytes = 1 << (max(1, int(budget.kept_bytes)).bit_length() - 1)
        by_memory = kept_bytes // (per_fact * _token_bytes(model))
        most = min(int(settings.n * _SPARE) + 8, batch_tokens // per_fact, by_memory)
        return cls(
            chunk_tokens=Room.of(budget.chunk_tokens).tokens,
            threads=torch.get_num_threads(),
            prefix_cost=model.structure.prefix_cost,
            scan_facts=max(8, int(most)),
            batch_tokens=int(batch_tokens),
            batch_bytes=kept_bytes,
            fresh_seed=settings.fresh_seed_for(largest_case_id),
        )

    def batches(self, model: MoeModel, groups: Sequence[Sequence[Item]]) -> Iterator[list[int]]:
        """Indices of `groups` (the items of one fact each), shortest prompts first, cut to the plan's sizes.

        Rows of one length run together; a group too large stands alone.
        """
        order = sorted(range(len(groups)), key=lambda i: (len(groups[i][0].fact.input_ids), i))
        batch: list[int] = []
        tokens = size = 0
        for i in order:
            its_tokens = sum(tokens_of(model, item) for item in groups[i])
            its_size = sum(bytes_of(model, item) for item in groups[i])
            if batch and (tokens + its_tokens > self.batch_tokens or size + its_size > self.batch_bytes):
                yield batch
                batch, tokens, size = [], 0, 0
            batch.append(i)
            tokens, size = tokens + its_tokens, size + its_size
        if batch:
            yield batch


def most_tokens(model: MoeModel) -> int:
    """Packed tokens of a batch: few enough that it takes seconds, and everything in one pass over weights that are
    fetched for it."""
    from ..weights import kept_elsewhere

    if kept_elsewhere(model.layers) > 0:
        return _FETCHED_TOKENS
    return _BATCH_TOKENS_CPU if model.device.type == "cpu" else _BATCH_TOKENS


def rows_of(model: MoeModel, item: Item) -> int:
    """Patched rows of an item, each a single token long (the last position)."""
    return item.draws.n * (len(item.layers) + len(item.experts_of) * model.top_k + len(item.wants))


def tokens_of(model: MoeModel, item: Item) -> int:
    """Packed tokens of an item: its runs, and its rows."""
    return len(item.fact.input_ids) * (1 + item.draws.n) + rows_of(model, item)


def bytes_of(model: MoeModel, item: Item) -> int:
    """Bytes that an item keeps during a sweep."""
    runs = len(item.fact.input_ids) * (1 + item.draws.n) * _token_bytes(model)
    return runs + rows_of(model, item) * 2 * model.hidden * model.dtype.itemsize


def cost_of(model: MoeModel, item: Item) -> float:
    """Work of an item in tokens × layers: its runs go through all layers, a patched row through those above its own."""
    layers = model.n_layers
    above = sum(layers - 1 - layer for layer in item.layers)
    above += model.top_k * sum(layers - 1 - layer for layer in item.experts_of)
    above += sum(layers - 1 - want.layer for want in item.wants)
    return len(item.fact.input_ids) * (1 + item.draws.n) * layers + item.draws.n * above


def scan_cost(model: MoeModel, facts: Sequence[PreparedFact], draws: int) -> float:
    """The same of candidates: clean and corrupt runs without patches."""
    return sum(len(fact.input_ids) for fact in facts) * (1 + draws) * model.n_layers


def _token_bytes(model: MoeModel) -> int:
    """Bytes of one token of an unpatched run at one layer: states before and after, block input and output, experts'
    input, and contributions in fp32 at the positions that are patched (taken as all)."""
    return 6 * model.hidden * model.dtype.itemsize
