"""The noise floor against plain hooked forwards and against fp32; where it is stored and shown; fp32 sums."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import oracle
import pandas as pd
import pytest
import tiny_models
import torch
from fake_results import fake_result

from cache.store import Store
from core import checks, export, facts, noise_floor, report, trace
from core.corruption import draw_noise, embedding_std
from core.head import object_logits
from core.models import load_model
from core.moe import MoeModel
from core.requests import TraceRequest

HALF = [torch.bfloat16, torch.float16]
ROUNDOFF = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def tiny(family: str, dtype: torch.dtype) -> MoeModel:
    return MoeModel(tiny_models.build(family).to(dtype), fingerprint=f"{family} {dtype}")


@contextmanager
def rounded_anew(model: torch.nn.Module, seed: int) -> Iterator[None]:
    """Every decoder layer's output times 1 + unit roundoff × uniform noise in [−1, 1]."""
    generator = torch.Generator().manual_seed(seed)

    def shake(module, args, kwargs, output):  # noqa: ANN001, ANN202 - a torch hook
        hidden = oracle.first(output)
        noise = torch.rand(hidden.shape, generator=generator, dtype=torch.float64) * 2 - 1
        return oracle.like(output, (hidden.double() * (1 + ROUNDOFF[hidden.dtype] * noise)).to(hidden.dtype))

    with ExitStack() as stack:
        for layer in oracle.layers_of(model):
            stack.enter_context(oracle.hooked(layer, shake))
        yield


def naive_differences(module: torch.nn.Module, case: oracle.Case) -> np.ndarray:
    """|difference of rescue| of every layer patch from the subject on: plain forwards, and forwards rounded anew."""

    def rescues() -> np.ndarray:
        asked = oracle.Oracle(module, case)
        true, foil = oracle.corrupt(module, case, 0)
        cells = [(layer, pos) for layer in asked.clean_run for pos in range(2, case.input_ids.numel())]
        patched = np.array([asked.layer_patch(0, layer, pos) for layer, pos in cells])
        return patched[:, 0] - patched[:, 1] - (true - foil)

    plain = rescues()
    with rounded_anew(module, 7):
        return np.abs(rescues() - plain)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("family", ["olmoe", "qwen2_moe"])
def test_the_floor_is_what_plain_forwards_rounded_anew_differ_by(family: str, dtype: torch.dtype) -> None:
    module = tiny_models.build(family).to(dtype)
    floor = MoeModel(module).noise_floor
    differences = []
    for seed in range(4):
        ids = torch.randint(3, 200, (8,), generator=torch.Generator().manual_seed(seed))
        noise = oracle.make_noise(module, draws=1, n_subject=2, seed=seed, case_id=0, level=3.0)
        differences.append(naive_differences(module, oracle.Case(ids, (2, 3), 85, 128, noise)))
    want = np.quantile(np.concatenate(differences), 0.95)
    assert want / 5 < floor.rescue < want * 5
    assert floor.rescue <= floor.largest and floor.patches >= 20


@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3", "qwen3_next"])
def test_fewer_bits_give_a_higher_floor(family: str) -> None:
    floors = [tiny(family, dtype).noise_floor.rescue for dtype in (torch.float32, torch.float16, torch.bfloat16)]
    assert 1e-7 < floors[0] < 1e-4
    assert floors[1] > 100 * floors[0]
    assert floors[2] > 2 * floors[1]


@pytest.fixture(scope="module")
def demo() -> MoeModel:
    return load_model("demo")


@pytest.mark.parametrize("dtype", HALF)
def test_the_floor_bounds_how_far_half_precision_is_from_fp32(demo: MoeModel, dtype: torch.dtype) -> None:
    """On facts that it was not measured on, all cells and experts: 90 % within 2 × the floor, which is not idle."""
    half = MoeModel(copy.deepcopy(demo.model).to(dtype), demo.tokenizer)
    full = MoeModel(copy.deepcopy(half.model).float(), demo.tokenizer)  # the very same weights
    asked = [TraceRequest(fact) for fact in facts.bundled()[100::300][:16]]
    frames = [[r.frame for r in trace.trace_many(model, asked)] for model in (half, full)]
    keys = ["case_id", "kind", "layer", "pos", "expert"]
    both = pd.concat(frames[0]).merge(pd.concat(frames[1]), on=keys)
    both = both[both.kind.isin(["layer", "expert"]) & (both.rescue_y != 0)]
    differences = (both.rescue_x - both.rescue_y).abs()
    assert len(both) > 700
    assert differences.quantile(0.9) <= 2 * half.noise_floor.rescue
    assert differences.quantile(0.99) >= half.noise_floor.rescue / 2
    assert full.noise_floor.rescue < 1e-4


def test_a_module_that_depends_on_its_batch_shows() -> None:
    """Some kernels add up in an order that depends on how many tokens there are: an exaggerated one."""
    model = tiny("qwen2_moe", torch.float32)
    sound = noise_floor.measure(model)

    def depends(module, args, output):  # noqa: ANN001, ANN202 - a torch hook
        return output * (1 + 1e-3 * (len(args[0]) % 5))

    handles = [block.experts.register_forward_hook(depends) for block in model.blocks.values()]
    found = noise_floor.measure(model)
    for handle in handles:
        handle.remove()
    assert found.rescue > 50 * sound.rescue
    assert noise_floor.measure(model) == sound  # nothing was left behind, and it is the same each time
    assert not any(module._forward_hooks for module in model.model.modules())


def test_it_is_measured_once_per_model_and_goes_with_every_answer(
    demo: MoeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = copy.deepcopy(demo.model).to(torch.bfloat16)
    asked = TraceRequest(facts.bundled()[0])
    with Store.open(tmp_path / "store.duckdb") as store:
        first = MoeModel(module, demo.tokenizer, fingerprint="same")
        checks.ensure_checked(first, store)
        monkeypatch.setattr(noise_floor, "measure", lambda model: pytest.fail("measured again"))
        monkeypatch.setattr(checks, "check_weights", lambda model: pytest.fail("checked again"))
        second = MoeModel(module, demo.tokenizer, fingerprint="same")
        checks.ensure_checked(second, store)
        assert second.noise_floor == first.noise_floor
        (fresh,) = trace.trace_many(second, [asked], store=store)
        (stored,) = trace.trace_many(second, [asked], store=store)
    for result in (fresh, stored):
        assert result.provenance.noise_floor == first.noise_floor.rescue
        assert export.origin(result)["provenance"]["noise_floor_largest"] == first.noise_floor.largest
        shown = f"{first.noise_floor.rescue:.2g} logits"
        assert shown in report.summary(result)
        assert shown in report.summary_many([result, result])
        assert any(shown in line for line in export.caption(result))


def test_answers_from_before_it_was_measured_can_still_be_shown() -> None:
    result = fake_result()
    assert result.provenance.noise_floor is None
    assert "noise floor" not in report.summary(result) + "".join(export.caption(result))


def test_a_drop_within_rounding_is_said() -> None:
    assert "drop is within rounding" in report.summary(fake_result(drop=0.2, noise_floor=0.4))
    assert "within rounding" not in report.summary(fake_result(drop=0.2, noise_floor=0.1))


# ---- fp32 where it matters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALF)
def test_noise_is_measured_drawn_and_added_in_fp32(dtype: torch.dtype) -> None:
    model = tiny("qwen2_moe", dtype)
    table = model.embedding.weight.float()
    assert embedding_std(model.embedding) == pytest.approx(table.double().std().item(), rel=1e-6)
    sigma = 3 * embedding_std(model.embedding)
    (noise,) = draw_noise(seed=3, case_id=4, draws=1, n_subject=2, hidden=model.hidden, sigma=sigma)
    assert noise.dtype == torch.float32
    generator = torch.Generator().manual_seed(7)
    assert torch.equal(noise, torch.randn(2, model.hidden, generator=generator) * sigma)
    from core.base import BaseRuns, Run
    from core.packing import packed_mode
    from core.room import Room

    with packed_mode(model.model):
        runs = BaseRuns(model, model.structure, [Run((5, 6, 7, 8), noise, (1, 2))], room=Room(64), keep=False)
    (stack,) = runs._stacks
    assert torch.equal(stack.hidden[0, 1:3], (table[[6, 7]] + noise).to(dtype))  # one rounding, of the sum
    assert not torch.equal(stack.hidden[0, 1:3], table[[6, 7]].to(dtype) + noise.to(dtype))


@pytest.mark.parametrize("dtype", HALF)
def test_the_contrast_is_a_product_in_fp32(dtype: torch.dtype) -> None:
    model = tiny("qwen2_moe", dtype)
    generator = torch.Generator().manual_seed(0)
    states = (torch.randn(5, model.hidden, generator=generator) * 3).to(dtype)
    normed = model.model.model.norm(states)
    ids = torch.tensor([[85, 128]] * 5)
    exact = torch.stack([normed.double() @ model.unembedding.weight[i].double() for i in (85, 128)], 1)
    error = (object_logits(model, states, ids).double() - exact).abs().max()
    assert error < 1e-5 * exact.abs().max()
    rounded = (normed @ model.unembedding.weight[[85, 128]].T).double()
    assert (rounded - exact).abs().max() > 30 * error


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("family", ["deepseek_v3", "olmoe"])
def test_contributions_are_summed_in_fp32(family: str, dtype: torch.dtype) -> None:
    """The vector of a coalition patch against single experts' outputs, one call per expert, added up in fp64."""
    from core.base import BaseRuns, Run
    from core.packing import packed_mode
    from core.patches import SHARED, Step, Updates
    from core.room import Room
    from core.writing import table_for, vector_of

    model = tiny(family, dtype)
    noise = draw_noise(seed=0, case_id=0, draws=1, n_subject=2, hidden=model.hidden, sigma=1.0)[0]
    ids, layer, pos = (5, 60, 70, 80, 90), model.moe_layers[-1], 4
    with torch.no_grad(), packed_mode(model.model):
        runs = BaseRuns(model, model.structure, [Run(ids), Run(ids, noise, (1, 2))], room=Room(64), keep=False)
        for at in range(layer + 1):
            base = runs.step(at)
        chosen: set[int | str] = {*base.index[0][pos].tolist(), *base.index[1][pos].tolist()}
        if model.structure.has_shared:
            chosen |= {SHARED}
        step = Step("moe", layer, (pos,), "add", Updates(tuple(sorted(chosen, key=str)), 0, 1))
        got = vector_of(step, pos, base, table_for(base, [step]))
        experts, block = model.blocks[layer].experts, model.blocks[layer].module
        want = torch.zeros(model.hidden, dtype=torch.float64)
        for run, sign in ((0, 1), (1, -1)):
            x, index, weight = base.x[run][pos : pos + 1], base.index[run][pos], base.weight[run][pos]
            for slot in range(len(index)):
                part = experts(x, index[slot].view(1, 1), weight[slot].view(1, 1))
                want += sign * part[0].double()
            if SHARED in chosen:
                want += sign * block.shared_experts(base.block_input[run][pos : pos + 1])[0].double()
    assert got.dtype == torch.float32
    assert (got.double() - want).abs().max() <= 1e-6 * want.abs().max()
