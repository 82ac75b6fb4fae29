"""What the engine's own work costs: heat maps of growing size beside the arithmetic lower bound, facts in batches, the
layer sweep over many facts, first and second questions, and where the time goes.

`python -m bench engine` (`make bench-engine`) writes bench/results/engine.md. Every pair that is compared is measured
in turns in one run; ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from cache.store import Store
from core.moe import MoeModel
from core.prompts import PreparedFact
from core.requests import Fact
from core.trace import trace_prepared

from .bound import measured_rate, multiplications
from .case import EXPERTS, LAYERS, NOISE_LEVEL, OBJECTS, SUBJECT, TOKENS, VOCABULARY, build_model
from .engine_report import write_engine_results
from .profile import profile
from .timing import machine, prepare_torch, timed

LAST = TOKENS - 1


@dataclass
class Measured:
    """One thing that was measured: seconds per round, and what else belongs into its line of the table."""

    name: str
    seconds: list[float] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def prompts(count: int, n_tokens: int = TOKENS) -> list[PreparedFact]:
    """Facts of random tokens, each with a case_id of its own."""
    generator = torch.Generator().manual_seed(2)
    out = []
    for case_id in range(count):
        ids = tuple(torch.randint(3, VOCABULARY, (n_tokens,), generator=generator).tolist())
        pieces = tuple(f"t{i}" for i in ids)
        fact = Fact(" ".join(pieces), pieces[SUBJECT[0]], f"t{OBJECTS[0]}", f"t{OBJECTS[1]}", case_id=case_id)
        out.append(
            PreparedFact(
                fact=fact,
                input_ids=ids,
                tokens=pieces,
                spans=((0, 0),) * n_tokens,
                subject_positions=SUBJECT,
                true_id=OBJECTS[0],
                foil_id=OBJECTS[1],
                true_token=fact.true,
                foil_token=str(fact.foil),
            )  # fmt: skip
        )
    return out


def in_turns(rounds: int, jobs: dict[str, Callable[[], object]]) -> dict[str, Measured]:
    """Each job once unmeasured, then all of them in turns."""
    out = {name: Measured(name) for name in jobs}
    for number in range(rounds + 1):
        for name, job in jobs.items():
            seconds = timed(job).seconds
            if number:
                out[name].seconds.append(seconds)
    return out


# ---- (a) growing heat maps ---------------------------------------------------------------------------------------


def scaling(rounds: int) -> tuple[list[Measured], float]:
    """Heat maps that grow in one direction at a time, and the measured rate of multiplication (per second)."""
    models: dict[tuple[int, int], MoeModel] = {}

    def model_of(layers: int = LAYERS, experts: int = EXPERTS) -> MoeModel:
        if (layers, experts) not in models:
            models[layers, experts] = MoeModel(build_model(layers=layers, experts=experts))
            assert models[layers, experts].structure.packed
        return models[layers, experts]

    settings: list[tuple[str, dict[str, int]]] = [("the base", {})]
    settings += [(f"{n} layers", {"layers": n}) for n in (6, 24)]
    settings += [(f"{n} experts", {"experts": n}) for n in (8, 128)]
    settings += [(f"{n} tokens", {"tokens": n}) for n in (28, 56)]
    settings += [(f"{n} draws", {"draws": n}) for n in (3, 10)]
    settings += [(f"{n} facts", {"facts": n}) for n in (4, 16)]
    rate = measured_rate(model_of())
    out = []
    for name, given in settings:
        print(f"heat map: {name}", file=sys.stderr, flush=True)
        model = model_of(given.get("layers", LAYERS), given.get("experts", EXPERTS))
        n_tokens, draws, facts = given.get("tokens", TOKENS), given.get("draws", 1), given.get("facts", 1)
        asked = prompts(facts, n_tokens)

        def heat_maps(model=model, asked=asked, draws=draws) -> None:  # noqa: ANN001
            trace_prepared(model, asked, noise=NOISE_LEVEL, draws=draws, experts="none")

        positions = range(SUBJECT[0], n_tokens)
        work = multiplications(model, n_tokens=n_tokens, positions=positions, draws=draws, facts=facts)
        measured = Measured(name, facts={
            "rows": facts * draws * ((model.n_layers - 1) * len(positions) + 1), "bound": work / rate,
        })  # fmt: skip
        timed(heat_maps)
        for _ in range(rounds):
            rate = max(rate, measured_rate(model, rounds=1))
            measured.seconds.append(timed(heat_maps).seconds)
        out.append(measured)
    return out, rate


# ---- (b), (c) many facts -------------------------------------------------------------------------------------------


def batches(rounds: int, count: int = 16) -> list[Measured]:
    """Whole traces (heat map and experts at the last position) of many facts: together, and one at a time."""
    model, asked = MoeModel(build_model()), prompts(count)

    def together() -> None:
        trace_prepared(model, asked, noise=NOISE_LEVEL)

    def one_by_one() -> None:
        for fact in asked:
            trace_prepared(model, [fact], noise=NOISE_LEVEL)

    found = in_turns(rounds, {f"{count} facts in a batch": together, "the same one at a time": one_by_one})
    for measured in found.values():
        measured.facts["per second"] = count / measured.median
    return list(found.values())


def last_position(rounds: int, count: int = 256) -> Measured:
    """The layer sweep of the study: every layer's patch at the last position, all facts in one pass."""
    from core.base import Run
    from core.budget import Budget
    from core.corruption import draw_noise
    from core.patches import layer_patch
    from core.sweep import listed, sweep

    model, asked = MoeModel(build_model()), prompts(count)
    sigma = NOISE_LEVEL * model.embedding_std
    runs: list[Run] = []
    patches = []
    for fact in asked:
        noise = draw_noise(
            seed=0, case_id=fact.fact.case_id, draws=1, n_subject=len(SUBJECT), hidden=model.hidden, sigma=sigma
        )
        clean = len(runs)
        runs += [Run(fact.input_ids), Run(fact.input_ids, noise[0], SUBJECT)]
        patches += [layer_patch(clean=clean, corrupt=clean + 1, layer=i, pos=LAST) for i in range(model.n_layers)]
    chunk = Budget.measure(model).chunk_tokens

    def layer_sweep() -> None:
        sweep(
            model, model.structure, runs, listed(patches), objects=[OBJECTS] * len(runs), chunk_tokens=chunk, keep=False
        )

    (measured,) = in_turns(rounds, {f"{count} facts × {model.n_layers} layers": layer_sweep}).values()
    measured.facts = {"rows": len(patches), "rows per second": len(patches) / measured.median}
    return measured


# ---- (d) first and second question -----------------------------------------------------------------------------------


def questions(rounds: int) -> list[Measured]:
    """Questions about one fact with a store: the first, the same again, and further ones that reuse what is there."""
    model = MoeModel(build_model(), fingerprint="bench")
    asked = prompts(rounds + 1)
    found = {name: Measured(name) for name in (
        "first question", "the same again", "experts of another position", "two more draws",
        "experts of another position, nothing stored", "three draws, nothing stored",
    )}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder) / "store.duckdb") as store:
        for number, fact in enumerate(asked):
            steps = [
                ("first question", store, {}),
                ("the same again", store, {}),
                ("experts of another position", store, {"experts": (SUBJECT[-1],)}),
                ("two more draws", store, {"draws": 3}),
                ("experts of another position, nothing stored", None, {"experts": (SUBJECT[-1],)}),
                ("three draws, nothing stored", None, {"draws": 3}),
            ]
            for name, kept, settings in steps:
                taken = timed(
                    lambda fact=fact, kept=kept, settings=settings: trace_prepared(
                        model, [fact], noise=NOISE_LEVEL, store=kept, **settings
                    )
                )
                if number:
                    found[name].seconds.append(taken.seconds)
    return list(found.values())


def main(arguments: list[str] | None = None) -> int:
    """Measure everything and write the results."""
    parser = argparse.ArgumentParser(prog="python -m bench engine", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds of everything (default 5)")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="torch threads (default 2)")
    given = parser.parse_args(arguments)
    prepare_torch(given.threads)
    load = [os.getloadavg()[0]]
    maps, rate = scaling(given.rounds)
    print("facts in batches", file=sys.stderr, flush=True)
    facts = batches(given.rounds)
    swept = last_position(given.rounds)
    print("first and second question", file=sys.stderr, flush=True)
    asked = questions(given.rounds)
    print("profile", file=sys.stderr, flush=True)
    model, fact = MoeModel(build_model()), prompts(1)
    parts = profile(lambda: trace_prepared(model, fact, noise=NOISE_LEVEL, experts="none"), rounds=given.rounds)
    load.append(os.getloadavg()[0])
    print(
        write_engine_results(
            Path(__file__).parent / "results", maps=maps, rate=rate, facts=facts, swept=swept, questions=asked,
            parts=parts, machine=machine(given.threads), rounds=given.rounds, load=load,
        )
    )  # fmt: skip
    return 0
