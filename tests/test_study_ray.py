"""A study by Ray workers: the bytes of every batch are the single process's, also where a worker is killed."""

from __future__ import annotations

import collections
import contextlib
import copy
import os
import random
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import ray
import ray.exceptions
import torch
from safetensors.torch import load_file, save_file

import core.facts
from cache.studies import Studies
from core import cli
from core.catalog import DEMO_FOLDER
from core.errors import Cancelled, ExpertScopeError, InputError, OutOfMemory
from core.models import load_model
from core.progress import Progress
from core.study import data, ray_workers
from core.study.data import create
from core.study.describe import marks
from core.study.ray_workers import RayCrew, RayWorkers
from core.study.reporting import Reporter
from core.study.run import run
from core.study.settings import preset


def ray_processes() -> dict[int, str]:
    """Descendants of this process that belong to Ray: pid → command line."""
    found = {}
    for child in psutil.Process().children(recursive=True):
        try:
            line = " ".join(child.cmdline())
        except psutil.Error:
            continue
        if "ray" in line:
            found[child.pid] = line
    return found


def workers(doing: str = "") -> set[int]:
    """Pids of the workers that hold a model, or of those that do this just now (Ray writes it into the title)."""
    return {pid for pid, line in ray_processes().items() if f"ray::Worker{doing}" in line}


def all_gone(found, left: int = 0) -> bool:
    """Whether `found()` comes down to so many; the system takes a moment to end a killed process."""
    deadline = time.monotonic() + 30
    while len(found()) > left and time.monotonic() < deadline:
        time.sleep(0.1)
    return len(found()) == left


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Two workers and this process share two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(one_thread, tmp_path_factory):
    """The demo, in a folder of its own, so that its files can be changed behind its back."""
    folder = tmp_path_factory.mktemp("model") / "demo"
    shutil.copytree(DEMO_FOLDER, folder)
    return load_model(str(folder), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def cluster():
    """A local Ray with room for three workers, to which this process stays connected."""
    with ray_workers._connected(ray, "local", cpus=3):
        yield ray
    assert all_gone(ray_processes)


@pytest.fixture(scope="module")
def crew(cluster):
    """Hires the same two workers for every study of the module: loading the model is what takes long."""
    with contextlib.ExitStack() as stack:
        kept: list[RayCrew] = []

        @contextlib.contextmanager
        def hire(*args):
            if not kept:
                kept.append(stack.enter_context(RayWorkers("local", 2)(*args)))
            yield kept[0]

        hire.kept = kept
        yield hire
    assert all_gone(workers)


def begun(folder, name: str = "facts") -> Studies:
    book = Studies(folder / f"{name}.duckdb")
    create(book, "study", preset("demo", n=12), core.facts.bundled(), batch_tokens=100)
    return book


class Watching(Progress):
    """Does something once, when a worker measures and some facts of the layer sweep are done."""

    def __init__(self, then) -> None:
        self.then, self.label, self.acted = then, "", False

    def update(self, done: float, total: float, label: str = "") -> None:
        self.label = label

    def check(self) -> None:
        if self.acted or not self.label.startswith("layer sweep") or self.label.startswith("layer sweep: 0"):
            return
        if busy := workers(".measured"):
            self.acted = True
            self.then(busy)


def test_killed_in_the_middle_the_numbers_are_those_of_one_process(model, crew, tmp_path):
    alone, many = begun(tmp_path, "alone"), begun(tmp_path, "many")
    run(alone, model, "study")
    killed: list[int] = []

    def kill(busy: set[int]) -> None:
        killed.append(min(busy))
        os.kill(killed[0], signal.SIGKILL)

    run(many, model, "study", progress=Watching(kill), hire=crew)
    assert len(killed) == 1 and crew.kept[0].lost == 1
    assert many.get("study").state == data.DONE
    assert many.get("study").plan == alone.get("study").plan
    stages = collections.Counter(stage for stage, _ in many.part_names("study"))
    assert stages[data.SURVEY] >= 6
    assert many.parts("study") == alone.parts("study")  # bytes of every batch
    assert data.load(many, "study").rows.equals(data.load(alone, "study").rows)


def test_cancelled_and_then_refused_with_other_weights(model, crew, tmp_path):
    book = begun(tmp_path)

    def stop(busy: set[int]) -> None:
        raise Cancelled()

    with pytest.raises(Cancelled):
        run(book, model, "study", progress=Watching(stop), hire=crew)
    assert book.get("study").state == data.CANCELLED
    before = book.part_names("study")
    assert (data.SURVEY, 0) in before and (data.VALIDATION, 0) not in before

    file = Path(model.spec.name) / "model.safetensors"
    weights = load_file(file)
    name = min(name for name in weights if "experts" in name)
    weights[name] = weights[name] + 1e-3
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"on {socket.gethostname()} would measure other numbers.*model files"):
        run(book, model, "study", hire=RayWorkers("local", 1))
    assert book.get("study").state == data.FAILED and book.part_names("study") == before
    assert all_gone(workers, left=2)  # the refused one is gone


# ---- without a cluster ----------------------------------------------------------------------------------------------


class Fake:
    """As much of Ray as a crew uses, in this process. `script(method, worker, arguments)` answers or raises."""

    exceptions = ray.exceptions

    def __init__(self, script) -> None:
        self.script, self.started, self.calls, self.random = script, 0, [], random.Random(1)

    def remote(self, **options):
        return lambda cls: SimpleNamespace(remote=self.actor)

    def actor(self):
        self.started += 1
        worker = self.started

        def method(name: str):
            def called(*arguments) -> int:
                self.calls.append((name, worker, arguments))
                return len(self.calls) - 1

            return SimpleNamespace(remote=called)

        return SimpleNamespace(**{name: method(name) for name in ("load", "begin", "measured")})

    def wait(self, refs, num_returns, timeout):
        chosen = self.random.choice(refs)
        return [chosen], [ref for ref in refs if ref != chosen]

    def get(self, ref):
        return self.script(*self.calls[ref])

    def kill(self, actor) -> None:
        pass


class Report(Reporter):
    """Nobody watches."""

    def __init__(self) -> None:
        super().__init__(Progress(), {})


def crew_of(model, script, n: int) -> tuple[Fake, RayCrew]:
    fake = Fake(script)
    plan = SimpleNamespace(threads=1)
    return fake, RayCrew(fake, model, model.structure, plan, n)


def answering(model, measured):
    """A script of workers with the right model."""

    def script(method, worker, arguments):
        if method == "measured":
            return measured(worker, *arguments)
        return {**marks(model), "machine": "here"} if method == "load" else None

    return script


def test_results_in_order_and_as_they_come(model):
    """The fake's workers answer in any order."""
    _, crew = crew_of(model, answering(model, lambda worker, task: task * 10), 3)
    assert list(crew.results(range(8), Report(), in_order=True)) == [(i, 10 * i) for i in range(8)]
    mixed = list(crew.results(range(8), Report()))
    assert sorted(mixed) == [(i, 10 * i) for i in range(8)] and mixed != sorted(mixed)
    ahead = []
    tasks = (ahead.append(i) or i for i in range(100))
    results = crew.results(tasks, Report(), in_order=True)
    assert next(results) == (0, 0)
    results.close()
    assert len(ahead) <= 6  # twice the workers
    assert list(crew.results(range(3), Report(), in_order=True)) == [(0, 0), (1, 10), (2, 20)]  # nothing stale


def test_a_batch_is_tried_again_but_not_for_ever(model):
    lost = collections.Counter()

    def measured(worker, task, times):
        lost[task] += 1
        if task == 4 and lost[task] <= times:
            raise ray.exceptions.ActorDiedError()
        return -task

    fake, crew = crew_of(model, answering(model, lambda w, t: measured(w, t, 2)), 2)
    assert sorted(crew.results(range(6), Report())) == [(i, -i) for i in range(6)]
    assert lost[4] == 3 and crew.lost == 2 and fake.started == 4
    lost.clear()
    fake, crew = crew_of(model, answering(model, lambda w, t: measured(w, t, 99)), 2)
    with pytest.raises(ExpertScopeError, match="lost 3 times in a row") as caught:
        list(crew.results(range(6), Report()))
    assert lost[4] == 3 and "fewer workers" in caught.value.next


def test_workers_that_never_start_end_the_study(model):
    def script(method, worker, arguments):
        raise ray.exceptions.ActorDiedError()

    fake, crew = crew_of(model, script, 2)
    with pytest.raises(ExpertScopeError, match="while they loaded the model"):
        list(crew.results([1], Report()))
    assert fake.started == 4


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("torch 9.9", lambda m: m["versions"].update(torch="9.9")),
        ("dtype bfloat16", lambda m: m.update(dtype="bfloat16")),
        ("processor OTHER", lambda m: m.update(processor="OTHER")),
    ],
)
def test_a_worker_that_differs_is_refused_by_name(model, what, change):
    name, value = what.split()

    def script(method, worker, arguments):
        found = copy.deepcopy(marks(model))
        change(found)
        return {**found, "machine": "gpu7"}

    _, crew = crew_of(model, script, 1)
    with pytest.raises(InputError, match=rf"on gpu7 .*{name} .* \(now {value}\)"):
        list(crew.results([1], Report()))


def test_what_a_worker_says_is_said(model):
    def measured(worker, task):
        raise ray.exceptions.RayTaskError("measured", "traceback", OutOfMemory())

    _, crew = crew_of(model, answering(model, measured), 1)
    with pytest.raises(OutOfMemory, match="On a Ray worker: There was not enough memory"):
        list(crew.results([1], Report()))


def test_how_many_workers_fit(model, monkeypatch):
    monkeypatch.setattr(ray_workers.os, "sched_getaffinity", lambda pid: range(8), raising=False)
    monkeypatch.setattr(ray_workers, "available_bytes", lambda device: 10**12)
    assert ray_workers.fitting(model, 2) == 4 and ray_workers.fitting(model, 16) == 1
    monkeypatch.setattr(ray_workers, "available_bytes", lambda device: 5 * 10**9)
    assert 1 <= ray_workers.fitting(model, 1) < 5


def test_without_ray_it_is_said_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(["study", "--name", "x", "--ray", "local"]) == 2
    assert "pip install -r requirements-ray.txt" in capsys.readouterr().err
    assert cli.main(["study", "--name", "x", "--ray-workers", "2"]) == 2
    assert "Add --ray local" in capsys.readouterr().err
    assert cli.main(["study", "list"]) == 0
    assert "No studies yet" in capsys.readouterr().out


def test_nobody_at_the_address_is_said_at_once_and_no_study_is_kept(capsys):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # taken, and nobody listens
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        assert cli.main(["study", "--name", "x", "--ray", address]) == 2
    assert f"no Ray cluster at '{address}'" in capsys.readouterr().err
    assert cli.main(["study", "list"]) == 0
    assert "No studies yet" in capsys.readouterr().out
