"""Whose turn it is: one at a time, short work gets in between the steps of long work, another model ends it."""

from __future__ import annotations

import threading
import time

import pytest

from core.errors import Cancelled
from core.progress import Progress
from core.turns import GaveWay, Turns

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
            until(lambda: "b" in turns._asking.values())

    with pytest.raises(GaveWay), turns.long("a") as let_in:
        in_thread(same)
        until(lambda: list(turns._asking.values()) == ["a"])
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
    assert raised == [True, True] and "waiting for other work to pause" in stop.said
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
