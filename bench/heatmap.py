"""The layer × token restoration heat map of one random MoE model by every method: same numbers, timed in turns.

A round goes through all methods once; before each of them our sweep runs, so that both meet the same load. A method's
ratio in a round is its time over the median time of our sweep in that round; the table shows the median over rounds.
Run it with `make bench`; the table goes to bench/results/.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .case import Case, build_case, build_model, build_tokenizer
from .methods import ONE_DRAW, TEN_DRAWS
from .methods.method import Method
from .report import write_results
from .timing import Taken, machine, package_version, prepare_torch, timed
from .worker import Worker

MOST_DIFFERENCE = 1e-4  # logits
LEAST_MEDIAN_RESCUE = 0.05  # logits: a model on which patches do nothing would prove nothing
DRAWS = (1, 10)


@dataclass
class Entry:
    """One row of the table: a method at a number of draws. `rounds`: one time per round; `ours`: the median time of our
    sweep in the same round. `error`: why it could not run."""

    method: Method
    draws: int
    version: str = ""
    run: Callable[[], Taken] | None = None
    rounds: list[Taken] = field(default_factory=list)
    ours: list[tuple[float, float]] = field(default_factory=list)
    difference: float = float("nan")
    error: str = ""

    @property
    def ratios(self) -> list[float]:
        """Wall time over our sweep's, per round."""
        return [taken.seconds / ours for taken, (ours, _) in zip(self.rounds, self.ours, strict=True)]

    @property
    def cpu_ratios(self) -> list[float]:
        """The same in processor time, which other load on the machine hardly moves."""
        return [taken.cpu_seconds / ours for taken, (_, ours) in zip(self.rounds, self.ours, strict=True)]


def main(arguments: list[str] | None = None) -> int:
    """Measure and write the table; 1 if a method's numbers differ."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds through all methods (default 5)")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="torch threads (default 2)")
    parser.add_argument("--only", default="", help="keys of methods, comma-separated; nothing is written then")
    given = parser.parse_args(arguments)
    prepare_torch(given.threads)
    only = set(filter(None, given.only.split(",")))

    model, tokenizer = build_model(), build_tokenizer()
    groups = []
    for draws, methods in zip(DRAWS, (ONE_DRAW, TEN_DRAWS), strict=True):
        case = build_case(model, tokenizer, draws=draws)
        chosen = [m for m in methods if not only or m.key in only or m is methods[0]]
        groups.append([_prepared(method, case, given.threads) for method in chosen])
    if not all(_agree(group) for group in groups):
        return 1
    load = [os.getloadavg()[0]]
    for number in range(given.rounds):
        print(f"round {number + 1} of {given.rounds}", file=sys.stderr, flush=True)
        for group in groups:
            _round(group)
    load.append(os.getloadavg()[0])
    for group in groups:
        for entry in group:
            if entry.rounds:
                print(f"{entry.draws:3d} draws  {statistics.median(entry.ratios):7.2f} x  {entry.method.name}")
    if not only:
        folder = Path(__file__).parent / "results"
        print(write_results(folder, [e for group in groups for e in group], machine(given.threads), given.rounds, load))
    return 0


def _prepared(method: Method, case: Case, threads: int) -> Entry:
    """The method, loaded and ready to be timed, or the reason why not."""
    entry = Entry(method, case.draws)
    print(f"preparing {method.name} ({case.draws} draws)", file=sys.stderr, flush=True)
    try:
        if method.folder:
            worker = Worker(method.key, Path(sys.prefix) / method.folder, draws=case.draws, threads=threads)
            entry.version = worker.ready["version"]
            entry.run = lambda: _received(worker)
        else:
            entry.version = package_version(method.package) if method.role != "ours" else ""
            heat_map = method.prepare(case)
            entry.run = lambda: timed(heat_map)
    except Exception as error:  # noqa: BLE001 - a library that cannot run here is reported, not hidden
        entry.error = f"{type(error).__name__}: {error}"
    return entry


def _received(worker: Worker) -> Taken:
    reply = worker.run()
    return Taken(reply["seconds"], reply["cpu_seconds"], torch.tensor(reply["logits"]))


def _agree(group: list[Entry]) -> bool:
    """Run everything once, untimed: do all give our sweep's numbers?"""
    agree = True
    ours = group[0].run
    assert ours is not None, group[0].error
    reference = ours().logits
    contrast = reference[..., 0] - reference[..., 1]
    rescue = contrast - contrast[:, -1:, :1]  # in the last layer, left of the last position: the corrupt run
    median = rescue.abs().median().item()
    print(f"median |rescue| of a cell: {median:.3f} logits", file=sys.stderr)
    if median < LEAST_MEDIAN_RESCUE:
        print(f"patches hardly move this model's logits (at least {LEAST_MEDIAN_RESCUE} wanted)", file=sys.stderr)
        agree = False
    for entry in group:
        if entry.run is None:
            continue
        try:
            logits = entry.run().logits
        except Exception as error:  # noqa: BLE001 - as in `_prepared`
            entry.run, entry.error = None, f"{type(error).__name__}: {error}"
            continue
        entry.difference = (logits - reference).abs().max().item()
        print(f"{entry.method.name}: largest difference {entry.difference:.1e} logits", file=sys.stderr, flush=True)
        if not entry.difference <= MOST_DIFFERENCE:
            print(f"{entry.method.name} gives other numbers: nothing is measured.", file=sys.stderr)
            agree = False
    return agree


def _round(group: list[Entry]) -> None:
    ours, others = group[0], [entry for entry in group[1:] if entry.run is not None]
    assert ours.run is not None
    mine: list[Taken] = []
    taken: list[Taken] = []
    for entry in others:
        mine.append(ours.run())
        taken.append(entry.run())  # type: ignore[misc]
    mine.append(ours.run())
    wall = statistics.median(one.seconds for one in mine)
    cpu = statistics.median(one.cpu_seconds for one in mine)
    for entry, one in zip([ours, *others], [Taken(wall, cpu, mine[0].logits), *taken], strict=True):
        entry.rounds.append(one)
        entry.ours.append((wall, cpu))
