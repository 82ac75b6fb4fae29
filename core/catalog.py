"""The models that ExpertScope knows by name, what they take, and whether they are on this machine.

Reads folders and the Hugging Face cache as they lie on the disk: no network, no torch, no weights loaded.
"""

from __future__ import annotations

import functools
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ModelRefused
from .quantisation import bytes_in_memory, described, readable, stored

DEMO_FOLDER = Path(__file__).resolve().parent.parent / "demo" / "model"
HERE, PARTLY, ABSENT = "on this machine", "incomplete", "not here"
FOLDER_STARTS = ("/", ".", "~")
"""How the name of a model begins that can only be a folder's."""
GB = 10**9
BASE_BYTES = GB  # Python, torch, the packed rows of a sweep and the store's buffers
WORKING_SHARE = 0.1  # of the weights: activations and temporary copies that grow with the model

MAX_LAYERS = 1000
"""Decoder layers that a configuration may ask for: the deepest models have some hundred, and building what a damaged
or made-up file asks for must not take for ever."""
_LONGEST_HEADER = 100 * 2**20  # bytes, as the format itself allows
_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}


@dataclass(frozen=True)
class CatalogEntry:
    """One model. `parameters`: number of weights; `bytes_per_parameter`: as the checkpoint stores them.

    `layers` counts decoder layers, `moe_layers` those with experts; `experts` are the routed ones of a layer,
    `top_k` of them are active per token; `shared`: it has a shared expert; `quantisation`: how it is stored (see
    `core.quantisation.stored`), empty: not quantised. None where it is not known.
    """

    id: str
    parameters: int | None
    layers: int | None
    moe_layers: int | None
    experts: int | None
    top_k: int | None
    shared: bool = False
    bytes_per_parameter: float = 2.0
    state: str = ABSENT
    path: str | None = None
    quantisation: str = ""

    @property
    def size(self) -> int | None:
        """Bytes on disk."""
        return None if self.parameters is None else round(self.parameters * self.bytes_per_parameter)

    @property
    def shape(self) -> str:
        """`48 × 128`: MoE layers × routed experts; `26 of 27 × 64 + shared` where layers differ."""
        if self.moe_layers is None or self.experts is None:
            return "?"
        layers = str(self.layers) if self.moe_layers == self.layers else f"{self.moe_layers} of {self.layers}"
        return f"{layers} × {self.experts}" + (" + shared" if self.shared else "")

    def memory(self, bytes_per_parameter: float | None = None) -> int | None:
        """Bytes of memory that tracing takes: the weights (as stored unless given otherwise) and working space."""
        if self.parameters is None:
            return None
        own = bytes_in_memory(self.quantisation, self.bytes_per_parameter)
        return memory_needed(self.parameters, bytes_per_parameter or own)


def memory_needed(parameters: int, bytes_per_parameter: float) -> int:
    """Bytes: weights × (1 + `WORKING_SHARE`) + `BASE_BYTES`. A rule of thumb; the loader measures before it loads."""
    return round(parameters * bytes_per_parameter * (1 + WORKING_SHARE)) + BASE_BYTES


KNOWN = (
    CatalogEntry("Qwen/Qwen3-30B-A3B-Base", 30_532_122_624, 48, 48, 128, 8),
    CatalogEntry("mistralai/Mixtral-8x7B-v0.1", 46_702_792_704, 32, 32, 8, 2),
    CatalogEntry("allenai/OLMoE-1B-7B-0924", 6_919_161_856, 16, 16, 64, 8),
    CatalogEntry("ibm-granite/granite-3.1-1b-a400m-base", 1_334_628_352, 24, 24, 32, 8),
    CatalogEntry("ibm-granite/granite-3.1-3b-a800m-base", 3_298_793_472, 32, 32, 40, 8),
    CatalogEntry("Qwen/Qwen1.5-MoE-A2.7B", 14_315_784_192, 24, 24, 60, 4, shared=True),
    CatalogEntry("deepseek-ai/DeepSeek-V2-Lite", 15_706_484_224, 27, 26, 64, 6, shared=True),
    CatalogEntry("microsoft/Phi-3.5-MoE-instruct", 41_873_153_344, 32, 32, 16, 2),
)
"""Published checkpoints with weights in bfloat16 safetensors; figures from their configurations."""


def catalogue() -> list[CatalogEntry]:
    """The bundled model, the known ones, and every other MoE checkpoint in the Hugging Face cache, with states."""
    entries = [entry("demo"), *(entry(known.id) for known in KNOWN)]
    names = {e.id for e in entries}
    others = [entry(name) for name in _cached_repositories() if name not in names]
    return entries + [e for e in others if e.experts]


def entry(name: str, *, revision: str | None = None) -> CatalogEntry:
    """What is known of a model: `demo`, a hub id or a local folder. Never fails: unknown figures are None."""
    folder = DEMO_FOLDER if name == "demo" else Path(name).expanduser()
    if name == "demo" or _is_folder(folder):
        return _from_folder(name, folder)
    known = next((k for k in KNOWN if k.id == name), None)
    snapshot = _snapshot(name, revision)
    if snapshot is None:
        return known or CatalogEntry(name, None, None, None, None, None)
    found = _from_folder(name, snapshot)
    if known is None:
        return found
    return CatalogEntry(**{**known.__dict__, "state": found.state, "path": found.path})


def whereabouts(found: CatalogEntry, revision: str | None = None) -> str:
    """Where a model that is not in memory is, and what loading it will do, in words; `revision`: the one asked for."""
    folder = found.path is not None and Path(found.path) == Path(found.id).expanduser()
    if found.state == HERE:
        if (how := described(found.quantisation)) and not readable(found.quantisation):
            return f"On this machine, but its weights are {how}."
        return "On this machine; it is loaded when something is traced." + (f" Weights: {how}." if how else "")
    if found.state == PARTLY and folder:
        return "Files are missing in this folder, or damaged: copy them again. Nothing is downloaded for a folder."
    if found.state == PARTLY:
        return "Some of its files are missing on this machine; loading fetches them."
    if found.id.startswith(FOLDER_STARTS):
        return "There is no such folder on this machine."
    what = f"Revision {revision} is" if revision else "It is"
    return f"{what} not on this machine; loading downloads it from the Hugging Face hub."


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name too long for this file system
        return False


def _from_folder(name: str, folder: Path) -> CatalogEntry:
    """Figures from `config.json` and the headers of the safetensors files."""
    config = json_file(folder / "config.json")
    if config is None:
        return CatalogEntry(name, None, None, None, None, None, state=PARTLY if folder.is_dir() else ABSENT)
    layers, moe_layers, experts, top_k, shared = _shape(config)
    files, complete = weight_files(folder)
    parameters, size = 0, 0
    for file in files:
        counted = _count(file)
        complete = complete and counted is not None
        parameters, size = parameters + (counted or (0, 0))[0], size + (counted or (0, 0))[1]
    known = complete and parameters > 0
    return CatalogEntry(
        id=name,
        parameters=parameters if known else None,
        layers=layers,
        moe_layers=moe_layers,
        experts=experts,
        top_k=top_k,
        shared=shared,
        bytes_per_parameter=size / parameters if known else 2.0,
        state=HERE if known else PARTLY,
        quantisation=stored(config),
        path=str(folder),
    )


def _shape(config: dict[str, Any]) -> tuple[int | None, int | None, int | None, int | None, bool]:
    """(layers, MoE layers, experts, top-k, has a shared expert) by the names that configurations use."""
    if isinstance(config.get("text_config"), dict):
        config = {**config, **config["text_config"]}

    def first(*names: str) -> int | None:
        return next((config[n] for n in names if isinstance(config.get(n), int) and config[n] > 0), None)

    layers = first("num_hidden_layers", "n_layers")
    layers = layers if layers is not None and layers <= MAX_LAYERS else None
    experts = first("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    top_k = first("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k")
    shared = bool(
        first("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "shared_expert_intermediate_size")
    )
    moe_layers = None
    if layers is not None and experts is not None:
        named = config.get("mlp_only_layers")
        dense = {layer for layer in named if isinstance(layer, int)} if isinstance(named, list) else set()
        step = first("decoder_sparse_step") or 1
        start = first("first_k_dense_replace", "moe_layer_start_index") or 0
        moe_layers = sum(1 for i in range(start, layers) if i not in dense and (i + 1) % step == 0)
    return layers, moe_layers, experts, top_k, shared


def read_header(file: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """What a safetensors file says about its tensors ({name: dtype, shape, data_offsets}), and where their data begins.

    Raises OSError, ValueError or `struct.error` where the file is none.
    """
    if not file.is_file():
        raise OSError("not a plain file")
    with file.open("rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(8))
        if length > _LONGEST_HEADER:
            raise ValueError("the header is too long")
        try:
            header = json.loads(handle.read(length))
        except RecursionError:
            raise ValueError("the header is nested too deeply") from None
    if not isinstance(header, dict):
        raise ValueError("the header is no record")
    header.pop("__metadata__", None)
    return header, 8 + length


def weight_files(folder: Path) -> tuple[list[Path], bool]:
    """(safetensors files that are there, whether those are all of them). A damaged index counts as files that lack."""
    try:
        names = shards(folder)
    except ValueError:
        return [], False
    wanted = sorted(folder.glob("*.safetensors")) if names is None else [folder / name for name in names]
    present = [f for f in wanted if f.is_file()]
    return present, bool(wanted) and len(present) == len(wanted)


def shards(folder: Path) -> list[str] | None:
    """Names of the files that the folder's index names; None without an index.

    Raises ValueError for an index that is damaged, or names anything but safetensors files in this very folder: no
    path leads out of it, and what ends otherwise would be opened as a pickle.
    """
    path = folder / "model.safetensors.index.json"
    if not path.exists():
        return None
    index = json_file(path)
    weights = index.get("weight_map") if index is not None else None
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights.values()):
        raise ValueError("is damaged")
    names = sorted(set(weights.values()))
    for name in names:
        if not name.endswith(".safetensors") or Path(name).name != name or not name.isprintable():
            raise ValueError(f"names {name[:80]!r}, which is no safetensors file of this folder")
    return names


def _count(file: Path) -> tuple[int, int] | None:
    """(number of weights, bytes) from a safetensors header; None where the file is damaged or cut short."""
    try:
        stat = file.stat()
    except OSError:
        return None
    return _count_header(file, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _count_header(file: Path, file_size: int, changed: int) -> tuple[int, int] | None:
    """The sidebar asks on every click: a header is read once as long as the file stays as it is."""
    try:
        header, start = read_header(file)
        parameters = size = 0
        for tensor in header.values():
            begin, end = tensor["data_offsets"]
            size += end - begin
            parameters += (end - begin) // _BYTES.get(tensor["dtype"], 1)
        return (parameters, size) if file_size >= start + size else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return None


def check_tokenizer(folder: Path) -> None:
    """Raises ModelRefused for a tokenizer that says it is code of its own: transformers would take another class in its
    place, and with it perhaps other tokens."""
    config = json_file(folder / "tokenizer_config.json") or {}
    code = config.get("auto_map")
    if code and (not isinstance(code, dict) or "AutoTokenizer" in code):
        raise ModelRefused(
            "The model's tokenizer is code of its own (auto_map in tokenizer_config.json).",
            "Code from model repositories is never run; only tokenizers that transformers itself has are supported.",
        )


def _snapshot(name: str, revision: str | None) -> Path | None:
    """The cache's folder of a hub id (its `main` or `revision`), or None."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json", revision=revision)
    except (HFValidationError, ValueError, OSError):
        return None
    return Path(config).parent if isinstance(config, str) else None


def _cached_repositories() -> list[str]:
    """Ids of the models in the Hugging Face cache, complete or not, in alphabetical order."""
    from huggingface_hub.constants import HF_HUB_CACHE

    try:
        folders = [p.name for p in Path(HF_HUB_CACHE).iterdir() if p.name.startswith("models--")]
    except OSError:
        return []
    return sorted(name.removeprefix("models--").replace("--", "/", 1) for name in folders)


def json_file(path: Path) -> dict[str, Any] | None:
    """The record in a JSON file; None where there is none that can be read."""
    try:
        if not path.is_file():  # reading a pipe would wait for who writes
            return None
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None
