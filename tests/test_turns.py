"""Whose turn it is: one at a time, short work gets in between the steps of long work, another model ends it."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest

from core.errors import Cancelled
from core.progress import Progress
from core.turns import LONG, SHORT, Asked, GaveWay, Turns, order

WAIT = 10.0


class Inside:
    """Fails when two are inside at once."""

    def __init__(self) -> None:
        self.now, self.order = 0, []

    def __call__(self, who: str) -> None:
        self.now += 1
        assert self.now == 1
        self.order.append(who)
        time.sleep(0.01)
        self.now -= 1


class Stop(Progress):
    """Asked to stop once `go` is set."""

    def __init__(self) -> None:
        self.go, self.said = threading.Event(), []

    def update(self, done, total, label=""):
        self.said.append(label)

    def check(self):
        if self.go.is_set():
            raise Cancelled()


def in_thread(work):
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def until(condition):
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def wanted(turns):
    return [asked.wanted for asked in turns.waiting()]


def test_long_work_lets_short_work_on_the_same_model_in_and_keeps_its_place():
    turns, inside, threads = Turns(), Inside(), []

    def short(who):
        with turns.short("a"):
            inside(who)

    with turns.long("a") as let_in:
        for step in range(4):
            if step == 2:
                threads += [in_thread(lambda n=n: short(f"short {n}")) for n in range(3)]
                until(lambda: len(turns._asking) == 3)
            let_in()
            inside(f"long {step}")
        threads.append(in_thread(lambda: short("after")))
        until(lambda: len(turns._asking) == 1)
        assert "after" not in inside.order
    for thread in threads:
        thread.join(WAIT)
    assert inside.order[:2] == ["long 0", "long 1"] and inside.order[5:] == ["long 2", "long 3", "after"]
    assert sorted(inside.order[2:5]) == ["short 0", "short 1", "short 2"]


def test_short_work_on_another_model_begins_only_after_long_work_let_go_of_its_own():
    turns, order = Turns(), []

    def other():
        with turns.short("b"):
            order.append("short b")

    def same():
        with turns.short("a"):
            order.append("short a")
            in_thread(other)
            until(lambda: "b" in wanted(turns))

    with pytest.raises(GaveWay), turns.long("a") as let_in:
        in_thread(same)
        until(lambda: wanted(turns) == ["a"])
        try:
            let_in()
        finally:
            order.append("long gave way")
    until(lambda: len(order) == 3)
    assert order == ["short a", "long gave way", "short b"]
    until(lambda: not turns._asking)
    with turns.long("a"):  # and again
        order.append("long")
    assert order[-1] == "long"


def test_who_waits_can_be_stopped_and_says_what_it_waits_for():
    turns, stop, raised = Turns(), Stop(), []

    def wait(enter):
        try:
            with enter("b", stop):
                raise AssertionError("not its turn")
        except Cancelled:
            raised.append(True)

    with turns.long("a"):
        waiting = [in_thread(lambda: wait(turns.short)), in_thread(lambda: wait(turns.long))]
        until(lambda: len(stop.said) == 2)
        stop.go.set()
        for thread in waiting:
            thread.join(WAIT)
    assert raised == [True, True] and "waiting for others" in stop.said
    assert not turns._asking
    with turns.short("c"):
        pass


def test_stopping_while_others_are_let_in_takes_the_turn_back_first():
    turns, stop, release = Turns(), Stop(), threading.Event()
    entered, order = threading.Event(), []

    def short():
        with turns.short("a"):
            entered.set()
            assert release.wait(WAIT)
            order.append("short ends")

    with pytest.raises(Cancelled), turns.long("a", stop) as let_in:
        in_thread(short)
        until(lambda: turns._asking)
        in_thread(lambda: (entered.wait(WAIT), stop.go.set(), time.sleep(0.1), release.set()))
        try:
            let_in()
        finally:
            order.append("long ends")
    assert order == ["short ends", "long ends"]


class Clock:
    """A clock that the test turns."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def asked(*names: str, rank: int = SHORT) -> list[Asked]:
    """Who asked, in this order, a second apart; the first letter is the model that is wanted."""
    return [Asked(name, name[0], float(i), rank) for i, name in enumerate(names)]


@pytest.mark.parametrize(
    ("near", "term", "expected"),
    [
        ("a", False, "b1 a1 b2 a2 c1"),
        ("a", True, "a1 a2 b1 b2 c1"),
        ("b", True, "b1 b2 a1 a2 c1"),
        ("bc", True, "b1 b2 c1 a1 a2"),
        ("", True, "b1 a1 b2 a2 c1"),
    ],
)
def test_who_asked_first_is_first_but_in_a_models_term_what_wants_a_loaded_one(near, term, expected):
    waiting = asked("b1", "a1", "b2", "a2", "c1")
    waiting[1:1] = [Asked("study", "a", -5.0, LONG)]
    found = order(waiting, lambda wanted: wanted in near, term=term)
    assert [a.key for a in found] == [*expected.split(), "study"]


def served(jobs: list[tuple[float, str]], *, work: float, load: float) -> tuple[list[str], list[str], dict[str, float]]:
    """(names in the order of their turns, models in the order in which they were loaded, when each began): `jobs` are
    (second at which it is asked, name), each computes for `work` seconds, a model loads in `load` seconds."""
    clock, loads, done, begun = Clock(), [], [], {}
    clock.now = 0.0
    left = [Asked(name, name[0], at, SHORT) for at, name in jobs]

    def queue():
        return [a for a in left if a.since <= clock.now]

    turns = Turns(queue=queue, near=lambda wanted: wanted == (loads or [""])[-1], clock=clock)
    while left:
        if not queue():
            clock.now = min(a.since for a in left)
        first = turns.waiting()[0]
        left.remove(first)
        with turns.short(first.wanted, asked=first):
            if first.wanted not in loads[-1:]:
                clock.now += load
                loads.append(first.wanted)
                turns.loaded(load)
            begun[first.key] = clock.now
            clock.now += work
            done.append(first.key)
    return done, loads, begun


def test_two_viewers_who_click_in_turns_do_not_change_the_model_with_every_click():
    jobs = [(0.1 * i, f"{'ab'[i % 2]}{i}") for i in range(60)]
    done, loads, begun = served(jobs, work=1.0, load=5.0)
    assert sorted(done) == sorted(name for _, name in jobs)
    assert len(loads) <= 1 + 60 / 10, "each time at least ten seconds of work for five of loading"
    for model in "ab":  # first come, first served among those who want the same
        mine = [name for name in done if name[0] == model]
        assert mine == sorted(mine, key=lambda name: int(name[1:]))


def test_nobody_waits_longer_than_a_term_for_those_who_came_later():
    jobs = [(float(i), f"a{i}") for i in range(60)] + [(3.5, "b")]
    done, loads, begun = served(sorted(jobs), work=0.9, load=5.0)
    assert loads[:2] == ["a", "b"]
    assert begun["b"] <= 5 + 2 * 5 + 0.9 + 5, "loading of a, its term, the work that was begun in it, loading of b"
    later = [name for name in done[: done.index("b")] if int(name[1:]) > 3]
    assert later, "within the term of the model just loaded they went first"


def test_a_larger_question_has_its_time_before_it_gives_way_to_another_model():
    clock, near = Clock(), {"a"}
    turns = Turns(near=lambda wanted: wanted in near, clock=clock)
    stop = Stop()
    with contextlib.suppress(GaveWay), turns.paused("a", patience=4.0) as let_in:
        thread = in_thread(lambda: wait_for(turns, "b", stop))
        until(lambda: wanted(turns) == ["b"])
        let_in()
        clock.now += 3.9
        let_in()
        turns.loaded(1.0)  # and a term lasts as well
        clock.now += 1.9
        let_in()
        clock.now += 0.2
        with pytest.raises(GaveWay):
            let_in()
        stop.go.set()
        thread.join(WAIT)
    assert not turns.waiting()


def wait_for(turns, model, stop):
    with contextlib.suppress(Cancelled), turns.short(model, stop):
        pass


def test_work_that_pauses_lets_those_in_whose_model_is_loaded_beside_its_own():
    turns, entered = Turns(near=lambda wanted: wanted in "ab"), threading.Event()

    def other():
        with turns.short("b"):
            entered.set()

    with turns.long("a") as let_in:
        thread = in_thread(other)
        until(lambda: wanted(turns) == ["b"])
        let_in()
        thread.join(WAIT)
        assert entered.is_set() and turns.inside.wanted == "a"


def test_a_queue_that_was_let_in_is_served_to_its_end(monkeypatch):
    """The next one of a queue asks a moment after the one before is done: long work waits for that."""
    monkeypatch.setattr("core.turns.FOLLOW", WAIT)
    turns, order = Turns(), []

    def queue():
        for name in ("first", "second", "third"):
            with turns.short("m"):
                order.append(name)
            time.sleep(0.02)
        monkeypatch.setattr("core.turns.FOLLOW", 0.0)

    def long():
        with turns.long("m") as let_others_in:
            worker = in_thread(queue)
            until(lambda: turns._asking)
            let_others_in()
            order.append("step")
            worker.join(WAIT)

    thread = in_thread(long)
    thread.join(3 * WAIT)
    assert order == ["first", "second", "third", "step"]
