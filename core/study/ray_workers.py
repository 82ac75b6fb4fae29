"""Ray workers as the crew of a study: each is a process with the model, here or on the machines of a Ray cluster.

A worker is refused unless its model, libraries and processor are the driver's; one that is lost is replaced and its
batch is measured again. Knows Ray and tasks; nothing of what tasks mean. Ray is needed only when a crew is opened.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import ExpertScopeError, InputError, OutOfMemory
from ..memory import available_bytes
from ..moe import MoeModel
from ..requests import ModelSpec
from ..structure import Structure
from .describe import differing, marks
from .plan import Plan
from .ray_cluster import LOCAL, check_answers, connected, first_line, library
from .reporting import Reporter
from .tasks import Task

TRIES = 3
"""A batch, or the start of a worker, that fails so often in a row ends the study."""
_POLL = 0.5  # seconds between two looks whether the study should stop
_ROOM = 1.5  # memory of a worker, times that of the weights
_OWN_BYTES = 10**9  # and besides: the libraries


class Worker:
    """What runs in a Ray actor: the model, once, and one task after the other."""

    def load(self, spec: ModelSpec, plan: Plan) -> dict[str, Any]:
        """Load the model; what it is and what computes here (`describe.marks`), with the name of the `machine`."""
        from cache.verdicts import Verdicts

        from ..models import load_model

        torch.set_num_threads(plan.threads)
        self.plan = plan
        self.model = load_model(**dataclasses.asdict(spec), store=Verdicts())
        return {**marks(self.model), "machine": socket.gethostname()}

    def begin(self, structure: Mapping[str, Any]) -> None:
        """Run the model's layers as the driver would."""
        self.structure = Structure.from_dict(dict(structure), self.model)

    def measured(self, task: Task) -> Any:
        """The task's result."""
        return task.measured(self.model, self.structure, chunk_tokens=self.plan.chunk_tokens)


@dataclass
class _Hand:
    """One worker: what it does just now (`ref`), the number of its task, or why it has none."""

    actor: Any
    ref: Any
    task: int | None = None
    ready: bool = False


class RayCrew:
    """See `core.study.tasks.Crew`. `lost`: how many workers were lost and replaced."""

    def __init__(
        self, ray: Any, model: MoeModel, structure: Structure, plan: Plan, workers: int, share: Mapping[str, int]
    ) -> None:
        """`share`: what a worker takes of a machine, as Ray's options."""
        self._ray, self._plan = ray, plan
        self._spec = _spec_of(model)
        self._marks, self._structure = marks(model), structure.to_dict()
        # retried here, so that it is counted; spread, since memory is what they need most
        self._actor = ray.remote(max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD", **share)(Worker)
        self.lost = self._failed_starts = 0
        self._hands = [self._hired() for _ in range(workers)]

    def close(self) -> None:
        """Send all workers home."""
        for hand in self._hands:
            with contextlib.suppress(Exception):  # it may be gone
                self._ray.kill(hand.actor)
        self._hands = []

    def results(self, tasks: Iterable[Task], report: Reporter, *, in_order: bool = False) -> Iterator[tuple[int, Any]]:
        """See `Crew`. At most twice as many tasks as workers are under way."""
        coming, more = enumerate(tasks), True
        held: dict[int, Task] = {}  # not finished
        waiting: collections.deque[int] = collections.deque()  # of those, the ones that no worker has
        failed: collections.Counter[int] = collections.Counter()
        finished: dict[int, Any] = {}
        following = 0
        try:
            while True:
                while more and len(held) + len(finished) < 2 * len(self._hands):
                    number, task = next(coming, (-1, None))
                    more = task is not None
                    if task is not None:
                        held[number] = task
                        waiting.append(number)
                if not held and not finished:
                    return
                for hand in self._hands:
                    if waiting and hand.ready and hand.ref is None:
                        hand.task = waiting.popleft()
                        hand.ref = hand.actor.measured.remote(held[hand.task])
                for hand in self._awaited(report):
                    number, there, value = self._heard(hand)
                    if number is None:
                        continue
                    if there:
                        finished[number] = value
                        del held[number]
                        continue
                    failed[number] += 1
                    if failed[number] >= TRIES:
                        raise ExpertScopeError(
                            f"A batch was lost {TRIES} times in a row together with the Ray worker that measured it.",
                            f"Often the memory is used up: take fewer workers. What is done is kept. Ray said: {value}",
                        )
                    report.wait("a Ray worker was lost: another one measures its batch again")
                    waiting.appendleft(number)
                while finished and (not in_order or following in finished):
                    number = following if in_order else next(iter(finished))
                    following += 1
                    yield number, finished.pop(number)
        finally:
            for hand in self._hands:  # what is under way for nobody only keeps its worker busy
                hand.task = None

    def _hired(self) -> _Hand:
        actor = self._actor.remote()
        return _Hand(actor, actor.load.remote(self._spec, self._plan))

    def _awaited(self, report: Reporter) -> list[_Hand]:
        """The workers that finished what they did; none after a moment without."""
        busy = {hand.ref: hand for hand in self._hands if hand.ref is not None}
        if not any(hand.ready for hand in self._hands):
            report.wait(f"waiting for a Ray worker ({len(self._hands)} start and load the model)")
        report.check()
        done, _ = self._ray.wait(list(busy), num_returns=1, timeout=_POLL)
        return [busy[ref] for ref in done]

    def _heard(self, hand: _Hand) -> tuple[int | None, bool, Any]:
        """What a worker finished: the number of its task if somebody waits for it, whether it is there, and the result
        or how it was lost. A lost worker is replaced."""
        errors = self._ray.exceptions
        number, hand.task, ref, hand.ref = hand.task, None, hand.ref, None
        try:
            value = self._ray.get(ref)
            if not hand.ready:
                self._checked(value)
                self._ray.get(hand.actor.begin.remote(self._structure))
                hand.ready, self._failed_starts = True, 0
                return None, True, None
        except errors.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, ExpertScopeError):
                raise type(cause)(f"On a Ray worker: {cause.what}", cause.next) from None
            if isinstance(cause, torch.OutOfMemoryError | MemoryError):
                raise OutOfMemory("A Ray worker has too little memory.") from None
            raise ExpertScopeError(
                f"Unexpected failure on a Ray worker: {type(cause).__name__}: {cause}"[:500], "What is done is kept."
            ) from None
        except errors.RayError as error:
            self._replace(hand, error)
            return number, False, first_line(error)
        return number, True, value

    def _checked(self, found: Mapping[str, Any]) -> None:
        """Raises `InputError` where a worker's numbers would not be the driver's."""
        different = differing(self._marks, found)
        if found["identity"] != self._marks["identity"] or different:
            raise InputError(
                f"The Ray worker on {found['machine']} would measure other numbers than this process: "
                f"{different or 'it has other settings of the engine'}.",
                "Give every machine the same model files, libraries and kind of processor.",
                field="ray",
            )

    def _replace(self, hand: _Hand, error: Exception) -> None:
        if not hand.ready:
            self._failed_starts += 1
            if self._failed_starts >= TRIES:
                raise ExpertScopeError(
                    f"Ray workers were lost {TRIES} times in a row while they loaded the model.",
                    f"Often the memory is used up: take fewer workers (--ray-workers). Every machine needs "
                    f"ExpertScope where Python finds it. Ray said: {first_line(error)}",
                ) from None
        with contextlib.suppress(Exception):  # it may be alive but out of reach
            self._ray.kill(hand.actor)
        fresh = self._hired()
        hand.actor, hand.ref, hand.ready = fresh.actor, fresh.ref, False
        self.lost += 1


@dataclass(frozen=True)
class RayWorkers:
    """Hires (`core.study.tasks.Hiring`) from the Ray cluster at `address`, or from one that is started on this machine
    (`local`) and ended afterwards. `workers`: how many; None: as many as fit. Raises `InputError` without
    Ray, or where nobody answers at the address."""

    address: str
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise InputError(f"{self.workers} Ray workers cannot measure.", "Give at least 1.", field="ray_workers")
        library()
        check_answers(self.address)

    @contextlib.contextmanager
    def __call__(self, model: MoeModel, structure: Structure, plan: Plan) -> Iterator[RayCrew]:
        if model.fingerprint.startswith("in-memory"):
            raise InputError(
                "Ray workers load the model from its files, and this one has none.", "Save it first.", field="ray"
            )
        ray, gpu = library(), model.device.type == "cuda"
        here = {"CPU": _cores(), "GPU": torch.cuda.device_count(), "memory": available_bytes("cpu")}
        # one worker alone would only take this process's place
        workers = self.workers or fitting([here], model, plan.threads, least=2)
        with connected(ray, self.address, cpus=workers * plan.threads):
            machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            share = _share(machines, plan.threads, gpu=gpu)
            if self.workers is None and self.address != LOCAL:
                workers = fitting(machines, model, share["num_cpus"])
            crew = RayCrew(ray, model, structure, plan, workers, share)
            try:
                yield crew
            finally:
                crew.close()


def fitting(machines: Sequence[Mapping[str, float]], model: MoeModel, threads: int, *, least: int = 0) -> int:
    """How many workers with `threads` each fit on machines with these resources (`CPU`, `GPU`, `memory` in bytes): by
    GPUs, or by cores, then `least`, and memory; at least 1."""
    if model.device.type == "cuda":
        return max(1, int(sum(machine.get("GPU", 0) for machine in machines)))
    weights = sum(p.numel() * p.element_size() for p in model.model.parameters() if p.device.type != "meta")
    room = [int(machine.get("memory", 0) // (_ROOM * weights + _OWN_BYTES)) for machine in machines]
    cores = [max(least, int(machine.get("CPU", 0) // threads)) for machine in machines]
    return max(1, sum(map(min, room, cores)))


def _share(machines: Sequence[Mapping[str, float]], threads: int, *, gpu: bool) -> dict[str, int]:
    """What a worker takes of a machine; Ray would wait for ever for more than the largest one has."""
    if gpu:
        if not any(machine.get("GPU", 0) >= 1 for machine in machines):
            raise InputError(
                "The model is on a GPU here, and the machines of the Ray cluster have none.",
                "Choose device cpu, or a cluster with GPUs.",
                field="ray",
            )
        return {"num_cpus": 0, "num_gpus": 1}
    most = max((int(machine.get("CPU", 0)) for machine in machines), default=0)
    if most < 1:
        raise InputError("The machines of the Ray cluster offer no processors.", "Start some with them.", field="ray")
    return {"num_cpus": min(threads, most)}


def _cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _spec_of(model: MoeModel) -> ModelSpec:
    """What workers are to load: what the driver's `auto` turned out to be."""
    spec = model.spec
    dtype = str(model.dtype).removeprefix("torch.") if spec.dtype == "auto" else spec.dtype
    name = spec.name
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # a folder may be named from where the driver is
        if Path(name).expanduser().is_dir() and name != "demo":
            name = str(Path(name).expanduser().resolve())
    return dataclasses.replace(spec, name=name, dtype=dtype, device=model.device.type)
