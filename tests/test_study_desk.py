"""The desk: studies in the background that give way to traces, their states, what they found, links and commands."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import threading
import time

import checkpoints
import pandas as pd
import pytest
import tokenizers_for_tests
from fake_results import FRANCE, fake_result
from word_facts import any_contrast, word_facts

from cache.studies import Studies
from core import cli_study, facts
from core.checks import ensure_checked
from core.errors import InputError, ModelError, StoreError
from core.jobs import JobRegistry
from core.moe import MoeModel
from core.progress import Progress
from core.requests import Fact, ModelSpec, TraceRequest
from core.study import behind, data, explain, link, locks
from core.study import rows as table
from core.study.reporting import Reporter
from core.study.run import run
from core.study.settings import StudySettings, preset
from core.workbench import Engine, Workbench

WAIT = 60.0
OURS = ModelSpec("ours")
OTHER = ModelSpec("some/other")


def settings(**changes) -> StudySettings:
    few = {"draws": 1, "noise_levels": (1, 3), "grid_seeds": (0, 1), "resamples": 100, "flips": 100}
    return any_contrast(**{"model": OURS, **few, **changes})


@pytest.fixture(scope="module")
def model() -> MoeModel:
    """A random model; the tests never let two of them compute at once."""
    found = MoeModel(checkpoints.build("qwen2_moe"), tokenizers_for_tests.tokenizer("prefix_space"))
    ensure_checked(found)
    return found


class World:
    """A workbench whose every model is the same random one; counts loads. `gate`: loading waits for it."""

    def __init__(self, path, model: MoeModel) -> None:
        self.book, self.model = Studies(path), model
        self.loads: list[str] = []
        self.traced: list[TraceRequest] = []
        self.error: Exception | None = None
        self.gate: threading.Event | None = None
        self.bench = Workbench(
            object(), engine=Engine(self.load, self.trace, lambda store, request: None), studies=self.book
        )
        self.desk = self.bench.studies

    def load(self, name, *, progress, store, **options):
        self.loads.append(name)
        while self.gate is not None and not self.gate.wait(0.01):
            progress.check()
        if self.error is not None:
            raise self.error
        return self.model

    def trace(self, model, requests, *, store, progress):
        self.traced += requests
        return [fake_result(request=request) for request in requests]

    def ended(self, name: str) -> str:
        """The state in which a study ended."""
        deadline = time.monotonic() + WAIT
        while (status := self.desk.status(name)).active:
            assert time.monotonic() < deadline, status
            time.sleep(0.01)
        return status.state


@pytest.fixture
def world(tmp_path, model):
    made = World(tmp_path / "store.duckdb", model)
    yield made
    if made.gate:
        made.gate.set()
    made.bench._store = None
    made.bench.close(WAIT)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model):
    """The same study without a desk and without interruption."""
    book = Studies(tmp_path_factory.mktemp("whole") / "store.duckdb")
    data.create(book, "whole", settings(), word_facts())
    run(book, model, "whole")
    return data.load(book, "whole")


def test_a_study_lets_traces_in_between_its_batches_and_ends_with_the_same_numbers(world, whole, monkeypatch):
    commit, asked = Studies.commit, []

    def commit_and_ask(book, name, parts, *, progress):
        """After the first batch somebody traces with the same model, after the second with another one."""
        record = commit(book, name, parts, progress=progress)
        spec = {0: OURS, 1: OTHER}.get(len(asked))
        if spec is not None:
            asked.append(world.bench.submit(TraceRequest(fact=FRANCE, model=spec)))
            while not world.bench._turns._asking:
                time.sleep(0.005)
        else:
            assert len(world.traced) == len(asked), "the study went on before the trace was answered"
        return record

    monkeypatch.setattr(Studies, "commit", commit_and_ask)
    monkeypatch.setattr("core.turns.LEAST_TERM", 0.0)
    monkeypatch.setattr("core.turns.TERM_SHARE", 0.0)
    assert world.desk.start(" first ", settings(), word_facts()) == "first"
    assert world.ended("first") == data.DONE
    assert [request.model for request in world.traced] == [OURS, OTHER]
    assert world.loads == ["ours", "some/other", "ours"]
    found = data.load(world.book, "first")
    pd.testing.assert_frame_equal(found.rows, whole.rows, check_exact=True)


def test_a_study_of_this_process_is_seen_from_the_start_to_the_end(world):
    world.gate = threading.Event()
    world.desk.start("first", settings(), word_facts())
    world.desk.start("second", settings(seed=1), word_facts())
    assert [(s.name, s.active) for s in world.desk.all()] == [("second", True), ("first", True)]
    assert world.desk.status("second").state == data.QUEUED
    for change in (lambda: world.desk.delete("second"), lambda: world.desk.rename("first", "x")):
        with pytest.raises(InputError, match="running already"):
            change()
    with pytest.raises(InputError, match="running already"):
        world.desk.resume("second")
    with pytest.raises(InputError, match="There is a study 'first' already") as caught:
        world.desk.start("first", settings(), word_facts())
    assert caught.value.field == "name"
    world.gate.set()
    assert [world.ended(name) for name in ("first", "second")] == [data.DONE, data.DONE]
    assert world.desk.status("first").progress["funnel"]["kept"] == 12
    assert world.loads == ["ours"]
    assert world.desk.status("nobody") is None


def test_cancelling_and_going_on(world):
    world.gate = threading.Event()
    world.desk.start("first", settings(), word_facts())
    world.desk.start("second", settings(), word_facts())
    world.desk.cancel("second")  # still in the queue
    assert world.desk.status("second").state == data.CANCELLED
    world.desk.cancel("first")  # its model is being loaded
    assert world.ended("first") == data.CANCELLED
    with pytest.raises(InputError, match="is not running"):
        world.desk.cancel("first")
    world.gate.set()
    world.desk.resume("first")
    assert world.ended("first") == data.DONE
    assert world.desk.status("second").state == data.CANCELLED


def test_what_stopped_a_study_is_said_and_it_can_go_on(world):
    world.error = ModelError("ours is not a MoE.", "Choose another.")
    world.desk.start("first", settings(), word_facts())
    assert world.ended("first") == data.FAILED
    assert world.desk.status("first").note == "ours is not a MoE. Choose another."
    world.error = KeyError("internal detail")
    world.desk.resume("first")
    assert world.ended("first") == data.FAILED
    assert "internal detail" not in world.desk.status("first").note and "KeyError" in world.desk.status("first").note
    world.error = None
    world.desk.resume("first")
    assert world.ended("first") == data.DONE and world.desk.status("first").note == ""


def test_a_study_of_another_process_is_seen_and_can_be_asked_to_stop(world):
    data.create(world.book, "theirs", settings(), word_facts())
    assert world.desk.status("theirs").state == data.INTERRUPTED  # nobody works on it
    record = world.book.get("theirs")
    with locks.trying(locks.folder_beside(world.book.path), f"study {record.id}") as mine:
        assert mine
        world.book.update("theirs", state=data.RUNNING, progress={"label": "layer sweep: 3 of 12", "fraction": 0.25})
        status = world.desk.status("theirs")
        assert (status.state, status.label, status.fraction) == (data.RUNNING, "layer sweep: 3 of 12", 0.25)
        with pytest.raises(InputError, match="running already"):
            world.desk.delete("theirs")
        world.desk.cancel("theirs")
        assert world.desk.status("theirs").stopping
    world.desk.cancel("theirs")
    assert world.desk.status("theirs").state == data.CANCELLED
    world.desk.delete("theirs")
    assert world.desk.all() == []


def test_what_a_study_found_is_read_once_and_anew_when_it_went_on(world):
    world.desk.start("first", settings(), word_facts())
    assert world.ended("first") == data.DONE
    assert world.desk.findings("first") is None
    job = world.desk.read("first")
    assert job.wait(WAIT)
    found = world.desk.findings("first")
    assert found is job.result and found.summary["n_facts"] == {"discovery": 6, "validation": 6}
    assert world.desk.rename("first", " other name ") == "other name"
    assert world.desk.findings("other name") is None  # its name stands in the figures
    world.desk.read("other name").wait(WAIT)
    assert world.desk.findings("other name").name == "other name"
    world.book.update("other name", note="")
    assert world.desk.findings("other name") is None
    content = world.desk.export("other name")
    assert world.desk.import_file(content, name="copy") == "copy"
    with pytest.raises(InputError, match="There is a study"):
        world.desk.import_file(content)


def test_without_a_store_there_are_no_studies_and_that_is_said():
    desk = Workbench(None, jobs=JobRegistry(), store_error="It is on fire.").studies
    with pytest.raises(StoreError, match="It is on fire"):
        desk.all()


def test_the_facts_behind_an_average_are_those_of_the_rows(whole):
    from core.study import findings

    found = findings.of_study(whole)
    layer = found.analysis.layer
    experts = sorted(set(whole.rows.expert[(whole.rows.kind == table.EXPERT) & (whole.rows.layer == layer)]))
    rows = whole.rows[whole.rows.stage == table.MAIN]
    for expert in (None, *map(int, experts)):
        listed = behind.behind(found, layer=layer, expert=expert).set_index("scan_index")
        assert sorted(listed.index) == list(range(12))
        for scan_index, line in listed.iterrows():
            mine = rows[(rows.scan_index == scan_index) & (rows.layer == layer)]
            patches = mine[mine.kind == table.LAYER]
            assert line.layer_rescue == pytest.approx(patches.rescue.mean(), abs=1e-12)
            assert line.pos == patches.pos.iloc[0] and line.case_id == whole.kept[scan_index].case_id
            assert line["true"] == whole.kept[scan_index].true
            if expert is not None:
                alone = mine[(mine.kind == table.EXPERT) & (mine.expert == expert)]
                assert line.clean_active == (len(alone) > 0)
                expected = (alone.rescue.mean(), alone.router_weight_clean.mean()) if len(alone) else (0.0, None)
                assert line.expert_rescue == pytest.approx(expected[0], abs=1e-12)
                assert pd.isna(line.router_weight) if expected[1] is None else line.router_weight == expected[1]
        by = listed["layer_rescue" if expert is None else "expert_rescue"]
        assert by.is_monotonic_decreasing
    unknown = behind.behind(found, layer=layer, expert=1000)
    assert (unknown.expert_rescue == 0).all() and not unknown.clean_active.any()
    elsewhere = behind.behind(found, layer=77, expert=0)
    assert elsewhere.layer_rescue.isna().all() and elsewhere.expert_rescue.isna().all()


VIEWS = [
    link.StudyView(),
    link.StudyView("first"),
    link.StudyView("größe & <b>", "facts", layer=3, expert=0, relation="a b", split="validation", fact=7),
    link.StudyView("x", "joint_search", layer=0),
]


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_comes_back_from_its_link(view):
    assert link.from_query(link.to_query(view)) == view


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"study": "x", "show": "nothing"}, "one of overview"),
        ({"study": "x", "layer": "-1"}, "whole number"),
        ({"study": "x", "expert": "3"}, "no layer"),
        ({"study": "x", "split": "both"}, "discovery"),
        ({"study": "x" * 5000}, "4000 characters"),
    ],
)
def test_what_a_link_cannot_say_is_named(params, words):
    view = link.from_query(params)
    assert words in " ".join(view.problems)
    assert (view.section, view.layer, view.expert, view.split) == ("overview", None, None, None)


def test_a_fact_is_asked_of_the_trace_page_as_the_study_measured_it():
    fact = Fact("The {} is", "s", "a", "b", case_id=5)
    asked = settings(noise=2.5, draws=3, seed=9, special_tokens="on", object_tokens="space")
    assert link.trace_request(asked, fact) == TraceRequest(
        fact=fact, model=OURS, noise=2.5, draws=3, seed=9, special_tokens="on", object_tokens="space"
    )


@pytest.mark.parametrize(
    "asked",
    [
        preset("demo"),
        preset("rome", n=12, by_subject=True, fresh_draw=False, noise_levels=(1, 2.5), fresh_seed=3, confidence=0.9),
        preset("paper", model=ModelSpec("org/name", revision="v1", dtype="bfloat16", device="cpu"), joint_search=False),
        preset("relaxed", facts="my facts.json", cases="paper-qwen3"),
    ],
)
def test_the_command_begins_the_same_study(asked):
    parser = argparse.ArgumentParser()
    cli_study.add_study(parser.add_subparsers())
    words = shlex.split(explain.command(asked, "a name"))
    arguments = parser.parse_args(words[3:])
    assert words[:3] == ["python", "-m", "core"] and arguments.name == "a name"
    assert cli_study.settings_of(arguments) == asked


@pytest.mark.parametrize(
    "asked",
    [preset("demo"), preset("rome", n=12, noise_levels=(1, 2.5), model=ModelSpec("org/x", dtype="bfloat16"))],
)
def test_the_program_measures_the_same_study(asked, monkeypatch):
    done = []
    book, model = object(), object()
    monkeypatch.setattr("cache.studies.Studies", lambda: book)
    monkeypatch.setattr("core.load_model", lambda **spec: done.append(spec) or model)
    monkeypatch.setattr("core.study.data.create", lambda *given: done.append(given))
    monkeypatch.setattr("core.study.data.load", lambda *given: given)
    monkeypatch.setattr("core.study.run.run", lambda *given: done.append(given))
    monkeypatch.setattr("core.study.text.overview", lambda study: f"found {study[1]}")
    exec(explain.python(asked, "it's again"), {})  # noqa: S102
    created, spec, ran = done
    assert created == (book, "it's again", asked, facts.bundled())
    assert spec == dataclasses.asdict(asked.model) and ran == (book, model, "it's again")


def test_every_setting_is_explained_and_stands_in_one_group():
    names = [name for group in explain.GROUPS.values() for name in group]
    assert sorted(names) == sorted(set(StudySettings().to_dict()) - {"preset", "model", "facts", "cases"})
    assert set(explain.HELP) == set(names)


def test_as_long_as_the_scan_goes_on_the_whole_is_not_taken_for_done():
    class Said(Progress):
        last = 0.0

        def update(self, done, total, label=""):
            self.last = done / total

    said, clock = Said(), iter(range(1000))
    reporter = Reporter(said, {}, clock=lambda: float(next(clock)))
    reporter.begin("scan", facts=10, cost=0.0)
    seen = [said.last]
    for kept in (3, 4, 3):
        reporter.finished(facts=kept, cost=5.0)
        seen.append(said.last)
    assert seen == sorted(seen) and seen[0] == 0.0 and seen[-1] == pytest.approx(0.05)
    assert reporter.snapshot()["facts_per_minute"] > 0
    reporter.expect({"survey": 45.0})
    reporter.begin("survey", facts=10, cost=45.0)
    assert said.last == pytest.approx(15 / 60)
