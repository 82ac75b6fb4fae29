"""Loading: folders, the hub cache's layout, number formats, and a refusal in words for everything else."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import struct
from pathlib import Path

import checkpoints
import huggingface_hub.constants as hub
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

import core
from core import catalog, identity, models, placement
from core.errors import ExpertScopeError, InputError, ModelError, ModelRefused
from core.identity import locate, recall_identity
from core.progress import Progress
from core.requests import ModelSpec
from core.workbench import Workbench


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.save(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint that a test may damage."""
    target = tmp_path / "copy"
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_a_folder_is_loaded_with_its_own_weights(folder: Path) -> None:
    model = core.load_model(str(folder))
    for (name, mine), (_, theirs) in zip(
        model.model.named_parameters(), checkpoints.build().named_parameters(), strict=True
    ):
        assert torch.equal(mine, theirs), name
    assert model.n_experts == 8 and model.top_k == 2
    assert (model.dtype, model.device.type) == (torch.float32, "cpu")


def test_a_hub_id_is_found_in_the_hub_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = checkpoints.as_hub_cache(folder, tmp_path / "hub", "lab/tiny-moe", revision="v1")
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    model = core.load_model("lab/tiny-moe", revision="v1")
    assert model.spec == ModelSpec("lab/tiny-moe", revision="v1")
    assert locate(model.spec) == snapshot
    with pytest.raises(ModelError, match="(?i)not on this machine|no revision"):
        core.load_model("lab/tiny-moe", revision="v2")


def test_shards_are_read_and_a_missing_one_is_named(tmp_path: Path) -> None:
    sharded = checkpoints.save(tmp_path / "sharded", shard="100KB")
    shards = sorted(sharded.glob("*.safetensors"))
    assert len(shards) > 2
    core.load_model(str(sharded))
    shards[1].unlink()
    with pytest.raises(ModelError, match=shards[1].name):
        core.load_model(str(sharded))


def test_auto_dtype_is_fp32_where_it_fits_else_the_checkpoints_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = checkpoints.save(tmp_path / "half", dtype=torch.bfloat16)
    assert core.load_model(str(half)).dtype == torch.float32
    size = (half / "model.safetensors").stat().st_size
    monkeypatch.setattr(placement, "available_bytes", lambda device: int(1.5 * size))
    assert core.load_model(str(half)).dtype == torch.bfloat16
    monkeypatch.setattr(placement, "available_bytes", lambda device: size // 2)
    with pytest.raises(ModelError, match=r"needs about [0-9.]+ (k|M|G)B in bfloat16, and [0-9.]+ (k|M)B are free"):
        core.load_model(str(half))


def test_progress_tells_of_loading_and_checking(folder: Path) -> None:
    class Listener(Progress):
        labels: list[str] = []

        def update(self, done: float, total: float, label: str = "") -> None:
            assert 0 <= done <= total
            self.labels.append(label)

    core.load_model(str(folder), progress=Listener())
    assert {"loading the model", "checking the model"} <= set(Listener.labels)


def test_a_dense_model_is_refused_before_its_weights_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = Qwen3ForCausalLM(
        Qwen3Config(
            hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
            head_dim=16, vocab_size=64,
        )  # fmt: skip
    )
    dense.save_pretrained(tmp_path / "dense")
    monkeypatch.setattr(models, "_read_weights", lambda *args: pytest.fail("the weights were read"))
    with pytest.raises(ModelRefused, match="not a sparse mixture-of-experts"):
        core.load_model(str(tmp_path / "dense"))


DEEP = "[" * 100_000 + "]" * 100_000
BAD_FOLDERS = {
    # file, what is put into it (of a record: what changes in it), what is said
    "nested": ("config.json", DEEP, "configuration cannot be read"),
    "list": ("config.json", "[]", "configuration cannot be read"),
    "layers": ("config.json", {"num_hidden_layers": 10**15}, "1,000,000,000,000,000 layers; 1,000 are the most"),
    "a text": ("config.json", {"num_hidden_layers": "x"}, "num_hidden_layers"),
    "no heads": ("config.json", {"num_attention_heads": 0}, "(?i)configuration cannot be read|can build"),
    "below 0": ("config.json", {"hidden_size": -5}, "can build"),
    "no list": ("config.json", {"mlp_only_layers": 5}, "mlp_only_layers"),
    "method": ("config.json", {"quantization_config": [1]}, "configuration cannot be read"),
    "dtype": ("config.json", {"dtype": "os.system"}, "configuration cannot be read"),
    "own weights": ("config.json", {"transformers_weights": "x.safetensors.index.json"}, "transformers_weights"),
    "index nested": ("model.safetensors.index.json", DEEP, "index.json is damaged"),
    "index list": ("model.safetensors.index.json", '{"weight_map": [1]}', "index.json is damaged"),
    "index number": ("model.safetensors.index.json", '{"weight_map": {"a": 5}}', "index.json is damaged"),
    "index pickle": ("model.safetensors.index.json", '{"weight_map": {"a": "evil.bin"}}', "no safetensors file of"),
    "index above": ("model.safetensors.index.json", '{"weight_map": {"a": "../x.safetensors"}}', "of this folder"),
    "index root": ("model.safetensors.index.json", '{"weight_map": {"a": "/x.safetensors"}}', "of this folder"),
    "header nested": ("model.safetensors", DEEP, "weights .*cannot be read"),
    "header list": ("model.safetensors", "[]", "weights .*cannot be read"),
    "header place": (
        "model.safetensors", '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}',
        "weights .*cannot be read",
    ),
    "header shape": (
        "model.safetensors", '{"a": {"dtype": "F32", "shape": [1e18], "data_offsets": [0, 4]}}',
        "weights .*cannot be read",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FOLDERS)
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_whatever_a_folder_holds_ends_in_a_sentence(copy: Path, name: str, where: str) -> None:
    file, content, said = BAD_FOLDERS[name]
    path = copy / file
    if isinstance(content, dict):
        content = json.dumps(json.loads(path.read_text()) | content)
    raw = content.encode() + bytes(4)
    path.write_bytes(struct.pack("<Q", len(raw) - 4) + raw if file == "model.safetensors" else raw[:-4])
    with pytest.raises(ExpertScopeError, match=said) as caught:
        core.load_model(str(copy), placement=where)
    assert caught.value.next and len(caught.value.what) < 600
    assert catalog.entry(str(copy)).id == str(copy)
    with contextlib.suppress(ModelError):
        Workbench(None).tokenizers.of(ModelSpec(str(copy)))


def test_an_index_that_names_a_pickle_is_refused_where_there_is_no_other_file(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "other.safetensors")
    witness = copy / "was_run"

    class Evil:
        def __reduce__(self):
            return open, (str(witness), "w")

    (copy / "evil.bin").write_bytes(pickle.dumps(Evil()))
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": "evil.bin"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="names 'evil.bin', which is no safetensors file"):
        core.load_model(str(copy))
    assert not witness.exists()


def test_a_pipe_in_a_file_s_place_is_not_waited_for(copy: Path) -> None:
    (copy / "config.json").unlink()
    os.mkfifo(copy / "config.json")
    assert catalog.entry(str(copy)).parameters is None
    with pytest.raises(ModelError, match="no config.json"):
        core.load_model(str(copy))


def test_pickled_weights_are_never_read(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="(?s)no safetensors.*pytorch_model.bin.*run code"):
        core.load_model(str(copy))


def test_code_from_the_repository_is_never_run(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config.update(model_type="homemade", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    (copy / "config.json").write_text(json.dumps(config))
    witness = copy / "was_run"
    (copy / "evil.py").write_text(f"open({str(witness)!r}, 'w')\n")
    with pytest.raises(ModelRefused, match="never run"):
        core.load_model(str(copy))
    assert not witness.exists()


@pytest.mark.parametrize("code", [{"AutoTokenizer": ["evil.Tokenizer", None]}, "evil.Tokenizer", ["evil"]])
def test_a_tokenizer_that_is_code_is_refused_and_not_run(copy: Path, code) -> None:
    path = copy / "tokenizer_config.json"
    config = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(config | {"auto_map": code, "tokenizer_class": "EvilTokenizer"}))
    witness = copy / "was_run"
    (copy / "evil.py").write_text(f"open({str(witness)!r}, 'w')\n")
    with pytest.raises(ModelRefused, match="(?s)tokenizer is code.*never run"):
        core.load_model(str(copy))
    with pytest.raises(ModelRefused, match="tokenizer is code"):
        Workbench(None).tokenizers.of(ModelSpec(str(copy)))
    assert not witness.exists()


def test_pickles_beside_safetensors_are_never_opened(copy: Path) -> None:
    witness = copy / "was_run"

    class Evil:
        def __reduce__(self):
            return open, (str(witness), "w")

    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (copy / name).write_bytes(pickle.dumps(Evil()))
    assert core.load_model(str(copy)).n_experts
    assert not witness.exists()


def test_a_damaged_or_incomplete_file_is_an_error_in_words(copy: Path) -> None:
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cannot be read"):
        core.load_model(str(copy))


def test_weights_that_are_missing_are_not_made_up(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    gone = next(name for name in weights if "q_proj" in name)
    del weights[gone]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lack 1 of the model's weights"):
        core.load_model(str(copy))


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ({"name": "/no/such/folder"}, InputError, "no folder"),
        ({"name": "./nowhere"}, InputError, "no folder"),
        ({"name": "not a hub id!"}, InputError, "neither a folder"),
        ({"name": "org/absent"}, ModelError, "not on this machine"),
        ({"name": "demo", "dtype": "int3"}, InputError, "float32"),
    ],
)
def test_what_is_not_there_is_said(spec: dict, error: type[ExpertScopeError], message: str) -> None:
    with pytest.raises(error, match=message):
        core.load_model(**spec)


def test_an_empty_folder_and_a_missing_tokenizer(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="config.json"):
        core.load_model(str(tmp_path / "empty"))
    for path in copy.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        core.load_model(str(copy))


def test_the_identity_is_remembered_and_follows_the_weights(copy: Path, tmp_path: Path) -> None:
    from cache.store import Store

    spec = ModelSpec(str(copy))
    with Store.open(tmp_path / "store.duckdb") as store:
        assert recall_identity(store, spec) is None
        model = core.load_model(spec.name, store=store)
        assert recall_identity(store, spec) == model.identity
        data = bytearray((copy / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (copy / "model.safetensors").write_bytes(data)
        assert recall_identity(store, spec) is None


def test_large_files_are_known_by_their_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_WHOLE", 1000)
    monkeypatch.setattr(identity, "_BLOCK", 64)
    data = bytearray(random.Random(0).randbytes(4000))
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(data)
        data[-1] ^= name == "b"  # "c" differs in its last byte
    a, b, c = (identity.fingerprint(tmp_path / name) for name in "abc")
    assert a == b != c
    os.utime(tmp_path / "a" / "model.safetensors", (1, 1))  # another time is not another model
    assert identity.fingerprint(tmp_path / "a") == a


def test_another_engine_does_not_reuse_answers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = core.load_model(str(folder)).identity
    monkeypatch.setattr(identity, "ENGINE", identity.ENGINE + 1)
    assert core.load_model(str(folder)).identity != before
