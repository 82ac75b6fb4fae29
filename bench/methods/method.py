"""What a method is: a name, words for what it does per cell, and a function that prepares it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from ..case import Case

HeatMap = Callable[[], torch.Tensor]
"""Computes everything from token ids on, clean and corrupt run included: [draws, layers, positions, 2], fp32 logits of
the true object and the foil in the patched corrupt runs."""


@dataclass(frozen=True)
class Method:
    """`prepare` loads and wraps (untimed) and returns the function that is timed.

    `package`: distribution whose version is shown. `folder`: where in the environment its own packages lie, if it
    cannot share the others' (it then runs in a process of its own). `role`: `ours`, `baseline` (plain PyTorch),
    `library`, or `batched` (cells batched by hand or by a library: the fair middle).
    """

    key: str
    name: str
    per_cell: str
    prepare: Callable[[Case], HeatMap]
    role: Literal["ours", "baseline", "library", "batched"]
    package: str = "transformers"
    folder: str = ""
