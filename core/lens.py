"""What a vector does to the logits of the whole vocabulary, with the final norm's scale frozen (the logit lens).

The quantity is that of `core.direct` (protocol.md, "direct logit attribution"), for every token at once: without a
gradient per token. The head's norm is taken to have the form a(s)·M s + b with one factor a(s) per state, as there;
that it has is seen from three passes through the head. Knows no experts.
"""

from __future__ import annotations

import torch

from .head import given_to_unembedding, logit_slopes, unembed
from .moe import MoeModel

_TOLERANCE, _TOLERANCE_HALF = 1e-3, 2.0**-5
_NUMBERS = 2**25  # of slopes at a time


@torch.no_grad()
def vocabulary_effects(model: MoeModel, states: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Mean effect of adding a vector on every logit: [n, V] in logits, fp32, on the CPU.

    `states` [R, d]: hidden states after the last layer, each with the scale of the final norm that is frozen and the
    logits at which a soft-cap is linearised; the effect is averaged over them. `vectors` [n, d], as they arrive behind
    the last layer. Rows of NaN where the head's norm is not of the form above, where there are no states, and for
    vectors of length 0.
    """
    out = torch.full((vectors.shape[0], model.unembedding.weight.shape[0]), torch.nan)
    if not len(states):
        return out
    states = states.float()
    zero = given_to_unembedding(model, torch.zeros_like(states[:1]))
    own = given_to_unembedding(model, states) - zero
    size = states.norm(dim=-1).mean()
    found = {}
    for i, vector in enumerate(vectors.to(states)):
        if not (length := vector.norm()) > 0:
            continue
        moved = vector * (size / length)  # as long as a state, so that rounding does not matter
        alone = given_to_unembedding(model, moved[None])[0] - zero[0]
        ratio = _ratio(model, own, alone, given_to_unembedding(model, states + moved) - zero)
        if ratio is not None:
            found[i] = ratio, alone * (length / size).cpu()
    if found:
        products = unembed(model, torch.stack([written for _, written in found.values()]))
        ratios = torch.stack([ratio for ratio, _ in found.values()])
        out[list(found)] = products * _mean_slopes(model, own + zero, ratios)
    return out


def _ratio(model: MoeModel, own: torch.Tensor, alone: torch.Tensor, both: torch.Tensor) -> torch.Tensor | None:
    """a(state) ÷ a(vector) of each state [R], None where the norm is not of the form.

    With P(s) = a(s)·M s: P(s + v) = α P(s) + β P(v) with α = a(s + v) ÷ a(s) and β = a(s + v) ÷ a(v). Solved by least
    squares; what is left over must be nothing.
    """
    own, both = own.double(), both.double()
    alone = alone.double().expand_as(own)
    aa, ab, bb = (own * own).sum(-1), (own * alone).sum(-1), (alone * alone).sum(-1)
    ca, cb = (own * both).sum(-1), (alone * both).sum(-1)
    determinant = aa * bb - ab * ab
    alpha, beta = (bb * ca - ab * cb) / determinant, (aa * cb - ab * ca) / determinant
    left = (both - alpha[:, None] * own - beta[:, None] * alone).norm(dim=-1)
    limit = _TOLERANCE if model.dtype == torch.float32 else _TOLERANCE_HALF
    good = (left <= limit * both.norm(dim=-1)) & (alpha > 0) & (beta > 0)
    return (beta / alpha).float() if bool(good.all()) else None


def _mean_slopes(model: MoeModel, given: torch.Tensor, ratios: torch.Tensor) -> torch.Tensor:
    """Mean over the states of ratio · slope: [n, 1] where all slopes are one number, else [n, V]. `given` [R, D]: what
    the unembedding receives in each state."""
    n_tokens = model.unembedding.weight.shape[0]
    tried = logit_slopes(model, torch.linspace(-50, 50, n_tokens)[None] * torch.tensor([[1.0], [-0.1]]))
    if bool((tried == tried[0, 0]).all()):
        return ratios.mean(-1, keepdim=True) * tried[0, 0]
    step = max(1, _NUMBERS // n_tokens)
    total = torch.zeros(ratios.shape[0], n_tokens)
    for at in range(0, len(given), step):
        raw = unembed(model, given[at : at + step], biased=True)
        total += ratios[:, at : at + step] @ logit_slopes(model, raw)
    return total / len(given)
