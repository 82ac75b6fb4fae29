"""One method in a process of its own, for a library that cannot share an environment with the others.

`Worker` is the parent's end, `serve` the child's: a line "run" in, a JSON line {seconds, cpu_seconds, logits} out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class Worker:
    """Runs the method `key` of `bench.methods` in a child that sees `folder` before all other packages."""

    def __init__(self, key: str, folder: Path, *, draws: int, threads: int) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder.name} is not installed (see bench/requirements-{folder.name}.txt)")
        path = os.pathsep.join([str(folder), str(ROOT)])
        self._child = subprocess.Popen(
            [sys.executable, "-m", "bench.worker", key, str(draws), str(threads)],
            env={**os.environ, "PYTHONPATH": path}, cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.ready = self._read()

    def run(self) -> dict[str, Any]:
        """One timed heat map."""
        assert self._child.stdin is not None
        self._child.stdin.write("run\n")
        self._child.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the child."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()

    def _read(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError("the method's process ended early")
        reply = json.loads(line)
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply


def serve(key: str, draws: int, threads: int) -> None:
    """Prepare the method, then time it once for every line that comes in."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not get between the replies

    def reply(values: dict[str, Any]) -> None:
        out.write(json.dumps(values) + "\n")
        out.flush()

    try:
        from .case import build_case, build_model, build_tokenizer
        from .methods import ISOLATED
        from .timing import package_version, prepare_torch, timed

        prepare_torch(threads)
        method = ISOLATED[key]
        heat_map = method.prepare(build_case(build_model(), build_tokenizer(), draws=draws))
        reply({"version": package_version(method.package)})
        for _ in sys.stdin:
            taken = timed(heat_map)
            reply({"seconds": taken.seconds, "cpu_seconds": taken.cpu_seconds, "logits": taken.logits.tolist()})
    except Exception as error:  # noqa: BLE001 - whatever it is, it goes into the table
        reply({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
