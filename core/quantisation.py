"""Which quantisations can be asked for, which stored ones can be read, and the others by name with what to do.

Measured with transformers 5.23, which keeps a layer's experts as fused 3-D weights (tests/test_quantisation.py):

- torchao int8 weight-only quantises fused experts when they are named (`FqnToConfig`; by itself only `nn.Linear`), runs
  on CPU and GPU with the `eager` experts, and is written and read back as safetensors. Works: quantisation `int8`.
- Fine-grained FP8 and MXFP4 checkpoints: their kernels need a GPU and code from the hub; transformers can expand them
  while reading. Works: they run in the dtype that was chosen, and take that dtype's memory.
- torchao int4 needs GPU kernels of another package. bitsandbytes 8 and 4 bit: only `nn.Linear` is converted, the
  experts stay as they were. Refused, like every other method.

Reads configurations as plain dictionaries: no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import InputError, ModelRefused

NONE, INT8 = "none", "int8"
QUANTISATIONS = (NONE, INT8)

EXPANDED = {"fp8": "FP8", "mxfp4": "MXFP4"}
"""Stored methods that are expanded to the chosen dtype while reading."""

INT8_BYTES = 1.1
"""Bytes per parameter of an int8 model: nearly all of them are experts."""

_LINEAR_ONLY = "it converts nn.Linear only, and the experts, which are most of the weights, stay as they were"
_ASKED = {
    "int4": "torchao's int4 needs the GPU kernels of another package (mslk)",
    "bnb8": f"bitsandbytes: {_LINEAR_ONLY}",
    "bnb4": f"bitsandbytes: {_LINEAR_ONLY}",
    "bitsandbytes": _LINEAR_ONLY,
    "fp8": "quantising to FP8 needs a GPU and kernels that are fetched as code from the hub; stored FP8 can be read",
    "mxfp4": "quantising to MXFP4 needs kernels that are fetched as code from the hub; stored MXFP4 can be read",
}
_STORED = {
    "bitsandbytes": f"bitsandbytes; {_LINEAR_ONLY}",
    "gptq": "GPTQ", "awq": "AWQ", "compressed-tensors": "compressed-tensors", "fbgemm_fp8": "FBGEMM FP8",
    "auto-round": "AutoRound", "hqq": "HQQ", "quanto": "Quanto", "aqlm": "AQLM", "eetq": "EETQ", "bitnet": "BitNet",
    "quark": "Quark", "gguf": "GGUF", "nvfp4": "NVFP4",
}  # fmt: skip


def check_asked(name: str) -> None:
    """Raise `InputError` for a quantisation that cannot be asked for, saying why where that is known."""
    if name in QUANTISATIONS:
        return
    why = f" {name} is not supported: {_ASKED[name]}." if isinstance(name, str) and name in _ASKED else ""
    raise InputError(
        f"quantisation is {name!r}.{why}", f"Choose one of: {', '.join(QUANTISATIONS)}.", field="quantisation"
    )


def stored(config: Mapping[str, Any]) -> str:
    """How a checkpoint with this configuration is quantised: `` (not at all), `int8`, `fp8`, `mxfp4`, or the name of a
    method that is refused."""
    found = config.get("quantization_config")
    if not found and isinstance(config.get("text_config"), Mapping):
        found = config["text_config"].get("quantization_config")
    if not isinstance(found, Mapping):
        return ""
    method = str(found.get("quant_method") or ("bitsandbytes" if _bits(found) else "unknown"))
    if method == "bitsandbytes" and _bits(found):
        return f"bitsandbytes {_bits(found)} bit"
    if method == "torchao":
        kinds = _torchao_kinds(found.get("quant_type"))
        return INT8 if kinds == {"Int8WeightOnlyConfig"} else f"torchao {', '.join(sorted(kinds)) or '?'}"
    return method


def readable(found: str) -> bool:
    """Whether a checkpoint that is stored so can be traced."""
    return not found or found == INT8 or found in EXPANDED


def described(found: str) -> str:
    """What becomes of weights that are stored so, in a few words; empty where they are not quantised."""
    if found in EXPANDED:
        return f"stored as {EXPANDED[found]}, expanded while loading"
    if not readable(found):
        return f"{found}, which cannot be traced"
    return found


def _bits(config: Mapping[str, Any]) -> int:
    return 8 if config.get("load_in_8bit") else 4 if config.get("load_in_4bit") else 0


def _torchao_kinds(value: Any) -> set[str]:
    """Names of the configurations in a stored torchao quantisation, those that only assign others left out."""
    if isinstance(value, Mapping):
        inner = {kind for item in value.values() for kind in _torchao_kinds(item)}
        name = value.get("_type")
        quantises = isinstance(name, str) and name.endswith("Config") and "FqnToConfig" not in name
        return {name} if quantises else inner
    if isinstance(value, list | tuple):
        return {kind for item in value for kind in _torchao_kinds(item)}
    return set()


def check_stored(config: Mapping[str, Any], asked: str = NONE) -> str:
    """`stored(config)` where such a checkpoint can be read, and quantised as `asked`. Raises `ModelRefused` by name."""
    found = stored(config)
    if not readable(found):
        method = found.split()[0]
        what = found if method in ("torchao", "bitsandbytes") and method != found else _STORED.get(method, found)
        raise ModelRefused(
            f"The checkpoint is quantised with {what}: this cannot be traced.",
            "Choose the unquantised checkpoint of the model; quantisation int8 makes that smaller while it is loaded.",
        )
    if found and asked != NONE:
        raise ModelRefused(
            f"The checkpoint is quantised already ({found}), so it cannot be quantised to {asked}.",
            "Choose quantisation none.",
        )
    return found


def bytes_in_memory(found: str, own: float) -> float:
    """What a parameter takes in memory when a checkpoint is read as it is: `own` are its bytes on the disk. Those of an
    expanded method run in bfloat16 at least."""
    return max(own, 2.0) if found in EXPANDED else own
