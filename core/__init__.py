"""ExpertScope's engine: expert-aware causal tracing in MoE language models. No browser, no Streamlit.

    model = core.load_model("demo")
    result = core.trace(model, prompt="The capital of {} is", subject="France", true="Paris", foil="Rome")
    result.frame

`load_model` and `trace` are imported on first use: importing `core` loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import types
from typing import Any

from .requests import Fact, ModelSpec, TraceRequest

# before torch is imported: threads that spin while they wait make the same work many times slower on a busy machine
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

# transformers imports torchao, which reports every GPU kernel that it cannot load, needed or not
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)

__all__ = ["Fact", "ModelSpec", "TraceRequest", "load_model", "trace"]


class _CallableModule(types.ModuleType):
    """`core.trace` is a module, and calling it is calling `core.trace.trace`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.trace(*args, **kwargs)


class _Package(types.ModuleType):
    """The package. Whoever imports the submodule `trace` first, it is callable as soon as it is bound here."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "trace" and type(value) is types.ModuleType:
            value.__class__ = _CallableModule
        super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name == "load_model":
        return importlib.import_module(".models", __name__).load_model
    if name == "trace":
        return importlib.import_module(".trace", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


sys.modules[__name__].__class__ = _Package
