"""Direct logit attribution: what of a vector on the stream reaches the logits without any later layer's help.

The final norm's scale is frozen, the rest of the model's own head is linearised (protocol.md). No norm's formula is
known here. The head may be anything whose norm has the form a(s)·M s + b with one factor a(s) per state (RMSNorm,
LayerNorm): its Jacobian J is a·M + P gᵀ with P = a·M s and g = ∇a / a, and comparing J at two states gives g, hence
the frozen map a·M = J − P gᵀ. A head that is not of this form is noticed, and the direct part is then missing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .head import head_graph
from .moe import MoeModel
from .structure import Structure

_ROWS = 64
_TOLERANCE, _TOLERANCE_HALF = 1e-3, 2.0**-5
NO_FACTOR = (
    "In this model something else than a factor lies between the output of this layer's MoE block and the final norm "
    "(another norm, say): what of a write reaches the logits directly is not defined, so nothing is claimed."
)
NO_FROZEN_SCALE = (
    "The model's final norm does not have the form scale × linear map + bias, so that no scale can be frozen: what of "
    "a write reaches the logits directly is not defined, and nothing is claimed."
)


def directions(model: MoeModel, states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Gradients of logits with the final norm's scale frozen: [R, m, d], fp32, on the CPU.

    For states after the last layer [R, d] and token ids [R, m]: the logit of ids[r, j] moves by `out[r, j] @ v` when v
    is added to states[r] and neither the norm's scale nor the slope of a soft-cap changes. NaN where the head's norm
    is not of the form above.
    """
    parts = [
        _some(model, states[at : at + _ROWS], ids[at : at + _ROWS]) for at in range(0, states.shape[0], _ROWS)
    ]  # fmt: skip
    return torch.cat(parts) if parts else torch.zeros(0, ids.shape[1], states.shape[-1])


def reach(structure: Structure, n_layers: int) -> dict[int, float | None]:
    """{MoE layer: factor with which a vector added to its block's output arrives behind the last layer}; None where
    some residual path on the way is no plain factor."""
    out: dict[int, float | None] = {}
    behind: float | None = 1.0  # of a vector on the stream behind the layer
    for layer in range(n_layers - 1, -1, -1):
        if layer in structure.branch:
            branch = structure.branch[layer]
            out[layer] = None if behind is None or branch is None else behind * branch
        through = structure.stream[layer]
        behind = None if behind is None or through is None else behind * through
    return out


def contrast_directions(
    model: MoeModel, finals: torch.Tensor, objects: Sequence[Sequence[int]], factor: float | None
) -> torch.Tensor:
    """[R, d] on the CPU: `out[r] @ v` is the direct part, on the contrast of objects[r] (true, foil), of a vector v
    that is added to a block's output. `finals` [R, d]: last hidden states, with the scales that are frozen; `factor`:
    how the vector arrives (see `reach`). NaN where that, or a frozen scale, is not defined."""
    if factor is None:
        return torch.full(finals.shape, torch.nan, dtype=torch.float32)
    both = directions(model, finals, torch.as_tensor(objects).reshape(-1, 2))
    return (both[:, 0] - both[:, 1]) * factor


class DirectParts:
    """The direct parts of the expert updates that a sweep meets, one by one: noted layer by layer, worked out when the
    final states are known."""

    def __init__(self, model: MoeModel) -> None:
        self._model = model
        self._noted: list[tuple[int, int, torch.Tensor]] = []  # (corrupt run, layer, updates [n, d])
        self._n = 0

    def note(self, corrupt: int, layer: int, updates: torch.Tensor) -> int:
        """Note updates [n, d] at the last position, in the corrupt run `corrupt`; the index of the first of them."""
        first = self._n
        # in the model's own number format: as much memory as the rows of a sweep take, and no less exact than they
        self._noted.append((corrupt, layer, updates.to(self._model.dtype)))
        self._n += updates.shape[0]
        return first

    def values(self, finals: torch.Tensor, objects: Sequence[Sequence[int]]) -> np.ndarray:
        """[n] in logits, by index. `finals` [runs, d]: last hidden states; `objects`: (true, foil) ids of each run."""
        if not self._noted:
            return np.zeros(0)
        factors = reach(self._model.structure, self._model.n_layers)
        if all(factors[layer] is None for _, layer, _ in self._noted):
            return np.full(self._n, np.nan)
        runs = sorted({run for run, _, _ in self._noted})
        ids = torch.as_tensor([list(objects[run]) for run in runs])
        both = directions(self._model, finals[runs], ids)
        along = dict(zip(runs, both[:, 0] - both[:, 1], strict=True))  # of the contrast, [d]
        out = []
        for run, layer, updates in self._noted:
            by = factors[layer]
            out.append(updates.float() @ along[run].to(updates.device) * (float("nan") if by is None else by))
        return torch.cat([values.cpu() for values in out]).double().numpy()


def _some(model: MoeModel, states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """`directions` of a few rows."""
    with torch.enable_grad():
        here, there = _Head(model, states, ids), _Head(model, states.roll(1, dims=-1), ids)  # any other direction
        zero = _Head(model, torch.zeros_like(states), ids).given
        p, p_there = here.given - zero, there.given - zero
        some = torch.randn(p.shape[-1], generator=torch.Generator().manual_seed(0)).to(p).expand_as(p)
        across = _off(_off(p_there, p), p)  # p, p_there span what the factor of the norm acts on
        aside = _off(_off(some, p), across)
        at_here, at_there = here.pull(aside), there.pull(aside)
        ratio = _dot(at_there, at_here) / _dot(at_here, at_here)  # of the norm's two factors
        y = _off(p, p_there)
        g = (ratio * here.pull(y) - there.pull(y)) / (ratio * _dot(y, p))
        out = []
        for j in range(ids.shape[1]):
            q, gradient = here.of_logit(j)
            out.append(gradient - _dot(q, p) * g)
        mapped = here.pull(p) - _dot(p, p) * g
    found = torch.stack(out, 1)
    # is the head of this form? Then both Jacobians agree aside, and the frozen map takes the state to the norm's value
    limit = _TOLERANCE if model.dtype == torch.float32 else _TOLERANCE_HALF
    good = (at_there - ratio * at_here).norm(dim=-1) <= limit * at_there.norm(dim=-1)
    value, want = _dot(mapped, states.float())[:, 0], _dot(p, p)[:, 0]
    good &= (value - want).abs() <= limit * want
    return torch.where(good[:, None, None], found, torch.nan).cpu()


class _Head:
    """One pass of states [R, d] through the head, ready to be differentiated. `given`: what the unembedding gets."""

    def __init__(self, model: MoeModel, states: torch.Tensor, ids: torch.Tensor) -> None:
        self._states = states.detach().float().requires_grad_()
        try:
            self._logits, given = head_graph(model, self._states, ids)
        except RuntimeError:  # a norm that takes its own number format only
            self._logits, given = head_graph(model, self._states.to(states.dtype), ids)
        self._given = given
        self.given = given.detach()[:, -1].to(states.device)

    def pull(self, vectors: torch.Tensor) -> torch.Tensor:
        """Jᵀ `vectors`, J the Jacobian of what the unembedding gets: [R, d]."""
        total = (self._given[:, -1] * vectors.to(self._given.device)).sum()
        return torch.autograd.grad(total, self._states, retain_graph=True)[0]

    def of_logit(self, j: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients of each row's j-th logit: by what the unembedding gets, and by the state; both [R, d]."""
        total = self._logits[:, j].sum()
        by_given, by_state = torch.autograd.grad(total, [self._given, self._states], retain_graph=True)
        return by_given[:, -1].to(by_state.device), by_state


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum(-1, keepdim=True)


def _off(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The part of a that is orthogonal to b, row by row."""
    return a - _dot(a, b) / _dot(b, b) * b
