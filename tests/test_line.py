"""Few at a time: who has a place, who waits and for how long; and every page of the app stands in line."""

import importlib
import threading
import time
from pathlib import Path

import pytest

from core.jobs import JobRegistry
from core.line import Line
from pages.parts import in_line

LONG = 30.0


def entering(line, inside, n):
    """Threads that come in one after the other, each notes itself and stays until its event is set."""
    exits = [threading.Event() for _ in range(n)]

    def visit(i):
        with line.place():
            inside.append(i)
            exits[i].wait(LONG)

    threads = []
    for i in range(n):
        threads.append(threading.Thread(target=visit, args=(i,), daemon=True))
        threads[-1].start()
        until(lambda: len(inside) + len(line._waiting) == len(threads))
    return exits, threads


def until(true):
    deadline = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_the_others_wait_and_come_in_the_order_in_which_they_came():
    line, inside = Line(2, patience=LONG), []
    exits, threads = entering(line, inside, 5)
    assert inside == [0, 1]
    for leaves, then in ((1, [0, 1, 2]), (0, [0, 1, 2, 3]), (2, [0, 1, 2, 3, 4])):
        exits[leaves].set()
        until(lambda then=then: inside == then)
    for leave in exits:
        leave.set()
    for thread in threads:
        thread.join(LONG)
    assert line._free == 2 and not line._waiting


def test_nobody_is_kept_out_by_one_who_takes_long():
    line = Line(1, patience=0.1)
    exits, (thread,) = entering(line, [], 1)
    for _ in range(2):
        begun = time.monotonic()
        with line.place():
            assert 0.1 <= time.monotonic() - begun < LONG
    exits[0].set()
    thread.join(LONG)
    assert line._free == 1 and not line._waiting, "who came in without a place gives none back"


def test_who_waits_for_something_else_makes_room_and_stands_in_line_again():
    line, inside = Line(1, patience=LONG), []
    with line.place():
        with line.outside():
            (leave,), (thread,) = entering(line, inside, 1)
            assert inside == [0]
            threading.Timer(0.05, leave.set).start()
        thread.join(LONG)
        assert line._free == 0, "the place is taken again"
    assert line._free == 1
    with line.outside():
        assert line._free == 1, "who has none has none to give"


@pytest.mark.parametrize("inside", [True, False])
def test_a_page_that_ends_early_gives_its_place_back(inside):
    class Stopped(BaseException):
        """As Streamlit ends a script."""

    def draw():
        if inside:
            with in_line.LINE.outside():
                raise Stopped
        raise Stopped

    for _ in range(2 * in_line.AT_ONCE):
        with pytest.raises(Stopped):
            in_line.drawn(draw)()
    assert in_line.LINE._free == in_line.AT_ONCE


def test_a_job_is_waited_for_outside_the_line():
    jobs, free, done = JobRegistry(), [], threading.Event()
    job = jobs.submit("k", "title", lambda progress: done.wait(LONG))

    def draw():
        threading.Timer(0.05, lambda: (free.append(in_line.LINE._free), done.set())).start()
        assert in_line.waited(job, LONG)
        free.append(in_line.LINE._free)

    in_line.drawn(draw)()
    assert free == [in_line.AT_ONCE, in_line.AT_ONCE - 1]
    jobs.close()


def test_every_page_stands_in_line():
    for script in [Path("app.py"), *sorted(Path("pages").glob("*.py"))]:
        lines = script.read_text("utf-8").splitlines()
        (module,) = [line.split()[-1] for line in lines if line.startswith("from pages.parts")]
        draw = importlib.import_module(f"pages.parts.{module}").draw
        assert draw.__code__ is in_line.drawn(lambda: None).__code__, script
