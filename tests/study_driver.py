"""Runs a study twice, the second time in processes that are killed: WHOLE KILLED KILLS SEED BATCH_TOKENS.

WHOLE and KILLED are the files of two stores. The model is loaded once; every attempt is a forked process of its own,
killed (SIGKILL) at a random moment, until so many were killed; the last one is let through. Prints after each how many
batches are there.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import torch  # noqa: E402

import core.facts  # noqa: E402
from cache.studies import Studies  # noqa: E402
from core.models import load_model  # noqa: E402
from core.progress import Progress  # noqa: E402
from core.study.data import create  # noqa: E402
from core.study.run import run  # noqa: E402
from core.study.settings import preset  # noqa: E402


def main(whole: str, killed: str, kills: int, seed: int, batch_tokens: int) -> None:
    """See the module."""
    torch.set_num_threads(1)  # a forked process must not inherit a pool of threads
    model = load_model("demo", dtype="float32", device="cpu")
    rng = random.Random(seed)
    for store, how_often in ((whole, 0), (killed, kills)):
        assert _wait(_forked(lambda store=store: _create(store, batch_tokens))) == 0
        for attempt in range(how_often + 1):
            read, write = os.pipe()
            child = _forked(lambda store=store, w=write: run(Studies(store), model, "killed", progress=Beat(w)))
            os.close(write)
            if attempt < how_often:
                _hear(read, rng.randint(1, 60))
                time.sleep(rng.uniform(0.0, 0.05))
                os.kill(child, signal.SIGKILL)
            else:
                _hear(read, 10**9)
            code = _wait(child)
            os.close(read)
            print(Path(store).stem, _forked_count(store), flush=True)
            if code == 0:
                break
            assert code == -signal.SIGKILL, code


class Beat(Progress):
    """A byte at every sign of life, so that the moment of a kill does not depend on how busy the machine is."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def update(self, done: float, total: float, label: str = "") -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(self._pipe, b".")


def _hear(pipe: int, beats: int) -> None:
    """Wait for so many beats, or the end."""
    while beats > 0 and (got := os.read(pipe, beats)):
        beats -= len(got)


def _create(store: str, batch_tokens: int) -> None:
    create(Studies(store), "killed", preset("demo", n=40), core.facts.bundled(), batch_tokens=batch_tokens)


def _forked(work) -> int:  # noqa: ANN001
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException as error:  # noqa: BLE001
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def _wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _forked_count(store: str) -> int:
    """Counted in a process of its own: this one never opens the store."""
    read, write = os.pipe()
    child = _forked(lambda: os.write(write, str(len(Studies(store).part_names("killed"))).encode()))
    _wait(child)
    return int(os.read(read, 20))


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:6]))
