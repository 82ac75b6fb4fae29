"""Direct logit attribution against hand-written formulas of each family's head, and its identities with the patches."""

from __future__ import annotations

import families
import numpy as np
import pandas as pd
import pytest
import tiny_models
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from core import direct
from core.catalog import DEMO_FOLDER
from core.direct import directions, reach
from core.moe import MoeModel
from core.prompts import PreparedFact
from core.requests import Fact
from core.shrink import shrunken_model
from core.trace import trace_prepared
from tests import oracle

TOKENS = (9, 41, 77, 130, 5, 61, 200, 33)
SUBJECT = (2, 3)
OBJECTS = (17, 150)
LAST = len(TOKENS) - 1
CAP = 5.0


class Capped(nn.Module):
    """A model's logits under a soft-cap, as gemma has it (the cap is small, so that it bends)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner, self.config = model, model.config

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.inner.get_output_embeddings()

    def set_attn_implementation(self, name: str) -> None:
        self.inner.set_attn_implementation(name)

    def forward(self, *args: object, **kwargs: object) -> object:
        out = self.inner(*args, **kwargs)
        out.logits = CAP * torch.tanh(out.logits / CAP)
        return out


def build(family: str) -> nn.Module:
    if family == "demo":
        return AutoModelForCausalLM.from_pretrained(DEMO_FOLDER, dtype=torch.float32).eval()
    return Capped(tiny_models.build("qwen3_moe")) if family == "capped" else tiny_models.build(family)


def head(family: str, module: nn.Module) -> tuple[torch.Tensor, float, float]:
    """The final norm's weight as it multiplies, what logits are divided by, and its epsilon."""
    module = module.inner if family == "capped" else module
    norm = module.model.final_layernorm if family == "jamba" else module.model.norm
    weight = norm.weight + 1 if family == "qwen3_next" else norm.weight
    scaling = module.config.logits_scaling if family == "granitemoe" else 1.0
    return weight.detach(), scaling, norm.eps if hasattr(norm, "eps") else norm.variance_epsilon


def scale_of(family: str, module: nn.Module, state: torch.Tensor) -> torch.Tensor:
    """What the final norm divides by."""
    centred = state - state.mean() if family == "phimoe" else state
    return centred.pow(2).mean().add(head(family, module)[2]).sqrt()


def frozen(family: str, module: nn.Module, state: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """What a vector [d] added to the final state [d] does to the two logits, norm scale and slope frozen: [2]."""
    weight, scaling, _ = head(family, module)
    rows = module.get_output_embeddings().weight[list(OBJECTS)].detach()
    scale = scale_of(family, module, state)
    if family == "phimoe":
        vector = vector - vector.mean()
    moved = rows @ (weight * vector / scale) / scaling
    if family == "capped":
        logits = rows @ (weight * state / scale)
        moved = moved * (1 - torch.tanh(logits / CAP) ** 2)
    return moved


MULTIPLIER = {"granitemoe": 0.22}  # of a block's output on its way to the stream


class Asked:
    """One family's trace, and what is needed to work its direct parts out by hand."""

    def __init__(self, family: str) -> None:
        self.family, self.module = family, build(family)
        fact = Fact("a {} b", "s", "t", "f")
        pieces, spans = tuple(map(str, TOKENS)), ((0, 1),) * len(TOKENS)
        prepared = PreparedFact(fact, TOKENS, pieces, spans, SUBJECT, *OBJECTS, "t", "f")
        self.frame = trace_prepared(MoeModel(self.module), [prepared], draws=2, experts=(SUBJECT[-1], LAST))[0].frame
        inner = self.module.inner if family == "capped" else self.module
        noise = oracle.make_noise(inner, draws=2, n_subject=2, seed=0, case_id=0, level=3.0)
        self.oracle = oracle.Oracle(inner, oracle.Case(torch.tensor(TOKENS), SUBJECT, *OBJECTS, noise))
        self.states = [self._state(draw) for draw in (0, 1)]

    def _state(self, draw: int) -> torch.Tensor:
        """What the final norm receives at the last position of a corrupt run, [d]."""
        seen: list[torch.Tensor] = []
        inner = self.oracle.model
        norm = inner.model.final_layernorm if self.family == "jamba" else inner.model.norm
        handle = norm.register_forward_pre_hook(lambda module, args: seen.append(args[0][0, -1].detach().clone()))
        oracle.corrupt(inner, self.oracle.case, draw)
        handle.remove()
        return seen[0]

    def logits(self, state: torch.Tensor) -> torch.Tensor:
        """The objects' logits behind a final state [d], by the modules of the head itself: [2]."""
        inner = self.oracle.model
        norm = inner.model.final_layernorm if self.family == "jamba" else inner.model.norm
        with torch.no_grad():
            out = inner.lm_head(norm(state[None]))[0, list(OBJECTS)] / head(self.family, self.module)[1]
        return CAP * torch.tanh(out / CAP) if self.family == "capped" else out

    def rows(self, *kinds: str, pos: int = LAST) -> pd.DataFrame:
        return self.frame[self.frame.kind.isin(kinds) & (self.frame.pos == pos)]

    def update(self, row: pd.Series) -> torch.Tensor:
        if row.kind == "shared":
            return self.oracle.shared_update(row.draw, row.layer, row.pos)
        return self.oracle.expert_update(row.draw, row.layer, row.pos, row.expert)

    def by_hand(self, draw: int, update: torch.Tensor) -> float:
        """Direct part of an update of some block's output, in contrast units."""
        moved = frozen(self.family, self.module, self.states[draw], MULTIPLIER.get(self.family, 1.0) * update)
        return (moved[0] - moved[1]).item()


FAMILIES = ["demo", "qwen3_moe", "qwen2_moe", "granitemoe", "phimoe", "qwen3_next", "jamba", "capped"]


@pytest.fixture(scope="module", params=FAMILIES)
def asked(request: pytest.FixtureRequest) -> Asked:
    return Asked(request.param)


def test_every_update_at_the_last_position(asked: Asked) -> None:
    rows = asked.rows("expert", "shared")
    wanted = [asked.by_hand(row.draw, asked.update(row)) for row in rows.itertuples()]
    np.testing.assert_allclose(rows.direct.to_numpy(), wanted, atol=1e-4)
    assert np.abs(wanted).max() > 0.05  # there is something to attribute
    assert (rows.direct - rows.rescue).abs().max() > 0.05  # and something that is not direct


def test_nothing_at_another_position_reaches_the_logits_directly(asked: Asked) -> None:
    assert (asked.rows("expert", "shared", pos=SUBJECT[-1]).direct == 0).all()
    others = asked.frame[~asked.frame.kind.isin(["expert", "shared"])]
    assert others.direct.isna().all() and len(others)


def test_the_parts_of_a_cell_add_up_to_the_block(asked: Asked) -> None:
    """Σ direct over the routing union and the shared expert is the direct part of the whole layer's update."""
    sums = asked.rows("expert", "shared").groupby(["layer", "draw"]).direct.sum()
    for (layer, draw), got in sums.items():
        whole = asked.oracle.clean_run[layer].y[LAST] - asked.oracle.corrupt_runs[draw][layer].y[LAST]
        assert got == pytest.approx(asked.by_hand(draw, whole), abs=2e-4)


@pytest.mark.parametrize("asked", [f for f in FAMILIES if f not in ("capped", "qwen2_moe")], indirect=True)
def test_in_the_last_layer_the_remainder_is_the_rescaling_of_the_norm(asked: Asked) -> None:
    """rescue = scale(s) ÷ scale(s + v) · (contrast(s) + direct) − contrast(s): the head is linear behind its norm.

    So with the scale of the patched state the direct part is the whole effect, exactly. (Constants of the head drop
    out: contrast(s) is without them.)
    """
    rows = asked.rows("expert", "shared")
    rows = rows[rows.layer == len(oracle.layers_of(asked.oracle.model)) - 1]
    assert len(rows)
    for row in rows.itertuples():
        state = asked.states[row.draw]
        moved = state + MULTIPLIER.get(asked.family, 1.0) * asked.update(row)
        ratio = scale_of(asked.family, asked.module, state) / scale_of(asked.family, asked.module, moved)
        true, foil = frozen(asked.family, asked.module, state, state).tolist()
        assert row.rescue == pytest.approx(ratio.item() * (true - foil + row.direct) - (true - foil), abs=1e-4)


def test_without_change_of_scale_the_last_layers_patch_is_all_direct(asked: Asked) -> None:
    """The direct part is the derivative of the patch's effect: for a hundredth of the update, scale held, it is met."""
    for draw, state in enumerate(asked.states):
        direction = directions(MoeModel(asked.module), state[None], torch.tensor([OBJECTS]))[0]
        across = torch.randn(len(state), generator=torch.Generator().manual_seed(draw))
        for fixed in (state, torch.ones_like(state)):  # neither longer nor shifted: the scale stays to first order
            across = across - (across @ fixed) / (fixed @ fixed) * fixed
        across = across - (across @ state) / (state @ state) * state
        across = 1e-2 * state.norm() * across / across.norm()
        got = direction @ across
        logits = [asked.logits(state + sign * across) for sign in (1, -1)]
        assert torch.allclose(got, (logits[0] - logits[1]) / 2, atol=5e-4, rtol=5e-3)


@pytest.mark.parametrize("family", ["beam", "flex_olmo", "qwen3_5_moe_text", "laguna", "minimax"])
def test_directions_of_other_heads_by_the_norms_formula(family: str) -> None:
    """Zero-centred norms, a soft-cap in the family itself: the frozen map at random states."""
    module = shrunken_model(CONFIG_MAPPING[family]())
    model = MoeModel(module)
    states = torch.randn(3, model.hidden, generator=torch.Generator().manual_seed(3)) * torch.tensor([[0.5], [1], [9]])
    got = directions(model, states, torch.tensor([OBJECTS] * 3))
    norm = module.model.norm
    probe = torch.randn(model.hidden, generator=torch.Generator().manual_seed(4))
    rows = module.get_output_embeddings().weight[list(OBJECTS)].detach()
    for state, found in zip(states, got, strict=True):
        eps = getattr(norm, "eps", None) or getattr(norm, "variance_epsilon", None)
        weight = norm.weight.detach() + (1 if family.startswith("qwen3_5") else 0)
        scale = state.pow(2).mean().add(eps).sqrt()
        want = rows @ (weight * probe / scale)
        cap = getattr(module.config, "final_logit_softcapping", None)
        if cap:
            want = want * (1 - torch.tanh(rows @ (weight * state / scale) / cap) ** 2)
        torch.testing.assert_close(found @ probe, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("family", "some"), [("flex_olmo", False), ("minimax", False), ("granitemoe", True)])
def test_a_norm_on_the_way_leaves_the_direct_part_undefined(family: str, some: bool) -> None:
    """Behind a post-norm (flex_olmo), or where the stream itself is normed (minimax), nothing is a plain factor."""
    module = tiny_models.build(family) if some else shrunken_model(CONFIG_MAPPING[family]())
    model = MoeModel(module)
    factors = reach(model.structure, model.n_layers)
    assert [factors[layer] is not None for layer in model.moe_layers[:-1]] == [some] * (len(model.moe_layers) - 1)
    tokens = TOKENS[:6]
    fact = PreparedFact(
        Fact("a {} b", "s", "t", "f"), tokens, tuple(map(str, tokens)), ((0, 1),) * 6, (2,), *OBJECTS, "t", "f"
    )
    frame = trace_prepared(model, [fact], experts="last")[0].frame
    low = frame[frame.kind.isin(["expert", "shared"]) & (frame.layer == model.moe_layers[0])]
    assert low.direct.notna().all() == some and low.rescue.notna().all() and len(low)


def test_where_layers_cannot_be_run_alone_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the head, behind which the whole model would run, is not asked."""
    model = MoeModel(families.build("zaya"))
    assert model.structure.whole
    monkeypatch.setattr(direct, "directions", lambda *args: pytest.fail("asked"))
    fact = PreparedFact(
        Fact("a {} b", "s", "t", "f"), TOKENS, tuple(map(str, TOKENS)), ((0, 1),) * 8, SUBJECT, *OBJECTS, "t", "f"
    )
    frame = trace_prepared(model, [fact], experts="last")[0].frame
    rows = frame[frame.kind.isin(["expert", "shared"])]
    assert len(rows) and rows.direct.isna().all() and rows.rescue.notna().all()


def test_factors_are_those_of_the_families_code() -> None:
    """beam mixes stream and branch with weights by depth, sqrt((2l + 1) ÷ (2l + 3)) for the stream over both
    sublayers; granite multiplies every branch."""
    beam = MoeModel(shrunken_model(CONFIG_MAPPING["beam"]())).structure
    assert beam.stream == pytest.approx([((2 * i + 1) / (2 * i + 3)) ** 0.5 for i in range(len(beam.stream))])
    granite = MoeModel(tiny_models.build("granitemoe"))
    assert reach(granite.structure, 4) == pytest.approx(dict.fromkeys(range(4), 0.22))


def test_factors_multiply_along_the_way() -> None:
    structure = MoeModel(tiny_models.build("qwen3_moe")).structure  # layer 1 is dense
    structure.branch, structure.stream = {0: 3.0, 2: 5.0, 3: 7.0}, [1.0, 0.5, 0.25, 2.0]
    assert reach(structure, 4) == {3: 7.0, 2: 10.0, 0: 3.0 * 0.5 * 0.25 * 2.0}
    structure.stream[2] = None
    assert reach(structure, 4) == {3: 7.0, 2: 10.0, 0: None}


class Odd(nn.Module):
    """No norm of the form a(s) · M s + b: every entry has a scale of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) * x.abs().mean(-1, keepdim=True)


def test_a_head_of_another_form_is_noticed() -> None:
    module = tiny_models.build("qwen3_moe")
    states = torch.randn(4, tiny_models.HIDDEN, generator=torch.Generator().manual_seed(5))
    ids = torch.tensor([OBJECTS] * 4)
    assert directions(MoeModel(module), states, ids).isfinite().all()
    module.model.norm = Odd()
    assert directions(MoeModel(module), states, ids).isnan().all()


@pytest.mark.parametrize("family", ["qwen3_moe", "phimoe", "granitemoe"])
def test_in_half_precision(family: str) -> None:
    """bfloat16 against fp32 of the same weights, at the same states."""
    exact, half = (MoeModel(tiny_models.build(family).to(dtype)) for dtype in (torch.float32, torch.bfloat16))
    exact.model.load_state_dict(half.model.state_dict())
    states = torch.randn(4, exact.hidden, generator=torch.Generator().manual_seed(6)).bfloat16()
    ids = torch.tensor([OBJECTS] * 4)
    want = directions(exact, states.float(), ids)
    got = directions(half, states, ids)
    assert ((got - want).norm(dim=-1) <= 2e-2 * want.norm(dim=-1)).all()
    factors = [reach(model.structure, model.n_layers) for model in (exact, half)]
    assert factors[1] == pytest.approx(factors[0], rel=5e-3)
