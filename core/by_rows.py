"""The embedding and the unembedding table left on the disk: of a table as large as a layer few rows are ever needed.

A prompt needs its tokens' rows, a contrast two; all rows are only gone through in pieces. Knows the two modules and the
file; nothing of runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional

from .checkpoint import Checkpoint

PIECE = 2**22  # numbers of a table at a time, where all of it is gone through
_CLOSE = 32  # rows between two wanted ones that are read along rather than skipped


class RowTable:
    """A stored table [rows, d]; indexing it reads what is asked for. In `dtype`, on `device`."""

    def __init__(self, checkpoint: Checkpoint, stored: str, dtype: torch.dtype, device: torch.device) -> None:
        self._checkpoint, self._stored = checkpoint, stored
        self.shape = torch.Size(checkpoint.tensors[stored].shape)
        self.dtype, self.device = dtype, device

    def __getitem__(self, index: slice | torch.Tensor) -> torch.Tensor:
        """Rows of a slice [n, d], or of a tensor of indices [..., d]."""
        if isinstance(index, slice):
            start, stop, _ = index.indices(self.shape[0])
            return self._read(start, max(start, stop))
        wanted, inverse = index.to(self.device).unique(return_inverse=True)
        return self.rows(wanted)[inverse]

    def rows(self, wanted: torch.Tensor) -> torch.Tensor:
        """Rows by ascending indices [n]: [n, d]."""
        numbers = wanted.tolist()
        out = torch.empty((len(numbers), *self.shape[1:]), dtype=self.dtype, device=self.device)
        at = 0
        while at < len(numbers):
            end = at + 1
            while end < len(numbers) and numbers[end] - numbers[end - 1] <= _CLOSE:
                end += 1
            first = numbers[at]
            some = self._read(first, numbers[end - 1] + 1)
            out[at:end] = some[wanted[at:end] - first]
            at = end
        return out

    def _read(self, start: int, stop: int) -> torch.Tensor:
        return self._checkpoint.read_rows(self._stored, start, stop).to(self.device, self.dtype)


def rows_per_piece(width: int) -> int:
    """Rows of a table of that width to go through at a time."""
    return max(1, PIECE // width)


def table_of(module: nn.Module) -> torch.Tensor | RowTable:
    """The weight of an (un)embedding, wherever it is."""
    return module.__dict__.get("_table", module.weight)


def embed_by_rows(module: nn.Module, table: RowTable) -> None:
    """From now on the embedding reads the rows that it is asked for. Its own forward still does the arithmetic."""
    forward = type(module).forward

    def from_rows(ids: torch.Tensor) -> torch.Tensor:
        wanted, inverse = ids.to(table.device).unique(return_inverse=True)
        with _standing_in(module, table.rows(wanted)):
            return forward(module, inverse)

    module.__dict__["_table"] = table
    module.forward = from_rows  # type: ignore[method-assign]


def unembed_by_rows(module: nn.Linear, table: RowTable) -> None:
    """From now on the unembedding goes through its table in pieces."""

    def in_pieces(hidden: torch.Tensor) -> torch.Tensor:
        hidden, step, out = hidden.to(table.device), rows_per_piece(table.shape[1]), []
        for at in range(0, table.shape[0], step):
            bias = None if module.bias is None else module.bias[at : at + step].to(table.device)
            out.append(functional.linear(hidden, table[at : at + step], bias))
        return torch.cat(out, -1)

    module.__dict__["_table"] = table
    module.forward = in_pieces  # type: ignore[method-assign]


@contextlib.contextmanager
def _standing_in(module: nn.Module, rows: torch.Tensor) -> Iterator[None]:
    """For a moment the module's table is `rows` alone."""
    weight, padding = module.weight, getattr(module, "padding_idx", None)
    module.padding_idx = None  # an index into the whole table; it matters for gradients only
    module._parameters["weight"] = nn.Parameter(rows, requires_grad=False)
    try:
        yield
    finally:
        module._parameters["weight"] = weight
        module.padding_idx = padding
