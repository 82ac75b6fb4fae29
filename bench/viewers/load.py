"""`python -m bench viewers`: 20 viewers clicking every 5 seconds for 5 minutes, one of them running studies.

Every view is checked against its request (`checks`), with numbers that the engine alone computed beforehand. Writes
bench/results/viewers.md; the exit status is 1 where a view was wrong, something failed, or memory grew. `--minutes 30
--random` (`make soak`) writes bench/results/soak.md.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import random
import re
import tempfile
import time
from pathlib import Path

import torch

from core import facts
from core.models import load_model

from ..served import ROOT, Server, serve
from ..timing import machine
from .answers import Answers
from .places import HEALTH
from .process import Watch, sessions
from .report import Found, markdown, plain
from .scientist import Scientist
from .tab import Tab
from .viewer import Look, Shared, Viewer, World, some_world

LOOK = 2.0
"""Seconds between two looks at the server process."""
_FAILURE = re.compile(r'Traceback|\w(Error|Exception)\b.*:|"level": "(error|critical)"')
AFTER = 30.0
"""Seconds within which the server has to let go of viewers who are gone."""


def main() -> int:
    """See the module."""
    options = _options()
    torch.set_num_threads(options.threads)
    minutes = options.minutes
    world = some_world(
        facts.bundled(), n=options.facts, per_set=4, sets=3, seeds=int(2 * options.viewers * max(minutes, 1))
    )
    print(f"computing what {options.viewers} viewers may see ...", flush=True)
    shared = prepare(world)
    print("the viewers come", flush=True)
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder)) as server:
        found = asyncio.run(watched(
            server, shared, viewers=options.viewers, studies=options.studies, every=options.every,
            seconds=60 * minutes, wild=options.random, seed=options.seed, rest=options.rest,
        ))  # fmt: skip
    text = markdown(found)
    print(text)
    if options.write:
        name = "soak" if options.random else "viewers"
        results = ROOT / "bench" / "results"
        (results / f"{name}.md").write_text(text, "utf-8")
        (results / f"{name}.json").write_text(json.dumps(plain(found), indent=1) + "\n", "utf-8")
    return 1 if found.failures else 0


def prepare(world: World) -> Shared:
    """The right answers to everything that may be asked; the model is let go of."""
    model = load_model("demo")
    shared = Shared.of(world, Answers(model, world.requests()))
    del model
    gc.collect()
    return shared


async def watched(
    server: Server, shared: Shared, *, viewers: int, studies: int, every: float, seconds: float, wild: bool, seed: int,
    clicks: int | None = None, rest: float = 0.0,
) -> Found:  # fmt: skip
    """Let so many viewers come, click and go, and look at the server meanwhile. `wild`: at random times; `clicks`: each
    goes after so many, if not before; `rest`: seconds to wait when they are gone, then one more comes and goes."""
    watch = Watch(server.process.pid)
    watch.look()
    people: list[Viewer | Scientist] = [Scientist(number, server.url) for number in range(studies)]
    people += [
        Viewer(number, server.url, shared, random.Random(f"{seed} {number}")) for number in range(studies, viewers)
    ]
    looks: list[Look] = []
    end = time.monotonic() + seconds
    looking = asyncio.create_task(_look_on(watch))
    pauses = random.Random(seed)
    await asyncio.gather(*(
        _visit(
            one, looks, start=every * i / viewers, every=every, end=end, pauses=pauses if wild else None, clicks=clicks
        )
        for i, one in enumerate(people)
    ))  # fmt: skip
    if rest:
        await asyncio.sleep(rest)
        late = Tab(server.url)
        await late.open(HEALTH)
        await late.close()
    deadline = time.monotonic() + AFTER
    while sessions(server.url) and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
    looking.cancel()
    last = watch.look()
    left = {"sessions": sessions(server.url), "threads": last.threads, "files": last.files}
    settings = {
        "viewers": viewers, "studies": studies, "every": every, "minutes": seconds / 60, "seconds": seconds,
        "random": wild, "seed": seed, "rest": rest, "facts": len(shared.world.facts),
    }  # fmt: skip
    ended = sum(len(one.ended) for one in people if isinstance(one, Scientist))
    said = failures_in(server.said)
    return Found(looks, watch.samples, ended, said, left, settings, machine(torch.get_num_threads()))


def failures_in(log: str) -> list[str]:
    """Lines of a server's log that speak of a failure."""
    return [line.strip() for line in log.splitlines() if _FAILURE.search(line)]


async def _visit(
    one: Viewer | Scientist, looks: list[Look], *, start: float, every: float, end: float,
    pauses: random.Random | None, clicks: int | None,
) -> None:  # fmt: skip
    """Come, click at a steady pace (or at random with the same mean) until the end, go. Who waits for a page does not
    click meanwhile."""
    await asyncio.sleep(start)
    due = time.monotonic()
    try:
        looks.append(await one.arrive())
        for _ in itertools.count() if clicks is None else range(clicks):
            due = max(due + (every if pauses is None else pauses.uniform(0, 2 * every)), time.monotonic())
            if due >= end:
                return
            await asyncio.sleep(due - time.monotonic())
            looks.append(await one.click())
    finally:
        await one.leave()


async def _look_on(watch: Watch) -> None:
    while True:
        await asyncio.sleep(LOOK)
        watch.look()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench viewers", description=__doc__)
    parser.add_argument("--viewers", type=int, default=20)
    parser.add_argument("--studies", type=int, default=1, help="how many of them run studies")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two clicks of a viewer")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--random", action="store_true", help="clicks at random times with the same mean")
    parser.add_argument("--rest", type=float, default=0.0, help="seconds to wait when they are gone")
    parser.add_argument("--facts", type=int, default=24, help="facts that the viewers choose from")
    parser.add_argument("--seed", type=int, default=0, help="of all that is left to chance")
    parser.add_argument("--threads", type=int, default=2, help="of the computation beforehand")
    parser.add_argument("--no-write", dest="write", action="store_false", help="leave bench/results as it is")
    return parser.parse_args()
