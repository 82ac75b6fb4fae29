"""The job queue: order, joining, progress, time left, cancelling, errors in words, shutdown."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from core.errors import ExpertScopeError, InputError
from core.jobs import CANCELLED, DONE, FAILED, QUEUED, RUNNING, STEP_BACK, JobRegistry

WAIT = 10.0


class Clock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Gate:
    """Work that says when it has begun and goes on when told, reporting and checking in between."""

    def __init__(self, result=None) -> None:
        self.begun, self.go, self.result = threading.Event(), threading.Event(), result

    def __call__(self, progress):
        self.begun.set()
        assert self.go.wait(WAIT)
        progress.check()
        return self.result


@pytest.fixture
def registry():
    registry = JobRegistry(keep=3)
    yield registry
    assert registry.close(WAIT)


def ended(job):
    assert job.wait(WAIT), f"{job.title} did not end"
    return job


def test_a_job_gives_its_result(registry):
    job = ended(registry.submit("k", "Forty-two", lambda progress: 42))
    assert (job.state, job.result, job.error) == (DONE, 42, None)


def test_a_worker_lets_others_go_first(registry):
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, 0)

    mine = niceness()
    job = ended(registry.submit("k", "niceness", lambda progress: niceness()))
    assert job.result == (min(mine + STEP_BACK, 19) if sys.platform == "linux" else mine)
    assert niceness() == mine, "a thread's, not the process's"


def test_jobs_run_one_at_a_time_in_the_order_in_which_they_came(registry):
    seen, inside = [], []
    gate = Gate()
    registry.submit("first", "gate", gate)

    def work(name):
        def run(progress):
            inside.append(1)
            seen.append((name, len(inside)))
            inside.pop()

        return run

    jobs = [registry.submit(name, name, work(name)) for name in "abcd"]
    assert gate.begun.wait(WAIT)
    assert [job.status().state for job in jobs] == [QUEUED] * 4
    gate.go.set()
    for job in jobs:
        ended(job)
    assert seen == [("a", 1), ("b", 1), ("c", 1), ("d", 1)]


def test_the_same_work_joins_the_unfinished_job_and_only_that(registry):
    gate = Gate("once")
    first = registry.submit(("trace", 1), "trace", gate)
    assert gate.begun.wait(WAIT)
    assert registry.submit(("trace", 1), "trace", gate) is first
    assert registry.find(("trace", 1)) is first
    other = registry.submit(("trace", 2), "trace", lambda progress: "other")
    assert other is not first
    gate.go.set()
    assert ended(first).result == "once"
    assert registry.find(("trace", 1)) is None
    again = registry.submit(("trace", 1), "trace", lambda progress: "again")
    assert again is not first
    assert ended(again).result == "again"


def test_a_queued_job_is_cancelled_at_once_and_never_runs(registry):
    gate, ran = Gate(), []
    registry.submit("gate", "gate", gate)
    assert gate.begun.wait(WAIT)
    job = registry.submit("x", "x", ran.append)
    assert job.status().state == QUEUED
    job.cancel()
    assert job.wait(0)
    assert job.status().state == CANCELLED
    gate.go.set()
    ended(registry.submit("after", "after", lambda progress: None))
    assert ran == []


def test_a_running_job_stops_at_its_next_check(registry):
    gate = Gate("unreached")
    job = registry.submit("x", "x", gate)
    assert gate.begun.wait(WAIT)
    job.cancel()
    assert job.status().state == RUNNING, "it has not noticed yet"
    fresh = registry.submit("x", "x", lambda progress: "fresh")
    assert fresh is not job, "a job that was asked to stop is not joined"
    gate.go.set()
    assert (ended(job).state, job.result) == (CANCELLED, None)
    assert ended(fresh).result == "fresh"


def test_a_job_lives_as_long_as_anybody_wants_it(registry):
    gate = Gate()
    registry.submit("gate", "gate", gate)
    assert gate.begun.wait(WAIT)
    job = registry.submit("x", "x", lambda progress: 1, owner="anna")
    assert registry.submit("x", "x", lambda progress: 1, owner="bert") is job
    registry.release(job.id, "anna")
    registry.release(job.id, "anna")
    registry.release(job.id, "nobody")
    assert job.status().active
    registry.release(job.id, "bert")
    assert job.status().state == CANCELLED
    gate.go.set()


def test_a_persons_mistake_keeps_its_words(registry):
    def work(progress):
        raise InputError("The subject is not in the prompt.", "Write it in.", field="subject")

    status = ended(registry.submit("x", "x", work)).status()
    assert (status.state, status.error, status.error_next) == (
        FAILED,
        "The subject is not in the prompt.",
        "Write it in.",
    )


@pytest.mark.parametrize("error", [KeyError("secret detail"), SystemExit(3), MemoryError()])
def test_any_other_error_becomes_a_sentence_and_the_worker_lives_on(registry, caplog, error):
    def work(progress):
        raise error

    status = ended(registry.submit("x", "the title", work)).status()
    assert status.state == FAILED
    assert "secret detail" not in status.error + status.error_next
    assert ("memory" in status.error) == isinstance(error, MemoryError)
    assert any(record.exc_info and record.fields["private"]["title"] == "the title" for record in caplog.records)
    assert ended(registry.submit("y", "y", lambda progress: "alive")).result == "alive"


def measured(steps):
    """The status after `steps` of (seconds, done, total), reported by a job on a clock of our own."""
    clock, out = Clock(), []
    registry = JobRegistry(clock=clock)

    def work(progress):
        for seconds, done, total in steps:
            clock.now += seconds
            if done is not None:
                progress.update(done, total, "layers")
        out.append(registry.all()[0].status())

    ended(registry.submit("x", "x", work))
    registry.close(WAIT)
    return out[0]


def test_time_left_is_what_is_left_at_the_recent_speed():
    status = measured([(0, 0, 100), (1, 10, 100), (1, 20, 100), (1, 30, 100)])
    assert status.fraction == pytest.approx(0.3)
    assert status.elapsed == pytest.approx(3)
    assert status.label == "layers"
    assert status.seconds_left == pytest.approx(7)


def test_time_left_forgets_the_distant_past():
    # 90 units in the first second, then one a second: at one a second the last 5 take about 5 s, not 0.6
    slow = [(1, 90 + i, 120) for i in range(1, 26)]
    assert measured([(0, 0, 120), (1, 90, 120), *slow]).seconds_left == pytest.approx(5, rel=0.1)


def test_time_left_grows_while_nothing_moves():
    moving = [(0, 0, 10), (1, 1, 10)]
    assert measured(moving).seconds_left == pytest.approx(9)
    late = [measured([*moving, (idle, None, None)]).seconds_left for idle in (1, 4, 40)]
    assert late == pytest.approx([8, 8 * 5 / 2, 8 * 41 / 2]), "as if the second of the ten came now"


def test_time_left_counts_down_until_the_next_step_is_due():
    steps = [(0, 0, 4), (10, 1, 4), (10, 2, 4)]  # ten seconds each
    left = [measured([*steps, (idle, None, None)]).seconds_left for idle in (0, 3, 9, 10, 11)]
    assert left[:4] == pytest.approx([20, 17, 11, 10])
    assert left[4] == pytest.approx(1 * 31 / 3)


def test_nothing_is_claimed_when_all_should_have_been_done():
    steps = [(0, 0, 4), (10, 1, 4), (10, 2, 4), (10, 3, 4)]
    assert measured([*steps, (9, None, None)]).seconds_left == pytest.approx(1)
    assert measured([*steps, (10.5, None, None)]).seconds_left is None, "it takes longer than was thought"
    assert measured([*steps, (10, 4, 4)]).seconds_left is None, "what comes now is not counted"
    uneven = [(0, 0, 10), (4, 4, 10), (4, 8, 10)]
    assert measured([*uneven, (3, None, None)]).seconds_left is None, "the last step is smaller than the others"


def test_another_phase_starts_the_estimate_anew():
    loading = [(0, 0, 2), (60, 1, 2), (60, 2, 2)]
    assert measured([*loading, (0, 0, 100)]).seconds_left is None
    assert measured([*loading, (0, 0, 100), (2, 20, 100)]).seconds_left == pytest.approx(8)


def test_nothing_is_claimed_before_there_is_anything_to_go_by():
    assert measured([(0, 0, 100), (0.1, 50, 100)]).seconds_left is None
    assert measured([(5, 0, 0)]).seconds_left is None
    assert measured([(5, None, None)]).fraction == 0


def test_ended_jobs_are_kept_but_not_for_ever(registry):
    jobs = [ended(registry.submit(i, str(i), lambda progress: None)) for i in range(10)]
    last = ended(registry.submit("last", "last", lambda progress: None))
    assert len(registry.all()) <= 4
    assert registry.get(jobs[0].id) is None
    assert registry.get(last.id) is last


def test_close_stops_running_and_queued_work_and_refuses_more():
    registry = JobRegistry()
    begun = threading.Event()

    def work(progress):
        begun.set()
        while True:
            progress.check()

    running, queued = registry.submit("a", "a", work), registry.submit("b", "b", work)
    assert begun.wait(WAIT)
    assert registry.close(WAIT)
    assert (running.state, queued.state) == (CANCELLED, CANCELLED)
    with pytest.raises(ExpertScopeError, match="shutting down"):
        registry.submit("c", "c", work)


def test_an_unused_registry_has_no_thread_and_closes():
    before = threading.active_count()
    registry = JobRegistry()
    assert threading.active_count() == before
    assert registry.close(0)
