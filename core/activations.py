"""What one unpatched run leaves behind: enough to answer further questions without running it again.

Stored as safetensors bytes in the model's own dtype, so that a reused answer is the same answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from safetensors.torch import load, save


@dataclass
class Activations:
    """Of one run (clean, or corrupt with one noise draw) of T tokens in a model of L layers, M of them MoE.

    `resid` [L+1, T, d]: input of each layer, and the output of the last one. `y` [M, T, d]: MoE-block output.
    `x` [M, T, d_in]: what the experts received. `index`, `weight` [M, T, k]: routed experts and router weights.
    `margin` [M, T]: k-th minus (k+1)-th router score (NaN where unknown); `near_tie` [M, T]: bool.
    `block_input` [M, T, d]: only where experts' outputs are transformed after their sum.
    """

    resid: torch.Tensor
    y: torch.Tensor
    x: torch.Tensor
    index: torch.Tensor
    weight: torch.Tensor
    margin: torch.Tensor
    near_tie: torch.Tensor
    block_input: torch.Tensor | None = None

    def to_bytes(self) -> bytes:
        """Safetensors bytes; `from_bytes` reads them back bit for bit."""
        named = {name: value.contiguous() for name, value in vars(self).items() if value is not None}
        return save(named)

    @classmethod
    def from_bytes(cls, data: bytes) -> Activations:
        """The inverse of `to_bytes`."""
        return cls(**load(data))

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return sum(v.numel() * v.element_size() for v in vars(self).values() if v is not None)
