"""Fetching a model from the Hugging Face hub: how much has come, and stopping when asked. Errors in words.

Knows the hub's library and its progress bars; nothing of what the files are.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .errors import Cancelled, ExpertScopeError, InputError, ModelError
from .progress import Progress

PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
"""The files that are fetched: nothing that could hold code."""
_LOOK = 0.2  # seconds between two looks how much has come, and whether to stop


def download(name: str, revision: str | None, progress: Progress) -> Path:
    """The folder with the files of the hub's model `name`, fetched as far as they are not here.

    The library stops at its next piece when `progress` says so; what has come is kept, and is there the next time.
    Raises `InputError`, `ModelError`, or what `progress.check` raises.
    """
    come, stop = _Come(), threading.Event()
    outcome: dict[str, Any] = {}

    def work() -> None:
        try:
            outcome["folder"] = _snapshot(name, revision, _bars(come, stop))
        except BaseException as error:  # noqa: BLE001 - raised below, in the thread that asked
            outcome["error"] = error

    thread = threading.Thread(target=work, name="expertscope-download", daemon=True)
    progress.update(0, 1, "looking for the model's files")
    thread.start()
    try:
        while thread.is_alive():
            progress.check()
            thread.join(_LOOK)
            if come.bytes:
                progress.update(0, 1, f"downloading the model, {come.bytes / 1e9:.2f} GB so far")
    finally:
        stop.set()  # it may be in the middle of a file: nobody waits for that
    with _in_words(name, revision):
        if "error" in outcome:
            raise outcome["error"]
    return Path(outcome["folder"])


class _Come:
    """How many bytes have come: of the two bars that the library counts bytes with (from the network, and written to
    the disk) the one that is further."""

    def __init__(self) -> None:
        self.bars: list[Any] = []

    @property
    def bytes(self) -> float:
        return max((bar.n for bar in self.bars), default=0)


def _bars(come: _Come, stop: threading.Event) -> type:
    """A class that stands in for tqdm's."""

    class Bar:
        format_dict: dict[str, Any] = {}

        def __init__(self, *_: Any, total: float | None = None, initial: float = 0, unit: str = "", **__: Any) -> None:
            self.total, self.n = total or 0, initial or 0
            if unit == "B":
                come.bars.append(self)

        def update(self, n: float | None = 1) -> None:
            if stop.is_set():
                raise Cancelled()
            self.n += n or 0

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def __getattr__(self, name: str) -> Callable[..., None]:  # the rest of tqdm's interface: nothing to show
            return lambda *args, **options: None

    return Bar


def _snapshot(name: str, revision: str | None, bars: type) -> str:
    from huggingface_hub import snapshot_download

    return snapshot_download(name, revision=revision, allow_patterns=PATTERNS, tqdm_class=bars)


@contextlib.contextmanager
def _in_words(name: str, revision: str | None) -> Iterator[None]:
    """The library's errors as a person can use them."""
    from huggingface_hub import errors as hub

    try:
        yield
    except ExpertScopeError:
        raise
    except hub.HFValidationError:
        raise InputError(
            f"{name!r} is neither a folder on this machine nor a hub id.",
            "Write demo, a folder, or an id such as Qwen/Qwen3-30B-A3B-Base.", field="model",
        ) from None  # fmt: skip
    except hub.GatedRepoError:
        raise ModelError(
            f"The model {name} is gated.", "Accept its terms on the hub and log in with `hf auth login`."
        ) from None
    except hub.RevisionNotFoundError:
        raise ModelError(
            f"The model {name} has no revision {revision!r}.", "Give a branch, tag or commit that exists."
        ) from None
    except hub.RepositoryNotFoundError:
        raise ModelError(
            f"The hub has no model {name} (or it is private).",
            "Check the spelling, or log in with `hf auth login`.",
        ) from None
    except Exception as error:  # noqa: BLE001 - no network has many names, by HTTP library and version
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise ModelError(
                f"There is no room on the disk for the model {name}.", "Make room where HF_HOME is, and try again."
            ) from None
        raise ModelError(
            f"The model {name} is not on this machine and the hub cannot be reached ({type(error).__name__}).",
            "Check the network, or copy the model here and give its folder.",
        ) from None
