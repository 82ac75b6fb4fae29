"""Quantised models: what is quantised, the sweep is exact on them, how far int8 is from fp32, what is refused."""

from __future__ import annotations

import copy
import importlib.util
import json
from contextlib import ExitStack
from pathlib import Path

import checkpoints
import numpy as np
import oracle
import pandas as pd
import pytest
import torch
from compare import Setting, assert_agrees, oracle_of, random_fact, rows_of
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel, TorchAoConfig

from cache.store import Store
from core import catalog, checks, cli, export, facts, models, placement, quantise, report, trace
from core.errors import InputError, ModelError, ModelRefused
from core.identity import recall_identity
from core.models import load_model
from core.moe import MoeModel
from core.quantisation import check_stored, stored
from core.quantise import formats
from core.requests import ModelSpec, TraceRequest
from core.workbench import Workbench

SETTING = Setting(draws=1)
FAMILIES = ["qwen3_moe", "deepseek_v3", "jamba"]  # dense layers beside; a shared expert; rows of their own


def expanded(model: MoeModel, plain: PreTrainedModel) -> PreTrainedModel:
    """`plain` with the values that the quantised weights stand for, s · q, as ordinary fp32 weights."""
    with torch.no_grad():
        for (name, mine), (other, theirs) in zip(
            model.model.named_parameters(), plain.named_parameters(), strict=True
        ):
            assert name == other
            quantised = hasattr(mine.data, "qdata")
            theirs.copy_(mine.data.qdata.float() * mine.data.scale if quantised else mine)
    return plain


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[MoeModel, PreTrainedModel]:
    """A model loaded as int8, and its expanded copy."""
    folder = checkpoints.save(tmp_path_factory.mktemp(request.param) / "full", request.param)
    model = load_model(str(folder), quantisation="int8")
    return model, expanded(model, checkpoints.build(request.param))


def block_outputs(module: PreTrainedModel, case: oracle.Case) -> dict[int, torch.Tensor]:
    """{layer: MoE-block output [T, d]} of the clean run, by plain hooks."""
    seen: dict[int, torch.Tensor] = {}

    def keep(layer: int):  # noqa: ANN202 - makes a torch hook
        return lambda block, args, kwargs, output: seen.update({layer: oracle.first(output)[0].clone()})

    with ExitStack() as stack:
        for layer, block in oracle.find_blocks(module).items():
            stack.enter_context(oracle.hooked(block, keep(layer)))
        oracle.clean(module, case)
    return {layer: y.reshape(case.input_ids.numel(), -1) for layer, y in seen.items()}


# ---- int8 ------------------------------------------------------------------------------------------------------------


def test_the_sweep_is_exact_on_the_quantised_model(pair: tuple[MoeModel, PreTrainedModel]) -> None:
    """Cells by hooks on the quantised model itself, experts by the weights that it stands for: 1e-4 logits."""
    model, plain = pair
    fact = random_fact(3, vocabulary=200)
    options = {"noise": SETTING.noise, "draws": SETTING.draws, "seed": SETTING.seed, "experts": (3, 8)}
    (result,) = trace.trace_prepared(model, [fact], **options)
    wanted = oracle_of(plain, fact, SETTING).table(positions=(3, 8))
    rows = result.frame[result.frame.pos.isna() | result.frame.pos.isin([3, 8])]
    found = assert_agrees(rows, wanted, first_subject=2)
    assert found.median > 0.01 and found.n > 15
    case = oracle_of(plain, fact, SETTING).case
    y = block_outputs(model.model, case)
    for (kind, draw, layer, pos, _), row in rows_of(result.frame).items():
        if kind in ("clean", "corrupt"):
            logits = getattr(oracle, kind)(model.model, case, *([] if kind == "clean" else [draw]))
        elif kind == "layer" and pos >= 2:
            logits = oracle.patched(model.model, case, draw, layer=layer, pos=pos, y=y[layer][pos])
        else:
            continue
        assert max(abs(row["true_logit"] - logits[0]), abs(row["foil_logit"] - logits[1])) <= 1e-4


def test_the_load_time_checks_hold_with_the_tolerances_of_the_dtype(pair: tuple[MoeModel, PreTrainedModel]) -> None:
    found = checks.check_weights(pair[0])
    assert len(found) == 4
    for check in found:
        assert check.passed, check
    assert found[0].allowed == 5e-6  # Σ contributions + shared = block output, relative, as in fp32


def test_experts_and_layers_are_int8_and_what_routes_is_not(pair: tuple[MoeModel, PreTrainedModel]) -> None:
    model, plain = pair
    for block in model.blocks.values():
        for name, weight in block.experts.named_parameters():
            assert weight.data.qdata.dtype == torch.int8, name
            assert weight.data.scale.shape == (*weight.shape[:-1], 1)  # one scale per output row
    quantised = {name for name, weight in model.model.named_parameters() if hasattr(weight.data, "qdata")}
    assert not any(part in name for name in quantised for part in ("router", "mlp.gate.", "norm", "embed", "lm_head"))
    assert any("self_attn" in name for name in quantised)
    kinds = formats(model)
    assert (kinds["experts"], kinds["embeddings"], kinds.get("router", "float32")) == ("int8", "float32", "float32")
    assert "experts int8" in model.quantisation and "torchao" in model.quantisation
    bytes_taken = sum(
        w.data.qdata.nbytes + w.data.scale.nbytes if hasattr(w.data, "qdata") else w.nbytes
        for w in model.model.parameters()
    )
    everything = sum(w.nbytes for w in plain.parameters())
    assert bytes_taken < 0.65 * everything  # the embeddings are a large part of a tiny model
    assert model.implementation()["experts"] == "eager"


def test_by_itself_transformers_leaves_the_experts_as_they_are(tmp_path: Path) -> None:
    """What the module's text says of torchao in transformers; with it, quantising would save next to nothing."""
    from torchao.quantization import Int8WeightOnlyConfig

    folder = checkpoints.save(tmp_path / "full")
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))
    kinds = formats(MoeModel(model))
    assert (kinds["experts"], kinds["attention"]) == ("float32", "int8")


def test_int8_rounds_each_weight_by_at_most_half_a_step(tmp_path: Path) -> None:
    model = load_model(str(checkpoints.save(tmp_path / "full")), quantisation="int8", dtype="bfloat16")
    assert model.dtype == torch.bfloat16 and formats(model)["router"] == "bfloat16"
    original = dict(checkpoints.build().named_parameters())
    for name, weight in model.model.named_parameters():
        if hasattr(weight.data, "qdata"):
            asked = original[name].to(torch.bfloat16).float()
            step = asked.abs().amax(-1, keepdim=True) / 127.5
            assert ((weight.data.qdata.float() * weight.data.scale - asked).abs() <= 0.55 * step).all(), name


@pytest.fixture(scope="module")
def demo() -> MoeModel:
    return load_model("demo", quantisation="int8")


def test_how_far_int8_is_from_fp32_on_the_demo(demo: MoeModel) -> None:
    """Weights rounded to 8 bits are another model, close by: contrasts within a tenth of a logit in the median, and
    the same cells matter. (The sweep is exact on each of them.)"""
    full = load_model("demo")
    asked = [TraceRequest(fact) for fact in facts.bundled()[50::300][:12]]
    frames = [pd.concat([r.frame for r in trace.trace_many(model, asked)]) for model in (full, demo)]
    both = frames[0].merge(frames[1], on=["case_id", "kind", "layer", "pos", "expert"], suffixes=("", "_int8"))
    ends = both[both.kind.isin(["clean", "corrupt"])]
    assert 0 < (ends.contrast - ends.contrast_int8).abs().median() < 0.1
    cells = both[(both.kind == "layer") & (both.rescue != 0)]
    assert np.corrcoef(cells.rescue, cells.rescue_int8)[0, 1] > 0.97
    assert demo.noise_floor.rescue < 1e-4


def test_answers_of_int8_and_of_the_full_model_are_kept_apart(demo: MoeModel, tmp_path: Path) -> None:
    request = TraceRequest(facts.bundled()[0], model=demo.spec)
    with Store.open(tmp_path / "store.duckdb") as store:
        full = load_model("demo", store=store)
        again = load_model("demo", quantisation="int8", store=store)
        assert len({full.identity, again.identity}) == 2 and again.identity == demo.identity
        assert recall_identity(store, again.spec) == again.identity != recall_identity(store, full.spec)
        (plain,) = trace.trace_many(full, [request], store=store)
        (small,) = trace.trace_many(again, [request], store=store)
        assert not small.cached and plain.clean_contrast != small.clean_contrast
        stored_answer = trace.from_store(store, request)
        assert stored_answer is not None and stored_answer.clean_contrast == small.clean_contrast
    assert plain.provenance.quantisation == "" and "weights" not in report.summary(plain)
    assert small.provenance.quantisation == demo.quantisation
    assert "experts int8" in report.summary(small)
    assert any("experts int8" in line for line in export.caption(small))


def test_it_is_written_and_read_back_as_safetensors(pair: tuple[MoeModel, PreTrainedModel], tmp_path: Path) -> None:
    model, _ = pair
    folder = tmp_path / "int8"
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    assert not list(folder.glob("*.bin")) and stored(json.loads((folder / "config.json").read_text())) == "int8"
    again = load_model(str(folder))
    assert formats(again) == formats(model)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        assert torch.equal(again.model(ids).logits, model.model(ids).logits)
    assert catalog.entry(str(folder)).quantisation == "int8"
    with pytest.raises(ModelRefused, match=r"quantised already \(int8\)"):
        load_model(str(folder), quantisation="int8")


def test_int8_fits_where_bfloat16_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoints.save(tmp_path / "half", dtype=torch.bfloat16)
    size = (folder / "model.safetensors").stat().st_size  # int8 with its bfloat16 embeddings: about two thirds of it
    monkeypatch.setattr(placement, "available_bytes", lambda device: int(0.9 * size))
    with pytest.raises(ModelError, match="are free"):
        load_model(str(folder), dtype="bfloat16", placement="memory")
    model = load_model(str(folder), dtype="bfloat16", quantisation="int8")
    assert (model.dtype, formats(model)["experts"]) == (torch.bfloat16, "int8")
    monkeypatch.setattr(placement, "available_bytes", lambda device: size // 4)
    with pytest.raises(ModelError, match="are free"):
        load_model(str(folder), quantisation="int8")


# ---- expanded while reading ------------------------------------------------------------------------------------------


def fp8_checkpoint(folder: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Write a checkpoint as Qwen and DeepSeek publish them in FP8, the rest in `dtype`; the values it stands for."""
    checkpoints.save(folder, dtype=dtype)
    file, block = folder / "model.safetensors", 16
    out, meant = {}, {}
    for name, weight in load_file(file).items():
        kept = weight.ndim != 2 or "layers" not in name or ".mlp.gate." in name
        out[name] = weight
        meant[name] = weight.float()
        if not kept:
            rows, columns = weight.shape
            parts = weight.float().view(rows // block, block, columns // block, block)
            scale = parts.abs().amax((1, 3)) / 448
            whole = scale.repeat_interleave(block, 0).repeat_interleave(block, 1)
            out[name] = (weight.float() / whole).to(torch.float8_e4m3fn)
            out[name.replace(".weight", ".weight_scale_inv")] = scale
            meant[name] = out[name].float() * whole
    save_file(out, file, metadata={"format": "pt"})
    note(folder, {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [block, block]})
    return meant


def note(folder: Path, quantisation: dict) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantisation}))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fp8_checkpoints_are_expanded(dtype: str, tmp_path: Path) -> None:
    meant = fp8_checkpoint(tmp_path / "fp8", torch.bfloat16)
    model = load_model(str(tmp_path / "fp8"), dtype=dtype)
    assert {str(w.dtype) for w in model.model.parameters()} == {f"torch.{dtype}"}
    assert model.quantisation.startswith("stored as FP8, expanded: experts " + dtype)
    width = model.config.moe_intermediate_size
    layer = model.moe_layers[0]
    for expert in range(model.n_experts):
        at = f"model.layers.{layer}.mlp.experts.{expert}."
        fused = model.blocks[layer].experts
        for got, name in (
            (fused.gate_up_proj[expert, :width], "gate_proj"),
            (fused.gate_up_proj[expert, width:], "up_proj"),
            (fused.down_proj[expert], "down_proj"),
        ):
            assert torch.equal(got, meant[f"{at}{name}.weight"].to(model.dtype))
    entry = catalog.entry(str(tmp_path / "fp8"))
    assert entry.quantisation == "fp8"
    assert entry.memory() == catalog.memory_needed(entry.parameters, 2.0)  # not the one byte that it takes on the disk
    with pytest.raises(ModelRefused, match=r"quantised already \(fp8\)"):
        load_model(str(tmp_path / "fp8"), quantisation="int8")


FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


def test_mxfp4_checkpoints_are_expanded(tmp_path: Path) -> None:
    """As gpt-oss is published: two 4-bit numbers in a byte, the low half first, a power of two for 32 of them."""
    checkpoints.save(tmp_path / "fp4", "gpt_oss", dtype=torch.bfloat16, width=64)
    file, generator = tmp_path / "fp4" / "model.safetensors", torch.Generator().manual_seed(0)
    out, meant = {}, {}
    for name, weight in load_file(file).items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            out[name] = weight
            continue
        experts, rows, columns = weight.shape  # [experts, in, out]; stored [experts, out, in / 32, 16]
        blocks = torch.randint(0, 256, (experts, columns, rows // 32, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(118, 124, (experts, columns, rows // 32), generator=generator, dtype=torch.uint8)
        numbers = torch.stack([FP4[(blocks & 15).long()], FP4[(blocks >> 4).long()]], -1).flatten(-2)
        value = numbers * 2.0 ** (scales.float() - 127)[..., None]
        meant[name] = value.reshape(experts, columns, rows).transpose(1, 2)
        out[f"{name}_blocks"], out[f"{name}_scales"] = blocks, scales
    save_file(out, file, metadata={"format": "pt"})
    skipped = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    note(tmp_path / "fp4", {"quant_method": "mxfp4", "modules_to_not_convert": skipped})
    model = load_model(str(tmp_path / "fp4"))
    assert model.dtype == torch.float32 and model.quantisation.startswith("stored as MXFP4, expanded")
    weights = dict(model.model.named_parameters())
    for name, value in meant.items():
        assert torch.equal(weights[name], value), name


# ---- refused by name -------------------------------------------------------------------------------------------------

REFUSED = [
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes 8 bit"),
    ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes 4 bit"),
    ({"quant_method": "gptq", "bits": 4}, "GPTQ"),
    ({"quant_method": "awq", "bits": 4}, "AWQ"),
    ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
    ({"quant_method": "brand-new"}, "brand-new"),
    (
        {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig", "_data": {}}}},
        "torchao Int4WeightOnlyConfig",
    ),
]


@pytest.mark.parametrize(("quantisation", "name"), REFUSED, ids=[name for _, name in REFUSED])
def test_other_checkpoints_are_refused_by_name_before_their_weights_are_read(
    quantisation: dict, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoints.save(tmp_path / "stored")
    note(folder, quantisation)
    bench = Workbench(None)
    assert "cannot be traced" in bench.model_state(ModelSpec(str(folder))).detail  # the picker knows it too
    bench.close()
    (folder / "model.safetensors").write_bytes(b"not read")
    monkeypatch.setattr(models, "_read_weights", lambda *args: pytest.fail("the weights were read"))
    with pytest.raises(ModelRefused, match=name) as refusal:
        load_model(str(folder))
    assert "int8" in refusal.value.next  # what to do instead


def test_what_is_not_quantised_is_nothing_to_refuse() -> None:
    for config in ({}, {"quantization_config": None}, {"text_config": {"hidden_size": 8}}):
        assert stored(config) == check_stored(config) == ""
    inner = {"text_config": {"quantization_config": {"quant_method": "gptq"}}}
    assert stored(inner) == "gptq"


@pytest.mark.parametrize("name", ["int4", "bnb8", "fp8", "mxfp4", "int16"])
def test_other_wishes_are_refused_by_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=name) as refusal:
        ModelSpec(quantisation=name)
    assert refusal.value.field == "quantisation" and "none, int8" in refusal.value.next
    assert cli.main(["trace", "--fact", "17", "--quantisation", name, "--no-cache"]) == 2
    assert name in capsys.readouterr().err


def test_experts_that_lie_the_other_way_round_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoints.save(tmp_path / "oss", "gpt_oss")
    monkeypatch.setattr(models, "_read_weights", lambda *args: pytest.fail("the weights were read"))
    with pytest.raises(ModelRefused, match=r"GptOssExperts are stored as \[experts, in, out\]"):
        load_model(str(folder), quantisation="int8")


def test_a_family_that_cannot_run_int8_is_refused_with_that_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the layout was not seen beforehand, the load-time checks notice."""
    every = lambda block: (p for p in block.experts.parameters(recurse=False) if p.ndim == 3)  # noqa: E731
    monkeypatch.setattr(quantise, "_fused", every)
    with pytest.raises(ModelRefused, match="^With int8 weights: ") as refusal:
        load_model(str(checkpoints.save(tmp_path / "oss", "gpt_oss")), quantisation="int8")
    assert refusal.value.next == "Choose quantisation none."


def test_without_torchao_int8_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "torchao" else found(name, *a))
    with pytest.raises(ModelRefused, match="torchao, which is not installed") as refusal:
        load_model("demo", quantisation="int8")
    assert "pip install" in refusal.value.next


def test_the_command_line_says_what_is_quantised(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trace", "--fact", "17", "--quantisation", "int8", "--no-cache", "--experts", "none"]) == 0
    assert "experts int8; attention int8; router float32" in capsys.readouterr().out
    assert cli.main(["models"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert "memory int8" in table[0] and "quantised" in table[0]


def test_copies_of_an_int8_model_are_models(demo: MoeModel) -> None:
    twin = MoeModel(copy.deepcopy(demo.model), demo.tokenizer)
    assert formats(twin) == formats(demo)
