"""The catalogue: figures against models that transformers builds without weights, states against files on disk."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import checkpoints
import huggingface_hub.constants
import pytest
import tiny_models
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from core import catalog, cli
from core.catalog import ABSENT, HERE, KNOWN, PARTLY, CatalogEntry

ROOT = Path(__file__).resolve().parent.parent

# the published configurations, as far as they differ from the classes' defaults
PUBLISHED = {
    "Qwen/Qwen3-30B-A3B-Base": (
        "qwen3_moe",
        {
            "vocab_size": 151936, "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32,
            "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
            "moe_intermediate_size": 768, "intermediate_size": 6144,
        },
    ),
    "mistralai/Mixtral-8x7B-v0.1": (
        "mixtral",
        {
            "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
        },
    ),
    "allenai/OLMoE-1B-7B-0924": (
        "olmoe",
        {
            "vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 1024, "num_hidden_layers": 16,
            "num_attention_heads": 16, "num_key_value_heads": 16, "num_experts": 64, "num_experts_per_tok": 8,
        },
    ),
    "ibm-granite/granite-3.1-1b-a400m-base": (
        "granitemoe",
        {
            "vocab_size": 49155, "hidden_size": 1024, "intermediate_size": 512, "num_hidden_layers": 24,
            "num_attention_heads": 16, "num_key_value_heads": 8, "num_local_experts": 32, "num_experts_per_tok": 8,
            "tie_word_embeddings": True,
        },
    ),
    "ibm-granite/granite-3.1-3b-a800m-base": (
        "granitemoe",
        {
            "vocab_size": 49155, "hidden_size": 1536, "intermediate_size": 512, "num_hidden_layers": 32,
            "num_attention_heads": 24, "num_key_value_heads": 8, "num_local_experts": 40, "num_experts_per_tok": 8,
            "tie_word_embeddings": True,
        },
    ),
    "Qwen/Qwen1.5-MoE-A2.7B": (
        "qwen2_moe",
        {
            "vocab_size": 151936, "hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16,
            "num_key_value_heads": 16, "num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632, "intermediate_size": 5632,
        },
    ),
    "deepseek-ai/DeepSeek-V2-Lite": (
        "deepseek_v2",
        {
            "vocab_size": 102400, "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408,
            "num_hidden_layers": 27, "num_attention_heads": 16, "num_key_value_heads": 16, "n_shared_experts": 2,
            "n_routed_experts": 64, "num_experts_per_tok": 6, "first_k_dense_replace": 1, "q_lora_rank": None,
            "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        },
    ),
    "microsoft/Phi-3.5-MoE-instruct": (
        "phimoe",
        {
            "vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 6400, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 16, "num_experts_per_tok": 2,
            "attention_bias": True, "lm_head_bias": True,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("known", KNOWN, ids=lambda k: k.id)
def test_figures_of_known_models(known):
    family, values = PUBLISHED[known.id]
    config = AutoConfig.for_model(family, **values)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert known.parameters == sum(p.numel() for p in model.parameters())
    shape = (known.layers, known.moe_layers, known.experts, known.top_k, known.shared)
    assert catalog._shape(json.loads(config.to_json_string(use_diff=False))) == shape


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoints.save(tmp_path_factory.mktemp("models") / "tiny", dtype=torch.bfloat16)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "hub").mkdir()
    return tmp_path / "hub"


def test_a_local_folder(folder):
    found = catalog.entry(str(folder))
    parameters = sum(p.numel() for p in checkpoints.build().parameters())
    assert found.parameters == parameters and found.bytes_per_parameter == 2.0 and found.size == 2 * parameters
    assert found.moe_layers == len(tiny_models.FAMILIES["qwen3_moe"].moe_layers)
    assert (found.layers, found.experts, found.top_k) == (4, tiny_models.N_EXPERTS, tiny_models.TOP_K)
    assert (found.state, found.path) == (HERE, str(folder))


@pytest.mark.parametrize("family", sorted({"mixtral", "deepseek_v3", "qwen2_moe", "granitemoe", "ernie4_5_moe"}))
def test_moe_layers_of_tiny_models(tmp_path, family):
    (tmp_path / "config.json").write_text(tiny_models.config_of(family).to_json_string(use_diff=False))
    found = catalog.entry(str(tmp_path))
    assert found.moe_layers == len(tiny_models.FAMILIES[family].moe_layers)
    assert (found.experts, found.top_k) == (tiny_models.N_EXPERTS, tiny_models.TOP_K)
    assert found.state == PARTLY  # no weights


def test_states_in_the_hub_cache(folder, cache):
    known = KNOWN[0].id
    assert catalog.entry(known).state == ABSENT
    snapshot = checkpoints.as_hub_cache(folder, cache, known)
    assert catalog.entry(known).state == HERE and catalog.entry(known).path == str(snapshot)
    assert catalog.entry(known).parameters == KNOWN[0].parameters
    assert catalog.entry(known, revision="other").state == ABSENT
    (weights,) = snapshot.glob("*.safetensors")
    blob = weights.resolve()
    blob.write_bytes(blob.read_bytes()[:-1])  # cut short
    assert catalog.entry(known).state == PARTLY
    weights.unlink()
    assert catalog.entry(known).state == PARTLY


def test_where_a_model_is_and_what_loading_it_does(folder, cache, tmp_path):
    def told(name, revision=None):
        return catalog.whereabouts(catalog.entry(name, revision=revision), revision)

    assert told(str(folder)).startswith("On this machine; it is loaded")
    assert "There is no such folder" in told(str(tmp_path / "nothing"))
    assert "downloads it" in told("org/tiny") and told("org/tiny", "v2").startswith("Revision v2 is not on this")
    snapshot = checkpoints.as_hub_cache(folder, cache, "org/tiny")
    assert told("org/tiny").startswith("On this machine") and "Revision v2" in told("org/tiny", "v2")
    next(snapshot.glob("*.safetensors")).unlink()
    assert "loading fetches them" in told("org/tiny")
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    (damaged / "model.safetensors").write_bytes(b"hello")
    assert "Nothing is downloaded for a folder" in told(str(damaged)) and "fetches" not in told(str(damaged))
    for method, readable in (("gptq", False), ("fp8", True)):
        config = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": method}}
        shutil.copytree(folder, tmp_path / method)
        (tmp_path / method / "config.json").write_text(json.dumps(config))
        assert ("it is loaded when" in told(str(tmp_path / method))) == readable
        assert ("which cannot be traced" in told(str(tmp_path / method))) != readable


def test_missing_shards(tmp_path):
    folder = checkpoints.save(tmp_path / "sharded", shard="200KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    whole = catalog.entry(str(folder))
    assert whole.state == HERE
    assert whole.parameters == sum(p.numel() for p in checkpoints.build().parameters())
    shards[0].unlink()
    assert catalog.entry(str(folder)).state == PARTLY


def test_other_models_in_the_cache_are_listed_if_they_have_experts(folder, cache):
    checkpoints.as_hub_cache(folder, cache, "some-one/tiny-moe")
    dense = cache / "models--some-one--dense" / "snapshots" / "abc"
    dense.mkdir(parents=True)
    (dense / "config.json").write_text('{"num_hidden_layers": 2}')
    (dense.parent.parent / "refs").mkdir()
    (dense.parent.parent / "refs" / "main").write_text("abc")
    names = [e.id for e in catalog.catalogue()]
    assert names[0] == "demo" and names[1 : 1 + len(KNOWN)] == [k.id for k in KNOWN]
    assert names[1 + len(KNOWN) :] == ["some-one/tiny-moe"]


@pytest.mark.parametrize("name", ["", "not/there", "a/b/c", "weird name\n", "x" * 300, "\0", "models--x", "../.."])
def test_unknown_names_never_fail(cache, name):
    found = catalog.entry(name)
    assert found.parameters is None and found.shape == "?" and found.size is None and found.memory() is None


def test_damaged_folders_never_fail(tmp_path):
    for content in ("", "[1]", "{", '{"num_hidden_layers": "many"}', '{"text_config": 3}'):
        (tmp_path / "config.json").write_text(content)
        (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
        assert catalog.entry(str(tmp_path)).state == PARTLY


def test_memory_is_weights_and_working_space():
    model = CatalogEntry("x", 10**9, 4, 4, 8, 2)
    assert model.size == 2 * 10**9
    assert 2 * 10**9 < model.memory() < 4 * 10**9 and model.memory(4) - model.memory() == pytest.approx(2.2e9)


def test_the_command_lists_the_catalogue(cache, capsys):
    assert cli.main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("demo ")
    row = next(line for line in lines if line.startswith("Qwen/Qwen3-30B-A3B-Base"))
    for part in ("30.5 B", "61.1 GB", "48 × 128", " 8 ", "not here"):
        assert part in row


def test_the_command_needs_no_torch():
    script = (
        "import sys; from core import cli; cli.main(['models']); print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "set()"
