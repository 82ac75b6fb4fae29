"""A study by Ray workers: the bytes of every batch are the single process's, also where a worker is killed."""

from __future__ import annotations

import collections
import contextlib
import copy
import os
import random
import signal
import socket
import sys
from types import SimpleNamespace

import pytest
import ray
import ray.exceptions
import torch

import core.facts
from cache.studies import Studies
from cache.verdicts import Verdicts
from core import cli
from core.errors import Cancelled, ExpertScopeError, InputError, OutOfMemory
from core.models import load_model
from core.progress import Progress
from core.study import data, ray_cluster
from core.study.data import create
from core.study.describe import marks
from core.study.ray_workers import RayCrew, RayWorkers, _share, fitting
from core.study.reporting import Reporter
from core.study.run import run
from core.study.settings import preset


@pytest.fixture(scope="module")
def model():
    """The demo, on one thread: two workers and this process share two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_model("demo", dtype="float32", device="cpu", store=Verdicts())
    torch.set_num_threads(before)


def begun(folder, name: str = "facts") -> Studies:
    book = Studies(folder / f"{name}.duckdb")
    create(book, "study", preset("demo", n=12), core.facts.bundled(), batch_tokens=100)
    return book


class Watching(Progress):
    """Calls `then` at every look whether to stop, with the label of the moment; keeps the labels."""

    def __init__(self, then) -> None:
        self.then, self.labels = then, [""]

    def update(self, done: float, total: float, label: str = "") -> None:
        self.labels.append(label)

    def check(self) -> None:
        self.then(self.labels[-1])


def test_cancelled_gone_on_with_and_both_workers_killed_one_after_the_other(model, tmp_path):
    """The bytes of every batch are the single process's. Nothing waits for a time: what is killed is replaced, and the
    second worker is killed while the first one's successor is all that is left."""
    alone, many = begun(tmp_path, "alone"), begun(tmp_path, "many")
    run(alone, model, "study")

    with contextlib.ExitStack() as stack:
        crews: list[RayCrew] = []

        @contextlib.contextmanager
        def hire(*args):  # loading the model is what takes long: the crew stays for both runs
            if not crews:
                crews.append(stack.enter_context(RayWorkers("local", 2)(*args)))
            yield crews[0]

        def stop(label: str) -> None:
            if label.startswith("layer sweep") and not label.startswith("layer sweep: 0"):
                raise Cancelled()

        with pytest.raises(Cancelled):
            run(many, model, "study", progress=Watching(stop), hire=hire)
        assert many.get("study").state == data.CANCELLED
        before = many.parts("study")
        assert 1 <= sum(stage == data.SURVEY for stage, _ in before) < 8
        [crew] = crews
        victims = {"layer sweep": crew._hands[0], "validation": crew._hands[1]}
        pids = ray.get([hand.actor.__ray_call__.remote(lambda worker: os.getpid()) for hand in victims.values()])
        assert len({os.getpid(), *pids}) == 3
        left = dict(zip(victims, pids, strict=True))

        def kill(label: str) -> None:
            stage = label.partition(":")[0]
            if stage in left and victims[stage].task is not None:
                os.kill(left.pop(stage), signal.SIGKILL)

        watching = Watching(kill)
        run(many, model, "study", progress=watching, hire=hire)
        assert not left and crew.lost == 2
        assert sum("was lost" in label for label in watching.labels) == 2

    assert not ray.is_initialized()
    assert many.get("study").state == data.DONE
    assert many.get("study").plan == alone.get("study").plan
    assert before.items() <= many.parts("study").items()
    assert many.parts("study") == alone.parts("study")  # bytes of every batch
    assert data.load(many, "study").rows.equals(data.load(alone, "study").rows)


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
    return fake, RayCrew(fake, model, model.structure, plan, n, {"num_cpus": 1})


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


def test_how_many_workers_fit(model):
    """The demo's 8.6 MB count little beside the gigabyte of libraries that a worker loads."""
    plenty, little = 10**12, 3.5 * 10**9
    assert fitting([{"CPU": 8, "memory": plenty}], model, 2) == 4
    assert fitting([{"CPU": 8, "memory": little}], model, 1) == 3
    assert fitting([{"CPU": 8, "memory": plenty}, {"CPU": 3, "memory": plenty}, {"memory": plenty}], model, 2) == 5
    assert fitting([{"CPU": 2, "memory": plenty}], model, 2) == fitting([{"CPU": 2, "memory": 1}], model, 1) == 1
    assert fitting([{"CPU": 2, "memory": plenty}], model, 2, least=2) == 2
    assert fitting([{"CPU": 2, "memory": 1}], model, 2, least=2) == 1


def test_no_worker_asks_for_more_than_a_machine_has():
    machines = [{"CPU": 2.0}, {"CPU": 4.0, "GPU": 1.0}]
    assert _share(machines, 3, gpu=False) == {"num_cpus": 3}
    assert _share(machines, 16, gpu=False) == {"num_cpus": 4}
    assert _share(machines, 16, gpu=True)["num_gpus"] == 1
    with pytest.raises(InputError, match="on a GPU here"):
        _share(machines[:1], 1, gpu=True)
    with pytest.raises(InputError, match="no processors"):
        _share([{"memory": 1.0}], 1, gpu=False)


def test_a_process_that_is_asked_to_end_leaves_no_study_that_says_done(model, tmp_path):
    """Ray's handler turns SIGTERM into SystemExit."""
    book = begun(tmp_path)

    def end(label: str) -> None:
        raise SystemExit(15)

    with pytest.raises(SystemExit):
        run(book, model, "study", progress=Watching(end))
    assert book.get("study").state == data.CANCELLED


def test_without_ray_it_is_said_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(["study", "--name", "x", "--ray", "local"]) == 2
    assert "pip install -r requirements-ray.txt" in capsys.readouterr().err
    assert cli.main(["study", "--name", "x", "--ray-workers", "2"]) == 2
    assert "Add --ray local" in capsys.readouterr().err
    assert cli.main(["study", "list"]) == 0
    assert "No studies yet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("{closed}", "no Ray cluster at '{closed}': [Errno"),
        ("{silent}", "no Ray cluster at '{silent}': nobody answered for 1 seconds"),
        ("nowhere:port", "no Ray cluster at 'nowhere:port': invalid literal"),
    ],
)
def test_nobody_at_the_address_is_said_and_no_study_is_kept(address, says, capsys, monkeypatch):
    """`closed`: taken, and nobody listens; `silent`: somebody listens who is no Ray."""
    monkeypatch.setattr(ray_cluster, "_PATIENCE", 1.0)
    with socket.socket() as closed, socket.socket() as silent:
        places = {}
        for name, one in (("closed", closed), ("silent", silent)):
            one.bind(("127.0.0.1", 0))
            places[name] = f"127.0.0.1:{one.getsockname()[1]}"
        silent.listen()
        assert cli.main(["study", "--name", "x", "--ray", address.format(**places)]) == 2
        assert says.format(**places) in capsys.readouterr().err
    assert cli.main(["study", "list"]) == 0
    assert "No studies yet" in capsys.readouterr().out


def test_what_ray_says_of_the_address_is_said():
    with pytest.raises(InputError, match="no Ray cluster at 'somewhere': .*somewhere"):
        ray_cluster.check_answers("somewhere")


def test_a_cluster_of_this_machine_is_shown_the_token_that_it_asks_for(monkeypatch):
    from ray._private.authentication import authentication_token_setup as setup

    answers, shown = [ray_cluster._TOKEN, ""], []
    monkeypatch.setattr(ray_cluster, "_asked", lambda address: answers.pop(0))
    monkeypatch.setattr(setup, "maybe_enable_token_auth_if_token_available", lambda **_: shown.append(True))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        ray_cluster.check_answers(address)
        assert shown == [True] and not answers
        monkeypatch.setattr(ray_cluster, "_asked", lambda address: ray_cluster._TOKEN)
        with pytest.raises(InputError, match="RAY_AUTH_MODE=token"):
            ray_cluster.check_answers(address)
