"""Two viewers on two models: one waits, is told for what but not what others typed, and models do not come and go."""

from __future__ import annotations

import threading

import pytest
from fake_results import FRANCE, fake_result

from core import turns, workbench
from core.derived import DerivedRequest, DerivedResult
from core.queueing import Inside, Standing, model_name, model_names
from core.requests import Fact, ModelSpec, TraceRequest
from core.residents import Residents
from core.workbench import Engine, Workbench
from pages.parts import waiting

WAIT = 20.0
DEMO, OTHER = ModelSpec(), ModelSpec("some/where")
SECRET = Fact("{} told nobody", "Zaphod", "Arthur", "Ford")


class Slow:
    """An engine whose traces wait for `step`; what was loaded and traced, in order."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.step = threading.Semaphore(0)
        self.inside = threading.Semaphore(0)

    def load(self, name, **_):
        self.order.append(f"load {name}")
        return object()

    def trace(self, model, requests, *, store, progress):
        self.order += [f"{request.model.name} {request.seed}" for request in requests]
        progress.update(1, 2, "layers")
        self.inside.release()
        while not self.step.acquire(timeout=0.01):
            progress.check()
        return [fake_result(request=request) for request in requests]

    def derive(self, model, request, *, store, progress):
        self.trace(model, [TraceRequest(SECRET, model=request.model)], store=store, progress=progress)
        return DerivedResult(request, {}, {}, {})

    def go(self, *jobs):
        """Let so many come to their end."""
        for _ in jobs:
            self.step.release()
        for job in jobs:
            assert job.wait(WAIT) and job.state == "done", job.error


@pytest.fixture
def engine():
    return Slow()


@pytest.fixture
def bench(engine):
    made = Workbench(None, engine=Engine(engine.load, engine.trace, lambda *_: None, engine.derive, lambda *_: None))
    yield made
    made.close()


def ask(bench, model, seed, owner, fact=FRANCE):
    return bench.submit(TraceRequest(fact, model=model, seed=seed), owner=owner)


def test_viewers_who_click_in_turns_change_the_model_once_a_term(engine, bench, monkeypatch):
    monkeypatch.setattr(turns, "LEAST_TERM", 1000.0)
    first = ask(bench, DEMO, 0, "ada")
    assert engine.inside.acquire(timeout=WAIT)
    jobs = [ask(bench, model, seed, who) for seed in (1, 2) for model, who in ((OTHER, "bob"), (DEMO, "ada"))]
    places = [bench.waiting(job.id, "eve").place for job in jobs]
    assert places == [3, 1, 4, 2], "the demo has its term"
    engine.go(first, *jobs)
    assert engine.order == [
        "load demo", "demo 0", "demo 1", "demo 2", "load some/where", "some/where 1", "some/where 2",
    ]  # fmt: skip
    assert [bench.waiting(job.id, "ada") for job in jobs] == [None] * 4


def test_without_a_term_who_asked_first_is_first(engine, bench, monkeypatch):
    monkeypatch.setattr(turns, "LEAST_TERM", 0.0)
    monkeypatch.setattr(turns, "TERM_SHARE", 0.0)
    first = ask(bench, DEMO, 0, "ada")
    assert engine.inside.acquire(timeout=WAIT)
    jobs = [ask(bench, model, 1, who) for model, who in ((OTHER, "bob"), (DEMO, "ada"))]
    assert [bench.waiting(job.id, "eve").place for job in jobs] == [1, 2]
    engine.go(first, *jobs)
    assert engine.order == ["load demo", "demo 0", "load some/where", "some/where 1", "load demo", "demo 1"]


def test_who_waits_is_told_for_what_and_nothing_that_others_typed(engine, bench):
    first = ask(bench, DEMO, 0, "ada", SECRET)
    assert engine.inside.acquire(timeout=WAIT)
    job = ask(bench, OTHER, 0, "bob")
    seen = bench.waiting(job.id, "bob")
    assert seen == Standing(1, 1, Inside("trace", "", False, "demo", False, None), "some/where", ("demo",), True)
    assert waiting.words(seen) == (
        "waits for another viewer's trace on demo; then demo is unloaded and some/where loaded"
    )
    mine = waiting.words(bench.waiting(ask(bench, OTHER, 1, "ada").id, "ada"))
    assert "your own trace of Zaphod → Arthur on demo" in mine and "place 2 of 2" in mine
    engine.step.release()
    assert first.wait(WAIT) and engine.inside.acquire(timeout=WAIT)
    question = bench.submit(DerivedRequest.of("steering", OTHER, facts=[SECRET]), owner="eve")
    assert "waits for another viewer's trace on some/where" in waiting.words(bench.waiting(question.id, "eve"))
    assert not bench.waiting(question.id, "eve").comes, "its model is loaded"
    for other in bench.jobs.all():
        other.cancel()


def test_of_a_larger_question_its_kind_is_told(engine, bench):
    bench.submit(DerivedRequest.of("steering", DEMO, facts=[SECRET]), owner="ada")
    assert engine.inside.acquire(timeout=WAIT)
    said = waiting.words(bench.waiting(ask(bench, DEMO, 0, "bob").id, "bob"))
    assert said == "waits for another viewer's question (Steering an expert) on demo, " + (
        "which lets others in between its steps"
    )
    for job in bench.jobs.all():
        job.cancel()


def test_models_are_called_by_what_is_no_secret(tmp_path):
    (tmp_path / "tiny").mkdir()
    assert [model_name(ModelSpec(name)) for name in ("demo", "org/name-1.0", str(tmp_path / "tiny"))] == [
        "demo", "org/name-1.0", "tiny",
    ]  # fmt: skip
    for typed in ("my secret", "a/b/c", "/home/ada/secret", "<b>/x", "x" * 5000, "\x00", "ó/x"):
        assert model_name(ModelSpec(typed)) == "another model"
    assert model_name(None) == ""


def test_models_of_one_name_are_told_apart_by_what_is_no_secret(tmp_path, monkeypatch):
    save = tmp_path / "models--org--tiny" / "snapshots" / "1234"
    save.mkdir(parents=True)
    (save / "config.json").write_text("{}")
    (tmp_path / "models--org--tiny" / "refs").mkdir()
    for ref in ("main", "v2"):
        (tmp_path / "models--org--tiny" / "refs" / ref).write_text("1234")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    first, second = ModelSpec("org/tiny"), ModelSpec("org/tiny", revision="v2", dtype="bfloat16")
    assert model_names([first, DEMO]) == {first: "org/tiny", DEMO: "demo"}
    assert model_names([first, second, DEMO]) == {
        first: "org/tiny (default revision, dtype auto)", second: "org/tiny (revision v2, dtype bfloat16)",
        DEMO: "demo",
    }  # fmt: skip
    typed = [ModelSpec(name, revision="my secret") for name in ("org/tiny", "demo", str(tmp_path))]
    for spec in typed:
        assert model_names([ModelSpec(spec.name), spec])[spec].endswith(" (another revision)")


def test_waiting_for_another_number_format_says_which(engine, bench):
    single = ModelSpec("org/tiny", dtype="float32")
    first = ask(bench, single, 0, "ada")
    assert engine.inside.acquire(timeout=WAIT)
    job = ask(bench, ModelSpec("org/tiny", dtype="bfloat16"), 0, "ada")
    said = waiting.words(bench.waiting(job.id, "ada"))
    assert "on org/tiny (dtype float32)" in said
    assert said.endswith("then org/tiny (dtype float32) is unloaded and org/tiny (dtype bfloat16) loaded")
    engine.go(first, job)


def test_with_two_allowed_both_stay(engine, monkeypatch):
    monkeypatch.setenv("EXPERTSCOPE_MODELS_IN_MEMORY", "2")
    bench = Workbench(None, engine=Engine(engine.load, engine.trace, lambda *_: None))
    assert bench.residents.most == 2 and not bench.setting_problem
    bench.residents = Residents(engine.load, most=2, wanted=lambda *_: ("cpu", 10), free=lambda device: 100)
    try:
        for model, seed in ((DEMO, 0), (OTHER, 0), (DEMO, 1), (OTHER, 1)):
            engine.go(ask(bench, model, seed, "ada"))
        assert engine.order == ["load demo", "demo 0", "load some/where", "some/where 0", "demo 1", "some/where 1"]
        assert bench.model_state(DEMO).state == bench.model_state(OTHER).state == workbench.LOADED
        assert bench.unload(OTHER).wait(WAIT)
        assert [resident.spec for resident in bench.residents.all()] == [DEMO]
    finally:
        bench.close()


def test_a_wrong_setting_is_said_and_one_model_is_kept(monkeypatch):
    monkeypatch.setenv("EXPERTSCOPE_MODELS_IN_MEMORY", "many")
    bench = Workbench(None)
    assert bench.residents.most == 1 and "'many'" in bench.setting_problem
    from core import health

    assert any("EXPERTSCOPE_MODELS_IN_MEMORY" in problem for problem in health.look(bench).problems)
    bench.close()


def test_what_took_long_to_load_does_not_go_for_what_nobody_clicked_on(engine, bench, monkeypatch):
    engine.go(ask(bench, OTHER, 0, "ada"))
    assert bench.in_the_way(DEMO) is None
    monkeypatch.setattr(workbench, "QUICK", -1.0)
    assert bench.in_the_way(DEMO) == OTHER and bench.in_the_way(OTHER) is None


def test_a_job_that_is_gone_or_takes_no_turns_waits_for_nothing(bench):
    assert bench.waiting("none", "ada") is None
    job = bench.jobs.submit("count", "count", lambda progress: 1, lane="numbers")
    assert job.wait(WAIT) and bench.waiting(job.id, "ada") is None
