"""Answers that are more than a trace: found again exactly when they would be the same, kept, let others in."""

from __future__ import annotations

import dataclasses
import sys
import threading
import types

import numpy as np
import pandas as pd
import pytest
from fake_results import FRANCE, fake_result

from cache import Store
from core import derived, export, turns, workbench
from core.derived import KINDS, DerivedRequest, Kind, derive, from_store, pack, unpack
from core.errors import Cancelled, StoreError
from core.identity import remember_identity
from core.models import load_model
from core.requests import Fact, ModelSpec, TraceRequest
from core.workbench import Engine, Workbench

WAIT = 20.0
DEMO = ModelSpec("demo")
JAPAN = dataclasses.replace(FRANCE, subject="Japan", true="Tokyo", foil="Seoul", case_id=18)
TABLE = pd.DataFrame(
    {
        "name": ["L0E001", "</script>", "\U0001f600"],
        "n": pd.array([1, None, 3], dtype="Int64"),
        "flag": pd.array([True, None, False], dtype="boolean"),
        "x": [0.1 + 0.2, np.nan, -np.inf],
    }
)


@pytest.fixture
def kind(monkeypatch):
    """A kind `probe` of a module made for the test; the calls that it got."""
    calls = []

    def answer(model, request, *, store, progress):
        calls.append(request)
        progress.update(1, 2, "half")
        progress.pause()
        return {"rows": TABLE, "none": TABLE.iloc[:0]}, {"asked": request.get(), "tuple": (1, 2.5), "left_out": []}

    monkeypatch.setitem(sys.modules, "core.probe_kind", types.SimpleNamespace(answer=answer))
    monkeypatch.setitem(KINDS, "probe", Kind("A probe", 1, ".probe_kind:answer"))
    return calls


@pytest.fixture(scope="module")
def model():
    return load_model("demo")


def asked(**settings):
    facts = settings.pop("facts", (FRANCE,))
    return DerivedRequest.of("probe", DEMO, facts=facts, **({"layer": 3, "draws": 1} | settings))


def test_requests_are_values_and_only_what_changes_a_number_makes_another(kind):
    request = asked(subset=("a", "b"))
    assert request == asked(subset=["a", "b"]) and hash(request) == hash(asked(subset=["a", "b"]))
    assert request.get() == {"layer": 3, "draws": 1, "subset": ["a", "b"]} and request.title == "A probe"
    assert DerivedRequest.from_dict(request.to_dict()) == request
    others = [
        asked(subset=["b", "a"]), asked(layer=4, subset=["a", "b"]), asked(subset=["a", "b"], facts=(JAPAN,)),
        asked(subset=["a", "b"], facts=(FRANCE, JAPAN)), asked(subset=["a", "b"], facts=(JAPAN, FRANCE)),
    ]  # fmt: skip
    assert len({request.about, *(other.about for other in others)}) == 6
    with pytest.raises(ValueError):
        asked(noise=float("nan"))


PARTIAL = "the corruption is partial"


@pytest.mark.parametrize(
    ("name", "settings", "noisy"),
    [
        ("coalition", {"noise": 3.0, "corruption": "noise"}, True),
        ("coalition", {}, True),  # noise is what a question that says nothing means
        ("coalition", {"corruption": "replace"}, False),
        ("cell_knockouts", {}, False),
        ("steering", {"factor": 2.0}, False),
        ("routing", {"corruption": "noise"}, True),
        ("routing", {"prompts": ["A b c"]}, False),
        ("routing_comparison", {"a": {"prompts": ["A"]}, "b": {"corruption": "replace"}, "facts_of_a": 0}, False),
        ("routing_comparison", {"a": {"prompts": ["A"]}, "b": {"corruption": "noise"}, "facts_of_a": 0}, True),
        ("validation", {"measure": False}, False),
        ("validation", {"measure": True, "noise": 3.0}, True),
    ],
)
def test_whether_noise_is_part_of_a_question(name, settings, noisy):
    assert DerivedRequest.of(name, DEMO, facts=(FRANCE,), **settings).adds_noise is noisy


def test_an_answer_says_where_noise_does_not_reach_all_of_the_subject(kind, model, monkeypatch):
    assert derive(model, asked()).provenance["notes"] == []
    monkeypatch.setattr(model.structure, "ids_inside", True)
    result = derive(model, asked())
    (note,) = result.provenance["notes"]
    assert PARTIAL in note and f"Note: {note}" in export.caption(result)
    assert export.notes(unpack(pack(result))) == [note]
    assert derive(model, asked(corruption="replace")).provenance["notes"] == []
    monkeypatch.setitem(KINDS, "probe", Kind("A probe", 1, ".probe_kind:answer", corrupts=False))
    assert derive(model, asked()).provenance["notes"] == []


def test_another_version_of_a_kind_does_not_find_the_old_answers(kind, monkeypatch):
    before = asked().about
    monkeypatch.setitem(KINDS, "probe", Kind("A probe", 2, ".probe_kind:answer"))
    assert asked().about != before


def test_an_answer_comes_back_from_its_file_exactly(kind, model):
    result = derive(model, asked(facts=(FRANCE, Fact("{}", "\udcff <b>", "x"))))
    again = unpack(pack(result))
    assert again.request == dataclasses.replace(result.request, model=model.spec)
    assert again.values == result.values == {"asked": {"layer": 3, "draws": 1}, "tuple": [1, 2.5], "left_out": []}
    assert again.provenance == result.provenance and again.cached and not result.cached
    assert list(again.tables) == ["rows", "none"]
    pd.testing.assert_frame_equal(again.tables["rows"], TABLE, check_exact=True)
    assert len(again.tables["none"]) == 0


def test_a_stored_answer_is_found_without_a_model_and_not_computed_twice(kind, model, home):
    with Store.open() as store:
        assert from_store(store, asked()) is None
        remember_identity(store, DEMO, model.identity, label=model.label)
        assert from_store(store, asked()) is None
        first = derive(model, asked(), store=store)
        again = derive(model, asked(), store=store)
        assert len(kind) == 1 and not first.cached and again.cached
        derive(model, asked(layer=5), store=store)
        assert len(kind) == 2
    with Store.open() as store:
        found = from_store(store, asked())
        pd.testing.assert_frame_equal(found.tables["rows"], TABLE, check_exact=True)
        usage = store.usage().set_index("model")
        assert usage.loc[model.label, "derived"] == 2
        assert store.contents_bytes() == usage.bytes.sum()
        store.clear(model.label)
        assert from_store(store, asked()) is None


def test_the_least_recently_used_answer_goes_first_and_one_key_has_one_answer(home):
    with Store.open() as store:
        for name in "abc":
            store.put_derived(name, model="m", kind="k", payload=name.encode() * 100_000, info={"n": 1})
        store.put_derived("b", model="m", kind="k", payload=b"new", info={})
        assert store.get_derived("a") == b"a" * 100_000 and store.get_derived("b") == b"new"
        store.set_limit(150_000)
        assert store.get_derived("a") is not None and store.get_derived("c") is None
        store.put_derived("d", model="m", kind="k", payload=b"d" * 120_000, info={})
        assert [store.get_derived(name) is not None for name in "abcd"] == [False, False, False, True]
        query = "SELECT count(*) FROM duckdb_tables() WHERE table_name LIKE 'shelf_%'"
        assert store._database.read(lambda cursor: cursor.execute(query).fetchall()) == [(1,)]


def test_an_answer_that_cannot_be_stored_is_given_all_the_same(kind, model):
    class Full:
        def get_derived(self, key):
            return None

        def put_derived(self, key, **values):
            raise StoreError("The disk is full.", "Make room.")

    result = derive(model, asked(), store=Full())
    assert len(result.tables["rows"]) == 3 and "The disk is full." in result.provenance["notes"][0]


def test_downloads_carry_the_request(kind, model):
    result = derive(model, asked())
    text = export.csv(TABLE, result, "what").decode()
    assert text.splitlines()[0] == "# ExpertScope: what" and '"layer": 3' in text.splitlines()[1]
    assert any("layer 3" in line and "1 fact" in line for line in export.caption(result))
    assert export.file_stem(result, "routing") == "routing_demo"


class Two:
    """An engine whose derived answers take three steps and whose traces take one; what it did, in order."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.step = threading.Semaphore(0)
        self.reached = threading.Event()

    def load(self, name, **options):
        self.order.append(f"load {name}")
        return types.SimpleNamespace(name=name)

    def trace(self, model, requests, *, store, progress):
        self.order.append(f"trace {model.name}")
        return [fake_result(request=request) for request in requests]

    def derive(self, model, request, *, store, progress):
        for step in range(3):
            self.order.append(f"step {step}")
            self.reached.set()
            while not self.step.acquire(timeout=0.01):
                progress.check()
            progress.pause()
        return derived.DerivedResult(request, {}, {}, {})

    def bench(self) -> Workbench:
        return Workbench(None, engine=Engine(self.load, self.trace, lambda *_: None, self.derive, lambda *_: None))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (DEMO, ["load demo", "step 0", "trace demo", "step 1", "step 2"]),
        (
            ModelSpec("some/where"),
            ["load demo", "step 0", "load some/where", "trace some/where", "load demo", "step 0", "step 1", "step 2"],
        ),
    ],
    ids=["same model", "another model"],
)
def test_a_trace_is_let_in_between_two_sweeps_of_something_longer(kind, monkeypatch, spec, expected):
    monkeypatch.setattr(workbench, "PATIENCE", 0.0)
    monkeypatch.setattr(turns, "LEAST_TERM", 0.0)
    monkeypatch.setattr(turns, "TERM_SHARE", 0.0)
    engine = Two()
    bench = engine.bench()
    try:
        long = bench.submit(asked())
        assert engine.reached.wait(WAIT)
        short = bench.submit(TraceRequest(fact=FRANCE, model=spec))
        while not bench._turns._asking:
            assert not short.wait(0.01)
        for _ in range(4):
            engine.step.release()
        assert short.wait(WAIT) and long.wait(WAIT)
        assert short.status().state == long.status().state == "done"
        assert engine.order == expected
        assert bench.lookup(asked()) is not None
        assert bench.submit(asked()).wait(WAIT) and engine.order == expected
    finally:
        bench.close()


def test_a_derived_job_is_joined_released_and_cancelled_like_a_trace(kind):
    engine = Two()
    bench = engine.bench()
    try:
        job = bench.submit(asked(), owner="ada")
        assert bench.submit(asked(), owner="bob") is job and bench.pending(asked()) is job
        assert engine.reached.wait(WAIT)
        bench.jobs.release(job.id, "ada")
        assert job.status().active
        bench.jobs.release(job.id, "bob")
        assert job.wait(WAIT) and isinstance(job.error, Cancelled)
        assert bench.lookup(asked()) is None and bench.pending(asked()) is None
    finally:
        bench.close()
