"""The workbench: one model at a time, answers kept, jobs joined, trouble with the store or the model in words."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest
from fake_results import FRANCE, fake_result
from tokenizers_for_tests import tokenizer

from cache import Store
from core import workbench
from core.errors import InputError, StoreError
from core.requests import Fact, ModelSpec, TraceRequest
from core.workbench import LOADED, NOT_HERE, ON_DISK, Engine, Workbench

WAIT = 10.0
REQUEST = TraceRequest(fact=FRANCE)
OTHER = TraceRequest(fact=FRANCE, model=ModelSpec("some/where"))


class Counting:
    """An engine that counts its calls and never lets two of them overlap unnoticed."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.traced: list[TraceRequest] = []
        self.alive: list[object] = []
        self.most_alive = 0
        self.inside = 0
        self.stored: dict[TraceRequest, object] = {}

    def engine(self) -> Engine:
        return Engine(self.load, self.trace, lambda store, request: self.stored.get(request))

    def load(self, name, **options):
        self.loads.append(name)
        engine = self

        class Model:
            def __init__(self):
                engine.alive.append(id(self))
                engine.most_alive = max(engine.most_alive, len(engine.alive))

            def __del__(self):
                engine.alive.remove(id(self))

        return Model()

    def trace(self, model, requests, *, store, progress):
        self.inside += 1
        assert self.inside == 1
        self.traced += requests
        result = [fake_result(request=request) for request in requests]
        self.inside -= 1
        return result


@pytest.fixture
def counting():
    return Counting()


@pytest.fixture
def bench(counting):
    made = Workbench(object(), engine=counting.engine())
    yield made
    assert made.jobs.close(WAIT)


def done(job):
    assert job.wait(WAIT)
    assert job.state == "done", job.error
    return job.result


@pytest.mark.parametrize("first", ["imports", "question"])
def test_nothing_is_loaded_before_the_engine_is_imported(monkeypatch, first):
    """Imports in two threads at once end in half-made modules."""
    imported, seen = threading.Event(), []

    def import_engine():
        time.sleep(0.2)
        imported.set()

    monkeypatch.setattr(workbench, "_import_engine", import_engine)
    counting = Counting()
    load = counting.load
    counting.load = lambda name, **options: (seen.append(imported.is_set()), load(name, **options))[1]
    monkeypatch.setattr(workbench, "real_engine", counting.engine)
    bench = Workbench(object())
    if first == "imports":
        bench.warm_up()
    done(bench.submit(REQUEST))
    assert bench.jobs.close(WAIT)
    assert seen == [True]


def test_an_answer_is_computed_once_and_then_looked_up(bench, counting):
    assert bench.lookup(REQUEST) is None
    result = done(bench.submit(REQUEST))
    assert bench.lookup(REQUEST) is result
    assert result.cached
    assert result.request == REQUEST
    assert done(bench.submit(REQUEST)) is result
    assert counting.traced == [REQUEST]


def test_what_the_store_has_needs_no_model(bench, counting):
    counting.stored[REQUEST] = fake_result(request=REQUEST)
    assert bench.lookup(REQUEST).drop == pytest.approx(5.0)
    done(bench.submit(REQUEST))
    assert counting.loads == []


def test_one_model_at_a_time_and_no_loading_twice(bench, counting):
    for request in (REQUEST, REQUEST.replace(seed=1), OTHER, OTHER.replace(seed=1), REQUEST.replace(seed=2)):
        done(bench.submit(request))
    assert counting.loads == ["demo", "some/where", "demo"]
    assert counting.most_alive == 1


def test_another_number_format_is_another_model(bench, counting):
    done(bench.submit(REQUEST))
    done(bench.submit(REQUEST.replace(model=ModelSpec(dtype="bfloat16"))))
    assert counting.loads == ["demo", "demo"]


def test_a_model_is_loaded_and_unloaded_by_hand(bench, counting):
    assert bench.loaded is None
    done(bench.load(OTHER.model))
    assert bench.loaded == OTHER.model and len(counting.alive) == 1
    done(bench.load(OTHER.model))
    done(bench.submit(OTHER))
    assert counting.loads == ["some/where"]
    done(bench.load(ModelSpec()))
    assert bench.loaded == ModelSpec() and counting.most_alive == 1
    done(bench.unload())
    assert bench.loaded is None and counting.alive == []  # nothing keeps it, not even the job
    assert bench.lookup(OTHER) is not None
    done(bench.submit(REQUEST))
    assert bench.loaded == ModelSpec()


def test_a_model_at_work_is_not_unloaded(bench):
    go_on = threading.Event()
    job = bench.jobs.submit("slow", "France → Paris", lambda progress: go_on.wait(WAIT))
    with pytest.raises(InputError, match="at work: France → Paris"):
        bench.unload()
    go_on.set()
    done(job)
    done(bench.unload())


def test_many_threads_asking_the_same_get_one_answer(bench, counting):
    start, results = threading.Barrier(8), []

    def ask():
        start.wait(WAIT)
        results.append(done(bench.submit(REQUEST)))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert len(results) == 8
    assert all(result is results[0] for result in results)
    assert counting.traced == [REQUEST]


def test_only_so_many_results_stay_in_memory(bench):
    requests = [REQUEST.replace(seed=seed) for seed in range(workbench.KEPT_RESULTS + 3)]
    for request in requests:
        done(bench.submit(request))
    kept = [request for request in requests if bench.lookup(request) is not None]
    assert kept == requests[3:]


def test_a_mistake_of_the_person_reaches_them(bench, counting):
    def refuse(store, request):
        raise InputError("The subject is not in the prompt.", "Write it in.")

    asking = Workbench(object(), engine=Engine(counting.load, counting.trace, refuse), jobs=bench.jobs)
    with pytest.raises(InputError):
        asking.lookup(REQUEST)
    job = asking.submit(REQUEST)
    assert job.wait(WAIT)
    assert (job.state, job.error.what) == ("failed", "The subject is not in the prompt.")


def test_model_states(bench, tmp_path):
    assert bench.model_state(ModelSpec()).state in (ON_DISK, NOT_HERE)
    done(bench.submit(REQUEST))
    assert bench.model_state(ModelSpec()).state == LOADED
    assert bench.model_state(ModelSpec(dtype="float16")).state != LOADED
    gone = bench.model_state(ModelSpec(str(tmp_path / "nothing")))
    assert (gone.state, gone.memory) == (NOT_HERE, None)


def test_a_store_that_cannot_be_opened_is_reported_and_not_fatal(monkeypatch, counting):
    def refuse(path=None, **options):
        raise StoreError("The store is in use by another process (PID 7).", "Close it.")

    monkeypatch.setattr(Store, "open", refuse)
    made = Workbench.open()
    assert "PID 7" in made.store_status().error
    assert made.lookup(REQUEST) is None
    made.clear_store()
    made.close()


def test_the_stores_size_limit_and_clearing(tmp_path, counting):
    with Store.open(tmp_path / "store.duckdb", limit_bytes=10**8) as store:
        made = Workbench(store, engine=counting.engine())
        done(made.submit(REQUEST))
        store.put_verdict("k", "demo (abc)", {"x": "y" * 1000})
        status = made.store_status()
        assert (status.limit, [name for name, _ in status.models], status.error) == (10**8, ["demo (abc)"], "")
        assert status.size > 0
        made.set_store_limit(10**7)
        assert made.store_status().limit == 10**7
        made.clear_store("demo (abc)")
        assert made.store_status().models == ()
        assert made.lookup(REQUEST) is None, "what was cleared is not shown from memory either"
        made.close()
        assert made.store_status().error


def test_a_typed_fact_is_tokenised_without_a_model(bench, counting, tmp_path):
    tokenizer("prefix_space").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 4}')
    spec = ModelSpec(str(tmp_path))
    options = {"special_tokens": "auto", "object_tokens": "space", "first_token": True}
    read = bench.live(Fact("The capital of {} is", "France", "Paris", "Rome"), spec, **options)
    assert "".join(token.token for token in read.tokens).strip() == "The capital of France is"
    assert "France" in "".join(token.token for token in read.tokens if token.subject)
    assert any("context only 4" in problem.what for problem in read.problems)
    assert counting.loads == []
    with pytest.raises(Exception, match="not on this machine"):
        bench.live(FRANCE, ModelSpec("no/such"), **options)


def test_looking_up_needs_neither_torch_nor_transformers(tmp_path):
    """A cached view appears at once: what answers from the store must not wait for seconds of imports."""
    code = """
import sys, core.workbench
bench = core.workbench.Workbench.open(sys.argv[1])
assert 'duckdb' in sys.modules
fact = core.Fact("The capital of {} is", "France", "Paris", "Rome")
assert bench.lookup(core.TraceRequest(fact)) is None
bench.model_state(core.ModelSpec())
print([name for name in ("torch", "transformers") if name in sys.modules])
bench.close()
"""
    command = [sys.executable, "-c", code, str(tmp_path / "store.duckdb")]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
