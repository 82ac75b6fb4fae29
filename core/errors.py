"""What a person did or hit, in words, with what to do next.

Everything that is meant to be read by a person derives from `ExpertScopeError`: the command line prints
it without a traceback, the pages show it as it is. Anything else is a defect of ours.
"""

from __future__ import annotations

MOST = 2000
"""Characters of each half of a message; what a person typed may be a book."""


class ExpertScopeError(Exception):
    """Base of all errors displayed to the user: `what` happened, and what to do `next`.

    `exit_code` is the command line's: 2 for wrong input, 1 for a failure. Beyond `MOST` characters the middle of each
    half is left out.
    """

    exit_code = 1

    def __init__(self, what: str, next: str = "") -> None:
        self.what = _shortened(what)
        self.next = _shortened(next)
        super().__init__(f"{self.what} {self.next}".strip())


def _shortened(text: str) -> str:
    return text if len(text) <= MOST else f"{text[: MOST // 2]} … {text[-MOST // 2 + 3 :]}"


class InputError(ExpertScopeError):
    """The input is wrong or incomplete; `field` names the part that is (as the CLI and the pages name it)."""

    exit_code = 2

    def __init__(self, what: str, next: str = "", *, field: str = "") -> None:
        self.field = field
        super().__init__(what, next)


class ModelError(ExpertScopeError):
    """The model cannot be had: not found, no network, not enough memory, damaged or missing files."""


class ModelRefused(ModelError):
    """The model was read but will not be traced: not a MoE, an unsupported block, a failed load-time check."""


class OutOfMemory(ExpertScopeError):
    """The memory of the machine or of the GPU does not suffice, also for the smallest pieces of the work."""

    def __init__(
        self,
        what: str = "There was not enough memory for this.",
        next: str = "What was finished before is kept. Close other programs, ask for fewer draws or positions, "
        "choose a smaller dtype or model, or device cpu in place of a GPU.",
    ) -> None:
        super().__init__(what, next)


class StoreError(ExpertScopeError):
    """The store cannot be opened, read or written."""


class StoreBusy(StoreError):
    """Another process has the store open just now."""


class Cancelled(ExpertScopeError):
    """The person (or a closing session) asked the work to stop. What was finished before is kept."""

    def __init__(self, what: str = "Cancelled.", next: str = "What was finished before is kept.") -> None:
        super().__init__(what, next)
