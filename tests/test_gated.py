"""Reading experts as gated MLPs: layouts of real families, labels against hand-written formulas, refusals in words."""

from __future__ import annotations

import families
import pytest
import torch
from torch import nn
from torch.nn.functional import silu

from core.base import BaseLayer, Run
from core.gated import GatedExpert, NotReadable, read_expert
from core.moe import MoeModel, contributions
from core.one_layer import look_at
from tests import tiny_models

IDS = tuple(range(5, 17))
EXPERT = 1


def with_layer(model: MoeModel, ask):  # noqa: ANN001, ANN201
    """What `ask(base)` gives in the last MoE layer of a short prompt."""
    found = []
    look_at(model, [Run(IDS)], model.moe_layers[-1], lambda base: found.append(ask(base)), room=512)
    return found[0]


def read(model: MoeModel, base: BaseLayer, expert: int = EXPERT) -> GatedExpert:
    given = base.block_input[0][:4] if 0 in base.block_input else None
    return read_expert(model, base.layer, expert, base.x[0][:4], given)


# layouts: fused and halved; transposed; interleaved with biases and clamps; three matrices one below the other; no
# module of experts; weights on the input; a scale or a projection behind the sum; a gate of two arguments
LAYOUTS = [
    "mixtral", "aria_text", "gpt_oss", "dbrx", "jetmoe", "llama4_text", "beam", "minimax_m3_vl_text", "inkling_text",
    "longcat_flash",
]  # fmt: skip


@pytest.mark.parametrize("family", LAYOUTS)
def test_the_neurons_give_what_the_block_says(family: str) -> None:
    """On tokens that the reading was not checked on, with other router weights."""
    model = MoeModel(families.build(family))

    def ask(base: BaseLayer) -> None:
        expert, x = read(model, base), base.x[0][4:]
        weight = torch.linspace(0.1, 1.3, len(x))
        tail = model.structure.tail[base.layer]
        given = base.block_input[0][4:] if tail else None
        index = torch.full((len(x), 1), EXPERT)
        want = contributions(model.blocks[base.layer], x, index, weight[:, None], given)[:, 0]
        torch.testing.assert_close(expert.contribution(x, weight), want, rtol=1e-4, atol=1e-4 * want.abs().max().item())
        assert want.abs().max() > 1e-3 and expert.out_rows.shape[1] == base.y[0].shape[1]
        # and neuron by neuron
        a = expert.activate(*expert.pre_activations(x, weight)) * expert.strength(weight)[:, None]
        parts = a[:, :, None] * expert.out_rows
        bias = 0 if expert.out_bias is None else expert.strength(weight)[:, None] * expert.out_bias
        torch.testing.assert_close(parts.sum(1) + bias, want, rtol=1e-3, atol=1e-4 * want.abs().max().item())

    with_layer(model, ask)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "granitemoe"])
def test_which_rows_are_the_gates(family: str) -> None:
    model = MoeModel(tiny_models.build(family))

    def ask(base: BaseLayer) -> None:
        expert, module = read(model, base), model.blocks[base.layer].experts
        if family == "gpt_oss":
            both, bias = module.gate_up_proj[EXPERT].T, module.gate_up_proj_bias[EXPERT]
            assert torch.equal(expert.gate_rows, both[0::2]) and torch.equal(expert.in_rows, both[1::2])
            assert torch.equal(expert.gate_bias, bias[0::2]) and torch.equal(expert.in_bias, bias[1::2])
            assert torch.equal(expert.out_rows, module.down_proj[EXPERT])
            assert torch.equal(expert.out_bias, module.down_proj_bias[EXPERT])
        else:
            half = module.down_proj.shape[2]
            assert torch.equal(expert.gate_rows, module.gate_up_proj[EXPERT, :half])
            assert torch.equal(expert.in_rows, module.gate_up_proj[EXPERT, half:])
            assert torch.equal(expert.out_rows, module.down_proj[EXPERT].T)
            assert expert.gate_bias is expert.out_bias is None

    with_layer(model, ask)


@pytest.mark.parametrize("family", ["dbrx", "llama4_text", "jetmoe"])
def test_which_rows_are_the_gates_without_a_method_for_it(family: str) -> None:
    model = MoeModel(families.build(family))

    def ask(base: BaseLayer) -> None:
        expert, experts = read(model, base), model.blocks[base.layer].experts
        if family == "dbrx":
            m = experts.mlp.ffn_hidden_size
            gate, into = (w[EXPERT * m : (EXPERT + 1) * m] for w in (experts.mlp.w1, experts.mlp.v1))
        elif family == "llama4_text":
            gate, into = experts.gate_up_proj[EXPERT].T.chunk(2)
        else:
            gate, into = experts.input_linear.weight[EXPERT].chunk(2)
        assert torch.equal(expert.gate_rows, gate) and torch.equal(expert.in_rows, into)

    with_layer(model, ask)


class Swapped(nn.Module):
    """Experts that keep the input half first, and a square matrix that fits in both ways."""

    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        self.num_experts, m = like.num_experts, like.gate_up_proj.shape[2]  # as many neurons as dimensions
        self.up_gate = nn.Parameter(torch.randn(self.num_experts, m, 2 * m) * 0.2)
        self.down = nn.Parameter(torch.randn(self.num_experts, m, m) * 0.2)
        self.act = nn.GELU()

    def forward(self, x: torch.Tensor, index: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x)
        for slot in range(index.shape[1]):
            for row in range(len(x)):
                e = index[row, slot]
                up, gate = (x[row] @ self.up_gate[e]).chunk(2)
                out[row] += weight[row, slot] * ((self.act(gate) * up) @ self.down[e])
        return out


def changed(experts: type[nn.Module]) -> MoeModel:
    module = tiny_models.build("mixtral")
    for layer in module.model.layers:
        layer.mlp.experts = experts(layer.mlp.experts)
    return MoeModel(module)


def test_a_layout_that_nobody_has_seen() -> None:
    torch.manual_seed(0)
    model = changed(Swapped)

    def ask(base: BaseLayer) -> None:
        expert, module = read(model, base), model.blocks[base.layer].experts
        into, gate = module.up_gate[EXPERT].T.chunk(2)
        assert torch.equal(expert.gate_rows, gate) and torch.equal(expert.in_rows, into)
        assert torch.equal(expert.out_rows, module.down[EXPERT])

    with_layer(model, ask)


class InTurn(Swapped):
    """The two in turn, the input first, by a method of the experts' own."""

    def _apply_gate(self, both: torch.Tensor) -> torch.Tensor:
        return (both[..., 0::2].clamp(-2, 2) + 1) * self.act(both[..., 1::2])

    def forward(self, x: torch.Tensor, index: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        inner = self._apply_gate(torch.einsum("nd,nkdm->nkm", x, self.up_gate[index]))
        return torch.einsum("nkm,nkmd,nk->nd", inner, self.down[index], weight)


def test_the_input_side_is_the_linear_one() -> None:
    torch.manual_seed(0)
    model = changed(InTurn)

    def ask(base: BaseLayer) -> None:
        expert, module = read(model, base), model.blocks[base.layer].experts
        rows = module.up_gate[EXPERT].T
        assert torch.equal(expert.in_rows, rows[0::2]) and torch.equal(expert.gate_rows, rows[1::2])
        gate, into = torch.tensor([[-1.0, 2.0]]).repeat(1, 32), torch.tensor([[3.0, 0.5]]).repeat(1, 32)
        torch.testing.assert_close(expert.activate(gate, into), (into.clamp(-2, 2) + 1) * module.act(gate))

    with_layer(model, ask)


class Normed(Swapped):
    """A norm on what each expert puts out: no sum over neurons."""

    def forward(self, x: torch.Tensor, index: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x)
        for slot in range(index.shape[1]):
            some = super().forward(x, index[:, slot, None], torch.ones_like(weight[:, :1]))
            out += weight[:, slot, None] * some / some.norm(dim=-1, keepdim=True)
        return out


@pytest.mark.parametrize(
    ("model", "expert", "why"),
    [
        (lambda: changed(Normed), EXPERT, "computes something else"),
        (lambda: MoeModel(families.build("nemotron_h")), EXPERT, "not those of a gated MLP"),
        (lambda: MoeModel(families.build("doge")), EXPERT, "not those of a gated MLP"),
        (lambda: MoeModel(families.build("longcat_flash")), None, "no weights of its own"),
    ],
    ids=["normed", "ungated", "retrieval", "identity expert"],
)
def test_what_cannot_be_read_says_why(model, expert, why) -> None:  # noqa: ANN001
    model = model()

    def ask(base: BaseLayer) -> None:
        with pytest.raises(NotReadable, match=why):
            read(model, base, model.n_experts - 1 if expert is None else expert)

    with_layer(model, ask)


def test_half_precision_is_read_in_fp32() -> None:
    model = MoeModel(tiny_models.build("qwen3_moe").bfloat16())

    def ask(base: BaseLayer) -> None:
        expert = read(model, base)
        assert expert.gate_rows.dtype == torch.float32 and 0 < expert.error <= 2.0**-5
        gate, into = expert.pre_activations(base.x[0], torch.ones(len(IDS)))
        torch.testing.assert_close(expert.activate(gate, into), silu(gate) * into)

    with_layer(model, ask)
