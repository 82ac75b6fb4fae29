"""Quicker training on one CPU thread: the experts' sum with its gradient written out, and fp32 attention.

The same function as the stock experts of ``Qwen3MoeForCausalLM`` (a test compares them), only several times quicker
at this size: tokens are sorted by expert once, each expert is two matrix products on a contiguous slice, everything
else is done for all experts together.  The products are in bf16, which recent CPUs have instructions for; slices are
padded with zero rows to multiples of ``BLOCK``, because oneDNN compiles a kernel for every new shape.  Inference uses
the stock code in fp32.

Under ``torch.autocast`` attention itself stays in fp32: its bf16 gradient is very slow on a CPU.
"""

from __future__ import annotations

import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

NAME = "demo_training"
BLOCK = 64
PRODUCTS = torch.bfloat16


class _SortedExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weights, gate_up, down, index):
        tokens, top_k = index.shape
        gate_up, down = gate_up.to(PRODUCTS), down.to(PRODUCTS)
        expert = index.reshape(-1)
        counts = torch.bincount(expert, minlength=len(gate_up))
        room = (counts + BLOCK - 1) // BLOCK * BLOCK  # rows of each expert's slice
        order = expert.argsort(stable=True)
        first_row, first_slot = room.cumsum(0) - room, counts.cumsum(0) - counts
        slot = torch.empty_like(order)  # row of each (token, k)
        slot[order] = torch.arange(len(order)) + (first_row - first_slot)[expert[order]]
        slices = [(e, a, a + n) for e, (a, n) in enumerate(zip(first_row.tolist(), room.tolist(), strict=True)) if n]

        x = torch.zeros(int(room.sum()), hidden.shape[1], dtype=PRODUCTS)
        x[slot] = hidden.to(PRODUCTS).repeat_interleave(top_k, 0)
        projected = x.new_empty(len(x), gate_up.shape[1])
        for e, a, b in slices:
            torch.mm(x[a:b], gate_up[e].T, out=projected[a:b])
        gate, up = projected.chunk(2, dim=-1)
        sigmoid = torch.sigmoid(gate)
        inner = gate * sigmoid * up
        y = torch.empty_like(x)
        for e, a, b in slices:
            torch.mm(inner[a:b], down[e].T, out=y[a:b])
        y = y[slot].view(tokens, top_k, -1).float()
        ctx.save_for_backward(weights, gate_up, down, x, projected, sigmoid, inner, y, slot)
        ctx.slices = slices
        return (y * weights[..., None]).sum(1)

    @staticmethod
    def backward(ctx, grad):
        weights, gate_up, down, x, projected, sigmoid, inner, y, slot = ctx.saved_tensors
        grad = grad.float()
        d_weights = (y * grad[:, None]).sum(-1)
        d_y = torch.zeros_like(x)
        d_y[slot] = (grad[:, None] * weights[..., None]).view(-1, x.shape[1]).to(PRODUCTS)
        d_inner, d_down = torch.empty_like(inner), torch.zeros_like(down)
        for e, a, b in ctx.slices:
            torch.mm(d_y[a:b], down[e], out=d_inner[a:b])
            torch.mm(d_y[a:b].T, inner[a:b], out=d_down[e])
        gate, up = projected.chunk(2, dim=-1)
        silu = gate * sigmoid
        d_projected = torch.cat([d_inner * up * (sigmoid + silu * (1 - sigmoid)), d_inner * silu], dim=-1)
        d_x, d_gate_up = torch.empty_like(x), torch.zeros_like(gate_up)
        for e, a, b in ctx.slices:
            torch.mm(d_projected[a:b], gate_up[e], out=d_x[a:b])
            torch.mm(d_projected[a:b].T, x[a:b], out=d_gate_up[e])
        d_hidden = d_x[slot].view(*weights.shape, -1).float().sum(1)
        return d_hidden, d_weights, d_gate_up.float(), d_down.float(), None


def sorted_experts(self, hidden_states, top_k_index, top_k_weights):
    """Drop-in for the stock experts' forward."""
    return _SortedExperts.apply(hidden_states, top_k_weights, self.gate_up_proj, self.down_proj, top_k_index)


def fp32_attention(module, query, key, value, attention_mask, **kwargs):
    """The stock attention, in fp32 whatever the autocast."""
    with torch.autocast("cpu", enabled=False):
        return sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **kwargs)


def use(model) -> None:
    """Switch a model to the code of this module."""
    model.set_experts_implementation(NAME)
    model.set_attn_implementation(NAME)


ALL_EXPERTS_FUNCTIONS.register(NAME, sorted_experts)
AttentionInterface.register(NAME, fp32_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
