"""Loading a model: the demo, a hub id or a local folder, checked before and after its weights are read.

Safetensors only, no code from model repositories, memory estimated before anything large is read. Errors say what
happened and what to do. Knows files and transformers; what makes a model traceable is in `moe` and `checks`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from . import placement
from .catalog import DEMO_FOLDER, FOLDER_STARTS, MAX_LAYERS, check_tokenizer, shards, weight_files
from .checks import ensure_checked
from .conversion import StoredWeights
from .disk import load_from_disk
from .download import download
from .errors import ExpertScopeError, InputError, ModelError, ModelRefused
from .formats import size
from .identity import DEMO, fingerprint, locate, remember_identity
from .moe import MoeModel, find_blocks
from .placement import Placement, choose
from .progress import SILENT, Progress
from .quantisation import NONE
from .quantise import Plan
from .requests import ModelSpec
from .room import ran_out

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


def load_model(
    name: str = DEMO,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    quantisation: str = NONE,
    placement: str = "auto",
    progress: Progress = SILENT,
    store: Any = None,
) -> MoeModel:
    """Load, check and return a model that can be traced.

    `name`: `demo`, a hub id or a local folder; `revision`: a hub branch, tag or commit. `dtype` auto: fp32 on the CPU
    where it fits, else the checkpoint's own; `device` auto: a GPU if there is one. `quantisation`: none, or int8
    (see `core.quantisation`). `placement` auto: in memory where the weights fit, else the layers stay on the disk and
    are read once per pass (`memory`, `disk`: only there). With a `store` the load-time checks run once per model and
    library versions. Raises `ModelError` or `ModelRefused`, in words.
    """
    spec = ModelSpec(name, revision, dtype, device, quantisation, placement)
    folder = fetch(spec, progress)
    config = read_config(folder)
    skeleton = _skeleton(config)
    plan = Plan(spec.quantisation, config, skeleton)
    stored = sum(file.stat().st_size for file in weight_files(folder)[0])
    place = choose(spec, config, skeleton, plan, stored=stored)
    tokenizer = load_tokenizer(folder)
    with _report_loading(progress):
        model, weights = _read_weights(folder, config, skeleton, place, plan)
    del skeleton
    moe = MoeModel(model, tokenizer, spec=spec, fingerprint=fingerprint(folder))
    moe.quantisation = plan.text(moe)
    if weights is not None:
        moe.weights = weights
        moe.remark = _remark(place, weights)
    try:
        ensure_checked(moe, store, progress)
    except ModelRefused as error:
        if plan.asked == NONE:
            raise
        raise ModelRefused(f"With {plan.asked} weights: {error.what}", "Choose quantisation none.") from error
    if store is not None:
        remember_identity(store, spec, moe.identity, label=moe.label)
    return moe


def wanted(spec: ModelSpec, progress: Progress = SILENT) -> tuple[str, int]:
    """(device, bytes free on it) that loading `spec` wants, from its files' configuration: see `placement.wanted`.

    A hub model is downloaded if it is not here. Raises as `load_model` does.
    """
    folder = fetch(spec, progress)
    config = read_config(folder)
    skeleton = _skeleton(config)
    stored = sum(file.stat().st_size for file in weight_files(folder)[0])
    device, needed = placement.wanted(spec, config, skeleton, Plan(spec.quantisation, config, skeleton), stored=stored)
    return str(device), needed


def _remark(place: Placement, weights: StoredWeights) -> str:
    """What a person should know of weights that stay on the disk."""
    why = "as was asked for"
    if place.needed > place.free:
        dtype = str(place.dtype).removeprefix("torch.")
        why = f"as the model needs about {size(place.needed)} in {dtype} and {size(place.free)} are free"
    return (
        f"The model's layers stay on the disk, {why}: they are read from there once per trace, "
        f"about {size(weights.per_pass)} each time."
    )


# ---- files ---------------------------------------------------------------------------------------------------------


def fetch(spec: ModelSpec, progress: Progress = SILENT) -> Path:
    """The folder with the model's files; a hub model is downloaded if it is not here. Raises `ModelError`."""
    if spec.name == DEMO:
        return _complete(DEMO_FOLDER, "The demo model")
    folder = locate(spec)
    if folder is not None and Path(spec.name).expanduser() == folder:
        return _complete(folder, f"The folder {folder}")
    if spec.name.startswith(FOLDER_STARTS):
        raise InputError(
            f"There is no folder {spec.name}.", "Check the path, or give a hub id such as org/name.", field="model"
        )
    return _complete(download(spec.name, spec.revision, progress), f"The model {spec.name}")


def _complete(folder: Path, what: str) -> Path:
    """Refuse a folder without configuration, safetensors weights or one of its shards."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"{what} has no config.json.", "Give a folder in the layout of the Hugging Face hub.")
    weights = [path for path in folder.glob("*.safetensors") if path.is_file()]
    if not weights:
        other = [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt")]
        found = f"only {other[0]}, a format that can run code" if other else "none"
        raise ModelError(
            f"{what} has no safetensors weights ({found}).", "Only safetensors are read; convert the weights first."
        )
    try:
        named = shards(folder) or []
    except ValueError as error:
        raise ModelError(f"{what}: model.safetensors.index.json {error}.", "Copy the file again.") from None
    missing = [name for name in named if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{what} lacks {len(missing)} of {len(named)} weight files ({missing[0]}, ...).",
            "Finish the download or the copy.",
        )
    return folder


def read_config(folder: Path) -> Any:
    """The model's configuration. No code from the repository is ever run."""
    hint = "Code from model repositories is never run; only families that transformers itself has are supported."
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    except Exception as error:  # noqa: BLE001 - each family's configuration checks itself, and raises anything
        raise ModelRefused(f"The model's configuration cannot be read: {_reason(error)}", hint) from None
    if isinstance(layers, int) and layers > MAX_LAYERS:
        raise ModelRefused(
            f"The model's configuration asks for {layers:,} layers; {MAX_LAYERS:,} are the most.", "Copy it again."
        )
    if getattr(config, "transformers_weights", None) is not None:
        raise ModelRefused(
            "The model's configuration names a weight file of its own (transformers_weights).",
            "Only model.safetensors, or the files that model.safetensors.index.json names, are read.",
        )
    return config


def _reason(error: Exception) -> str:
    """What a library says was wrong, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def load_tokenizer(folder: Path) -> Any:
    """The model's tokenizer; it must report character offsets (checked when a fact is tokenised).

    Without any of its files transformers would make an empty one of the family's class, so they are looked for here.
    """
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelError(f"The folder {folder} has no tokenizer.", "Copy tokenizer.json to it.")
    check_tokenizer(folder)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # noqa: BLE001 - tokenizer classes raise anything
        raise ModelError(
            f"The model's tokenizer cannot be read ({type(error).__name__}).",
            "The folder needs tokenizer.json, or the files its tokenizer class is built from.",
        ) from None


# ---- before the weights --------------------------------------------------------------------------------------------


def _skeleton(config: Any) -> torch.nn.Module:
    """The model without memory for its weights; refuses what is not a MoE language model."""
    try:
        with torch.device("meta"), transformers_logging_silenced():
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 - numbers that make no model surface as many types
        raise ModelRefused(
            f"{type(config).__name__} is not a causal language model that transformers {transformers.__version__} "
            f"can build ({_reason(error)}).",
            "Choose a causal MoE language model.",
        ) from None
    find_blocks(model)
    return model


# ---- the weights ---------------------------------------------------------------------------------------------------


def _read_weights(
    folder: Path, config: Any, skeleton: torch.nn.Module, place: Placement, plan: Plan
) -> tuple[torch.nn.Module, StoredWeights | None]:
    """The model, and where its layers' weights are if they stay on the disk."""
    weights = None
    try:
        if place.on_disk:
            model, info, weights = load_from_disk(folder, config, skeleton, place)
        else:
            model, info = AutoModelForCausalLM.from_pretrained(
                folder, config=config, dtype=place.dtype, device_map=place.device_map, max_memory=place.max_memory,
                use_safetensors=True, trust_remote_code=False, local_files_only=True, output_loading_info=True,
                **plan.options,
            )  # fmt: skip
            plan.finish(model, place.dtype)
    except ExpertScopeError:
        raise
    except Exception as error:  # noqa: BLE001 - damaged files surface as many types
        if ran_out(error):
            where = "GPU" if type(error).__name__ == "OutOfMemoryError" else "machine"
            raise ModelError(
                f"The {where} ran out of memory while loading.",
                "Choose a smaller dtype, quantisation int8, a smaller model, or device cpu in place of a GPU.",
            ) from None
        raise ModelError(
            f"The weights cannot be read ({type(error).__name__}: {_reason(error)}).",
            "Copy or download the model again.",
        ) from None
    missing = sorted(info.get("missing_keys") or ())
    mismatched = sorted(str(key) for key in info.get("mismatched_keys") or ())
    if missing or mismatched:
        raise ModelError(
            f"The files lack {len(missing)} of the model's weights and {len(mismatched)} have another shape "
            f"({(missing + mismatched)[0]}, ...): the rest would be random.",
            "Copy or download the model again.",
        )
    return model, weights


class _LoadingBar:
    """Stands in for tqdm while transformers reads weights: passes the counts on as progress."""

    def __init__(self, progress: Progress, args: tuple, kwargs: dict[str, Any]) -> None:
        self._progress = progress
        self._items = args[0] if args else kwargs.get("iterable")
        self._total = kwargs.get("total") or (len(self._items) if hasattr(self._items, "__len__") else 0)
        self._done = 0

    def update(self, n: float = 1) -> None:
        self._done += n
        self._progress.check()
        self._progress.update(self._done, max(self._total, self._done, 1), "loading the model")

    def __iter__(self) -> Iterator[Any]:
        for item in self._items or ():
            yield item
            self.update()

    def __enter__(self) -> _LoadingBar:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:  # the rest of tqdm's interface: nothing to show
        return lambda *args, **kwargs: None


@contextlib.contextmanager
def _report_loading(progress: Progress) -> Iterator[None]:
    """Pass transformers' loading bar on to `progress` (it is a setting of the whole process)."""
    previous = transformers_logging.set_tqdm_hook(lambda factory, args, kwargs: _LoadingBar(progress, args, kwargs))
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(previous)


@contextlib.contextmanager
def transformers_logging_silenced() -> Iterator[None]:
    """No warnings from transformers while something is only tried out."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
