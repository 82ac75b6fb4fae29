"""Layers left on the disk: the same weights, the same numbers, every byte of a layer read once per pass.

Compared with the same checkpoint loaded into memory by transformers' own call.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from pathlib import Path

import accelerate
import checkpoints
import families
import pytest
import tiny_models
import torch
from accelerate.hooks import AlignDevicesHook
from transformers import AutoModelForCausalLM

import core
from core import models, placement
from core.checkpoint import Checkpoint
from core.conversion import StoredWeights, groups_of
from core.disk import load_from_disk
from core.errors import Cancelled, ModelError, ModelRefused
from core.moe import MoeModel
from core.placement import Placement
from core.progress import Progress
from core.trace import trace_prepared
from tests.compare import random_fact

NOT_BY_LAYERS = {"zaya"}  # a parameter beside its layers that accelerate cannot place; zaya is not traced anyway
FACTS = [random_fact(5), random_fact(6, length=11, subject=(4, 5, 6)), random_fact(8, length=9, subject=(0,))]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bfloat16 checkpoint in several shards, one tensor per expert as on the hub."""
    return checkpoints.save(
        tmp_path_factory.mktemp("disk") / "model", "qwen3_moe", dtype=torch.bfloat16, shard="100KB"
    )


def from_disk(folder: Path, dtype: torch.dtype = torch.float32, *, by_rows: bool = False) -> MoeModel:
    """Without the load-time checks."""
    config = models.read_config(folder)
    place = Placement(dtype, CPU, None, needed=0, free=0, by_rows=by_rows)
    model, info, weights = load_from_disk(folder, config, models._skeleton(config), place)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    moe = MoeModel(model)
    moe.weights = weights
    return probed(moe)


def probed(model: MoeModel) -> MoeModel:
    """With everything found out that the load-time checks would have found out."""
    assert model.structure.packed and model.noise_floor.patches
    return model


def in_memory(folder: Path, dtype: torch.dtype = torch.float32) -> MoeModel:
    return MoeModel(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype))


def layer_tensors(model: MoeModel) -> dict[str, int]:
    """{stored tensor of a decoder layer: its bytes}; buffers, which are few numbers, stay in memory."""
    buffers = {name for name, _ in model.model.named_buffers()}
    tensors = model.weights.checkpoint.tensors
    return {name: stored.nbytes for name, stored in tensors.items() if ".layers." in name and name not in buffers}


def read_since(model: MoeModel, before: Counter[str]) -> dict[str, int]:
    """{stored tensor of a decoder layer: bytes read of it since `before`}."""
    now = model.weights.checkpoint.bytes_read
    return {name: now[name] - before[name] for name in layer_tensors(model)}


def assert_same_frames(got, want, *, within: float = 1e-5) -> None:
    for ours, theirs in zip(got, want, strict=True):
        assert len(ours.frame) == len(theirs.frame) > 20
        for column in ("true_logit", "foil_logit"):
            assert (ours.frame[column] - theirs.frame[column]).abs().max() <= within
        assert (theirs.frame.rescue.abs() > 0.01).any()


# ---- the weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", families.discover())
def test_every_familys_weights_are_those_of_the_usual_loading(family: str, tmp_path: Path) -> None:
    """Bit for bit, hidden buffers included: of every family of the installed transformers that can be built small."""
    try:
        model = families.build(family)
        model.to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="500KB")
        usual = type(model).from_pretrained(tmp_path, dtype=torch.float32)
    except Exception:  # noqa: BLE001 - what transformers itself cannot do
        assert family not in tiny_models.FAMILIES
        return
    try:
        ours, _, weights = _left_on_disk(tmp_path, torch.float32)
    except ModelRefused as refused:
        assert family in NOT_BY_LAYERS, refused
        return
    _same_weights(ours, weights, usual)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_weights_are_read_in_the_number_format_asked_for(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """deepseek_v3 keeps some of its weights in float32 whatever is asked for."""
    tiny_models.build(family).to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="200KB")
    usual = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    ours, _, weights = _left_on_disk(tmp_path, dtype)
    _same_weights(ours, weights, usual)


def _left_on_disk(folder: Path, dtype: torch.dtype) -> tuple[torch.nn.Module, dict, StoredWeights]:
    config = models.read_config(folder)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    return load_from_disk(folder, config, skeleton, Placement(dtype, CPU, None, needed=0, free=0))


def _same_weights(ours: torch.nn.Module, weights: StoredWeights, usual: torch.nn.Module) -> None:
    """And every stored tensor that the model uses was read once, in the end."""
    mine, theirs = dict(ours.named_parameters()), dict(usual.named_parameters())
    away = [name for name, value in mine.items() if value.device.type == "meta"]
    assert len(away) > len(theirs) / 2
    fetched = weights.fetch(away)
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        got = fetched.get(name, mine[name])
        assert got.dtype == value.dtype and torch.equal(got, value), name
    buffers = dict(usual.named_buffers())
    for name, value in ours.named_buffers():
        assert value.dtype == buffers[name].dtype and torch.equal(value, buffers[name]), name
    checkpoint = weights.checkpoint
    assert all(checkpoint.bytes_read[name] == stored.nbytes for name, stored in checkpoint.tensors.items())


def test_a_conversion_across_layers_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = groups_of

    def across(model, checkpoint):
        groups = real(model, checkpoint)
        group = next(g for g in groups if ".layers.2." in g.first)
        group.made = (*group.made, group.first.replace(".2.", ".3."))
        return groups

    monkeypatch.setattr("core.disk.groups_of", across)
    with pytest.raises(ModelRefused, match="layer by layer .*several layers"):
        from_disk(folder)


def test_rows_of_a_table_are_read_and_no_others(folder: Path) -> None:
    from core.by_rows import RowTable

    checkpoint = Checkpoint(folder)
    name = "model.embed_tokens.weight"
    whole, width = checkpoint.read(name), checkpoint.tensors[name].shape[1]
    table = RowTable(checkpoint, name, torch.float32, CPU)
    checkpoint.bytes_read.clear()
    wanted = torch.tensor([[3, 200], [3, 90]])
    assert torch.equal(table[wanted], whole.float()[wanted])
    assert checkpoint.bytes_read[name] == 3 * width * 2
    assert torch.equal(table[7:40], whole.float()[7:40])
    assert torch.equal(table[whole.shape[0] - 2 : whole.shape[0] + 9], whole.float()[-2:])


# ---- whole traces ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "by_rows"),
    [("qwen3_moe", False), ("qwen3_moe", True), ("ernie4_5_moe", True), ("deepseek_v3", False), ("jamba", False)],
)
def test_a_heat_map_reads_each_layer_once_and_is_the_same(family: str, by_rows: bool, tmp_path: Path) -> None:
    """ernie4_5_moe ties its tables, deepseek_v3 has dense layers and a shared expert, jamba has mamba layers."""
    folder = checkpoints.save(tmp_path / "model", family, dtype=torch.bfloat16, shard="100KB")
    model = from_disk(folder, by_rows=by_rows)
    before = model.weights.checkpoint.bytes_read.copy()
    got = trace_prepared(model, FACTS[:1], experts="all", draws=2)
    assert read_since(model, before) == layer_tensors(model)
    assert_same_frames(got, trace_prepared(in_memory(folder), FACTS[:1], experts="all", draws=2))
    where = got[0].provenance
    assert where.placement == "disk" and where.bytes_read >= sum(layer_tensors(model).values())
    assert (where.bytes_read == sum(layer_tensors(model).values())) is not by_rows


def test_the_layer_sweep_of_a_batch_of_facts_reads_each_layer_once(folder: Path) -> None:
    model = from_disk(folder)
    before = model.weights.checkpoint.bytes_read.copy()
    got = trace_prepared(model, FACTS, experts="none")
    assert read_since(model, before) == layer_tensors(model)
    assert_same_frames(got, trace_prepared(in_memory(folder), FACTS, experts="none"))


def test_loading_with_all_its_checks_reads_each_layer_once(folder: Path) -> None:
    model = core.load_model(str(folder), placement="disk")
    assert read_since(model, Counter()) == layer_tensors(model)
    assert model.remark.startswith("The model's layers stay on the disk, as was asked for")
    assert model.identity == core.load_model(str(folder), placement="memory").identity  # no number depends on it


def test_a_plain_forward_works_through_accelerates_own_hooks(folder: Path) -> None:
    ids = torch.tensor([FACTS[0].input_ids])
    for by_rows in (False, True):
        model = from_disk(folder, by_rows=by_rows)
        with torch.no_grad():
            got, want = model.model(ids).logits, in_memory(folder).model(ids).logits
        assert (got - want).abs().max() <= 1e-5
        assert all(p.device.type == "meta" for p in model.layers.parameters())


def test_an_automatic_foil_costs_no_second_pass(folder: Path) -> None:
    model = core.load_model(str(folder), placement="disk")
    before = model.weights.checkpoint.bytes_read.copy()
    result = core.trace(model, prompt="The capital of {} is", subject="France", true="Paris", foil="auto")
    assert read_since(model, before) == layer_tensors(model)
    best = result.next_tokens[result.next_tokens.run == "clean"]
    best = best[best.token_id != result.provenance.true_id].iloc[0]
    assert result.provenance.foil_id == best.token_id


# ---- one layer here, the next one on its way -------------------------------------------------------------------------


def test_the_next_layer_is_fetched_while_this_one_computes_and_no_further_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = from_disk(folder)
    begun = [threading.Event() for _ in range(model.n_layers)]
    fetch = StoredWeights.fetch

    def watched(self, names):
        names = list(names)
        layer = int(names[0].split(".layers.")[1].split(".")[0])
        begun[layer].set()
        return fetch(self, names)

    def here() -> list[int]:
        return [
            layer for layer in range(model.n_layers)
            if any(p.device.type != "meta" for p in model.layers[layer].parameters())
        ]  # fmt: skip

    seen: list[tuple[int, list[int]]] = []

    from core import missing

    plan = missing._Collector.plan

    def during(self, base):
        if base.layer + 1 < model.n_layers:
            assert begun[base.layer + 1].wait(20), "the next layer is not being fetched"
        assert not any(event.is_set() for event in begun[base.layer + 2 :])
        seen.append((base.layer, here()))
        return plan(self, base)

    monkeypatch.setattr(StoredWeights, "fetch", watched)
    monkeypatch.setattr(missing._Collector, "plan", during)
    trace_prepared(model, FACTS[:1])
    assert seen == [(layer, [layer]) for layer in range(model.n_layers)]
    assert here() == []


def test_a_cancelled_trace_leaves_the_model_as_it_was(folder: Path) -> None:
    model = from_disk(folder)
    want = trace_prepared(model, FACTS[:1])

    class Stop(Progress):
        left = 3

        def check(self) -> None:
            self.left -= 1
            if not self.left:
                raise Cancelled()

    with pytest.raises(Cancelled):
        trace_prepared(model, FACTS[:1], progress=Stop())
    hooks = [module._hf_hook for module in model.layers.modules() if hasattr(module, "_hf_hook")]
    assert any(hook.offload for hook in hooks if isinstance(hook, AlignDevicesHook))
    assert all(p.device.type == "meta" for p in model.layers.parameters())
    assert_same_frames(trace_prepared(model, FACTS[:1]), want, within=0)


class _Counted(dict):
    """A state dictionary that counts how often each tensor is asked for."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.asked: Counter[str] = Counter()

    def __getitem__(self, name: str) -> torch.Tensor:
        self.asked[name] += 1
        return super().__getitem__(name)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_what_accelerate_keeps_in_main_memory_is_fetched_once_per_sweep(family: str) -> None:
    plain, away = tiny_models.build(family), tiny_models.build(family)
    kept = _Counted(away.state_dict())
    accelerate.cpu_offload(away, execution_device=CPU, state_dict=kept)
    model = probed(MoeModel(away))
    kept.asked.clear()
    got = trace_prepared(model, FACTS, experts="last")
    assert {name: kept.asked[name] for name, _ in away.named_parameters() if ".layers." in name} == {
        name: 1 for name, _ in plain.named_parameters() if ".layers." in name
    }
    assert_same_frames(got, trace_prepared(MoeModel(plain), FACTS, experts="last"))


def test_what_accelerate_wrote_to_a_folder_is_traced_too(tmp_path: Path) -> None:
    plain, away = tiny_models.build("mixtral"), tiny_models.build("mixtral")
    accelerate.disk_offload(away, tmp_path / "offload", execution_device=CPU)
    got = trace_prepared(MoeModel(away), FACTS[:1])
    assert_same_frames(got, trace_prepared(MoeModel(plain), FACTS[:1]))


# ---- what is chosen, and what is said --------------------------------------------------------------------------------


def test_layers_stay_on_the_disk_where_the_weights_do_not_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    monkeypatch.setattr(placement, "_WORKING", 0)
    monkeypatch.setattr(placement, "available_bytes", lambda device: size)  # in bfloat16 all takes 1.1 × this
    model = core.load_model(str(folder))
    assert model.weights is not None and model.dtype == torch.bfloat16
    assert "are read from there once per trace" in model.remark
    assert re.search("needs about [0-9.]+ (k|M)B in bfloat16 and [0-9.]+ (k|M)B are free", model.remark)
    with pytest.raises(ModelError, match=r"needs about [0-9.]+ .B in bfloat16, and [0-9.]+ .B are free") as error:
        core.load_model(str(folder), placement="memory")
    assert "placement auto or disk" in error.value.next
    monkeypatch.setattr(placement, "available_bytes", lambda device: size // 10)
    with pytest.raises(ModelError, match="with its layers on the disk it still takes"):
        core.load_model(str(folder))


def test_quantised_weights_are_not_read_layer_by_layer(folder: Path) -> None:
    with pytest.raises(ModelError, match="Quantised weights cannot be read layer by layer"):
        core.load_model(str(folder), placement="disk", quantisation="int8", device="cpu")


def test_a_family_that_needs_whole_forward_passes_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them would read everything."""
    monkeypatch.setattr("core.checks.check_copy", lambda model, progress: ([], True))
    with pytest.raises(ModelRefused, match="would each read it from the disk"):
        core.load_model(str(folder), placement="disk")


def test_a_file_cut_short_is_an_error_in_words(tmp_path: Path) -> None:
    folder = checkpoints.save(tmp_path / "model", "qwen3_moe", dtype=torch.bfloat16)
    model = from_disk(folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
    with pytest.raises(ModelError, match="cut short"):
        trace_prepared(model, FACTS[:1])


def test_a_missing_weight_is_not_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = checkpoints.save(tmp_path / "model", "qwen3_moe")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.2.self_attn.q_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lack 1 of the model's weights"):
        core.load_model(str(folder), placement="disk")


def test_gpus_and_main_memory_share_the_weights_before_the_disk_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pretended GPUs: what is chosen as they get smaller. Nothing is loaded."""
    from core.quantise import Plan

    config, spec = models.read_config(folder), placement.ModelSpec(str(folder), dtype="bfloat16", device="cuda")
    skeleton = models._skeleton(config)
    needed = Plan("none", config, skeleton).weight_bytes(skeleton, torch.bfloat16)
    monkeypatch.setattr(placement, "_WORKING", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    def chosen(gpu: float, main: float) -> Placement:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(gpu * needed), 0))
        free = {"cuda": int(gpu * needed), "cpu": int(main * needed)}
        monkeypatch.setattr(placement, "available_bytes", lambda device: free[torch.device(device).type])
        return placement.choose(spec, config, skeleton, Plan("none", config, skeleton), stored=0)

    assert chosen(1.2, 9).device_map == {"": torch.device("cuda")}
    divided = chosen(1.05, 2)
    assert divided.device_map == "auto" and set(divided.max_memory) == {0, 1, "cpu"}
    assert all(share <= 0.85 * 1.05 * needed for gpu, share in divided.max_memory.items() if gpu != "cpu")
    assert chosen(0.7, 0.7).on_disk
