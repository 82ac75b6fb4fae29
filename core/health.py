"""How the process is: its model, its queue, its store, its memory. Values for a page or a monitor; nothing typed in it.

Reading it takes milliseconds and waits for nobody's work.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any

import psutil

from .errors import ExpertScopeError
from .jobs import ACTIVE, RUNNING
from .queueing import model_name
from .requests import ModelSpec
from .workbench import Workbench

LANES = {"": "traces", "derived": "larger questions", "models": "models"}


@dataclass(frozen=True)
class Health:
    """One look. Sizes in bytes, times in seconds. `model`: those in memory, the last used first; `jobs`: unfinished
    ones, without their titles, which quote what was typed; `studies`: how many run or wait; `problems`: sentences about
    what is wrong, empty where nothing is."""

    up: float
    model: str
    models_at_most: int
    memory: int
    memory_free: int
    memory_total: int
    store: dict[str, Any]
    jobs: list[dict[str, Any]]
    ended: dict[str, int]
    studies: int
    problems: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dict(vars(self))


def look(bench: Workbench) -> Health:
    """How things stand now."""
    process, machine = psutil.Process(), psutil.virtual_memory()
    statuses = [(job, job.status()) for job in bench.jobs.all()]
    jobs = [
        {
            "job": job.id,
            "queue": LANES.get(job.lane, job.lane),
            "state": "waiting" if now.waits else now.state,
            "model": model_name(job.needs if isinstance(job.needs, ModelSpec) else None),
            "done": round(now.fraction, 3),
            "seconds": round(now.elapsed, 1),
            "seconds_left": None if now.seconds_left is None else round(now.seconds_left, 1),
        }
        for job, now in statuses
        if now.state in ACTIVE
    ]
    jobs.sort(key=lambda job: job["state"] != RUNNING)
    ended: dict[str, int] = {}
    for _, now in statuses:
        if now.state not in ACTIVE:
            ended[now.state] = ended.get(now.state, 0) + 1
    store = bench.store_status()
    problems = [problem for problem in (store.error, bench.setting_problem) if problem]
    try:
        studies = sum(status.active for status in bench.studies.all())
    except ExpertScopeError as error:
        studies = 0
        problems += [str(error)] if not store.error else []
    return Health(
        up=round(datetime.datetime.now().timestamp() - process.create_time(), 1),
        model=", ".join(model_name(resident.spec) for resident in bench.residents.all()),
        models_at_most=bench.residents.most,
        memory=process.memory_info().rss,
        memory_free=machine.available,
        memory_total=machine.total,
        store={"file": store.size, "contents": store.contents, "limit": store.limit},
        jobs=jobs,
        ended=ended,
        studies=studies,
        problems=problems,
    )
