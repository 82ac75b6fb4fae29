"""The experts' sum for training on one CPU thread, with its gradient written out.

The same function as the stock experts of ``Qwen3MoeForCausalLM`` (a test compares them), only quicker at this
size: tokens are sorted by expert once, each expert is two matrix products on a contiguous slice, and everything
else is done for all experts together.  Inference uses the stock code.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

NAME = "demo_sorted"


class _SortedExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weights, gate_up, down, index):
        top_k = index.shape[1]
        order = index.reshape(-1).argsort(stable=True)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order))
        token = order // top_k
        counts = torch.bincount(index.reshape(-1), minlength=len(gate_up)).tolist()
        x = hidden[token]
        projected = x.new_empty(len(x), gate_up.shape[1])
        start = 0
        for e, n in enumerate(counts):
            torch.mm(x[start : start + n], gate_up[e].T, out=projected[start : start + n])
            start += n
        gate, up = projected.chunk(2, dim=-1)
        sigmoid = torch.sigmoid(gate)
        inner = gate * sigmoid * up
        y = torch.empty_like(x)
        start = 0
        for e, n in enumerate(counts):
            torch.mm(inner[start : start + n], down[e].T, out=y[start : start + n])
            start += n
        y = y[inverse].view(len(hidden), top_k, -1)
        ctx.save_for_backward(weights, gate_up, down, x, projected, sigmoid, inner, y, order, inverse, token)
        ctx.counts = counts
        return (y * weights[..., None]).sum(1)

    @staticmethod
    def backward(ctx, grad):
        weights, gate_up, down, x, projected, sigmoid, inner, y, order, inverse, token = ctx.saved_tensors
        top_k = weights.shape[1]
        d_weights = (y * grad[:, None]).sum(-1)
        d_y = grad[token] * weights.reshape(-1)[order][:, None]
        d_inner = torch.empty_like(inner)
        d_down = torch.zeros_like(down)
        start = 0
        for e, n in enumerate(ctx.counts):
            torch.mm(d_y[start : start + n], down[e], out=d_inner[start : start + n])
            torch.mm(d_y[start : start + n].T, inner[start : start + n], out=d_down[e])
            start += n
        gate, up = projected.chunk(2, dim=-1)
        silu = gate * sigmoid
        d_projected = torch.cat([d_inner * up * (sigmoid + silu * (1 - sigmoid)), d_inner * silu], dim=-1)
        d_x = torch.empty_like(x)
        d_gate_up = torch.zeros_like(gate_up)
        start = 0
        for e, n in enumerate(ctx.counts):
            torch.mm(d_projected[start : start + n], gate_up[e], out=d_x[start : start + n])
            torch.mm(d_projected[start : start + n].T, x[start : start + n], out=d_gate_up[e])
            start += n
        return d_x[inverse].view(-1, top_k, x.shape[1]).sum(1), d_weights, d_gate_up, d_down, None


def sorted_experts(self, hidden_states, top_k_index, top_k_weights):
    """Drop-in for the stock experts' forward."""
    return _SortedExperts.apply(hidden_states, top_k_weights, self.gate_up_proj, self.down_proj, top_k_index)


ALL_EXPERTS_FUNCTIONS.register(NAME, sorted_experts)
