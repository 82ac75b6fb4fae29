"""What to do when memory runs out in the middle of the work: halve what goes through a layer at a time, and go on.

Knows failures of allocation as torch, NumPy and Python report them; nothing of layers or rows. No torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Callable
from typing import TypeVar

from .errors import OutOfMemory

_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory", "alloc_failed")
T = TypeVar("T")
_M_ARENA_MAX = -8  # glibc's malloc.h


def ran_out(error: BaseException) -> bool:
    """Whether an exception says that memory could not be had: on a GPU, or in torch's or Python's CPU allocator."""
    if isinstance(error, OutOfMemory | MemoryError):
        return True
    if any(cls.__name__ == "OutOfMemoryError" for cls in type(error).__mro__):  # torch's, without importing torch
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)


def give_back(*, thorough: bool = True) -> None:
    """Return memory that nothing uses any more to the devices, so that a smaller attempt finds it. `thorough`: also
    what only old objects refer to, and to the system what the C library keeps for later (glibc's `malloc_trim`)."""
    gc.collect(2 if thorough else 1)
    if thorough:
        trim()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def trim() -> None:
    """Return to the system what the C library keeps for later."""
    with contextlib.suppress(OSError, AttributeError):  # another C library has no such function
        ctypes.CDLL(None).malloc_trim(0)


def few_heaps() -> None:
    """Let all threads share two heaps; to be called before there are any.

    glibc gives each a heap of its own, up to eight per core, and what is free in one is of no use to another: with a
    thread for every run of a page that adds up to a hundred MB and more. Does nothing with another C library.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


class Room:
    """How many tokens go through a layer at a time. Shared by the sweeps of one piece of work, so that what one of
    them learned holds for the next; `halvings` counts how often memory ran out."""

    def __init__(self, tokens: int) -> None:
        self.tokens = max(1, int(tokens))
        self.halvings = 0

    @classmethod
    def of(cls, tokens: int | Room) -> Room:
        """The room itself, or a new one of so many tokens."""
        return tokens if isinstance(tokens, Room) else cls(tokens)

    def within(self, work: Callable[[], T]) -> T:
        """What `work()` returns. It is called again with half the tokens for as long as memory runs out in it; it must
        read `tokens` anew in every call and find what it finished before. Raises `OutOfMemory` below one token: then
        it is not the tokens that take the memory, and `tokens` is what it was."""
        before = self.tokens
        while True:
            try:
                return work()
            except (MemoryError, RuntimeError) as error:
                if not ran_out(error):
                    raise
                if self.tokens == 1:
                    self.tokens = before
                    raise OutOfMemory("Not even a single row fits into the memory.") from error
            # here the exception is gone, and with it the tensors that its frames held
            self.tokens //= 2
            self.halvings += 1
            give_back(thorough=False)
