"""What a change to the engine was worth: the base heat map at two commits, in turns in one run.

`python -m bench commits [BEFORE AFTER]` checks both out into temporary folders, runs each in a process of its own and
writes the ratio into bench/results/commits.json and the last section of engine.md. Both must have `bench.case` and
`core.trace.trace_prepared` as today.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .timing import machine

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"
BEFORE, AFTER = "5e155da^", "5e155da"
"""The largest avoidable item of the engine's first profile: a second call of every layer for the unpatched runs."""
MOST_DIFFERENCE = 1e-3  # logits, of the sum over all cells
HEADING = "## What removing the largest item was worth"


@dataclass
class Side:
    """One commit. `seconds`, `cpu_seconds`: one per round; `total`: sum of all cells' contrasts; `calls`: operations
    of one heat map."""

    commit: str
    title: str
    child: subprocess.Popen[str]
    total: float = 0.0
    calls: int = 0
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    def read(self) -> dict[str, Any]:
        """The child's next answer."""
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.commit} ended early")
        return json.loads(line)

    def ask(self) -> dict[str, Any]:
        """One timed heat map."""
        assert self.child.stdin is not None
        self.child.stdin.write("run\n")
        self.child.stdin.flush()
        return self.read()


def main(arguments: list[str] | None = None) -> int:
    """Measure both and write the results; 1 if their numbers differ."""
    parser = argparse.ArgumentParser(prog="python -m bench commits", description=__doc__.split("\n\n")[0])
    parser.add_argument("before", nargs="?", default=BEFORE)
    parser.add_argument("after", nargs="?", default=AFTER)
    parser.add_argument("--rounds", type=int, default=20, help="rounds through both (default 20)")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="torch threads (default 2)")
    given = parser.parse_args(arguments)
    with contextlib.ExitStack() as stack:
        sides = [stack.enter_context(_running(rev, given.threads)) for rev in (given.before, given.after)]
        for side in sides:
            first = side.read()
            side.total, side.calls = first["total"], first["calls"]
        if abs(sides[0].total - sides[1].total) > MOST_DIFFERENCE:
            print("The two commits give other numbers: nothing is measured.", file=sys.stderr)
            return 1
        load = [os.getloadavg()[0]]
        for number in range(given.rounds):
            for side in sides if number % 2 else reversed(sides):
                taken = side.ask()
                side.seconds.append(taken["seconds"])
                side.cpu_seconds.append(taken["cpu_seconds"])
        load.append(os.getloadavg()[0])
    data = {
        "measured": datetime.now(UTC).date().isoformat(), "machine": machine(given.threads), "rounds": given.rounds,
        "load_average": [round(value, 1) for value in load],
        "sides": [
            {"commit": s.commit, "title": s.title, "calls": s.calls, "seconds": [round(x, 5) for x in s.seconds],
             "cpu_seconds": [round(x, 5) for x in s.cpu_seconds]}
            for s in sides
        ],
    }  # fmt: skip
    (RESULTS / "commits.json").write_text(json.dumps(data, indent=1) + "\n")
    text = (RESULTS / "engine.md").read_text()
    (RESULTS / "engine.md").write_text(text.split(HEADING)[0].rstrip() + "\n\n" + section() + "\n")
    print(section())
    return 0


def section() -> str:
    """The last section of engine.md, from commits.json; empty where nothing was measured."""
    path = RESULTS / "commits.json"
    if not path.exists():
        return ""
    data = json.loads(path.read_text())
    before, after = data["sides"]
    ratios = {
        name: [b / a for b, a in zip(before[name], after[name], strict=True)] for name in ("seconds", "cpu_seconds")
    }
    rows = [
        f"| {side['commit']} {side['title']} | {side['calls']:,} | {statistics.median(side['seconds']):.3f} "
        f"| {statistics.median(side['cpu_seconds']):.3f} |"
        for side in (before, after)
    ]
    wall, cpu = (statistics.median(values) for values in ratios.values())
    low, high = statistics.quantiles(ratios["seconds"], n=4)[::2]
    return "\n".join([
        HEADING,
        "",
        "The base heat map at the commit that removed the largest avoidable item of the profile, and at the one before "
        f"it, in turns ({data['rounds']} rounds, the order changing; {data['machine']['threads']} torch threads; load "
        f"average {' to '.join(map(str, data['load_average']))}; measured {data['measured']}): `python -m bench "
        "commits`.",
        "",
        "| commit | tensor operations | seconds | processor seconds |",
        "| --- | ---: | ---: | ---: |",
        *rows,
        "",
        f"Before ÷ after, median over the rounds: {wall:.2f} in wall time (middle half of the rounds {low:.2f} to "
        f"{high:.2f}), {cpu:.2f} in processor time.",
    ])  # fmt: skip


@contextlib.contextmanager
def _running(rev: str, threads: int) -> Iterator[Side]:
    """A process that has the commit's code and waits to be asked."""
    commit, title = _git("log", "-1", "--format=%h%n%s", rev).splitlines()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        _git("worktree", "add", "--detach", str(tree), commit)
        try:
            child = subprocess.Popen(
                [sys.executable, "-P", str(Path(__file__).with_name("commit_child.py")), str(tree), str(threads)],
                cwd=tree, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
            assert child.stdin is not None
            try:
                yield Side(commit, title, child)
            finally:
                child.stdin.close()
                child.wait()
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, text=True, capture_output=True).stdout.strip()
