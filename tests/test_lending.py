"""One store, two processes: the one that keeps it open lends it to the one that waits, and has it back afterwards."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from cache import Store
from cache.lending import ask, asked, patiently
from cache.studies import Studies
from core.errors import StoreBusy
from core.workbench import Workbench

KEEPS = """
import sys, time
from cache import Store
store = Store.open(sys.argv[1])
if sys.argv[2] == "lends":
    store.lend()
print("open", flush=True)
while sys.stdin.readline().strip() == "put":
    store.put_verdict("theirs", "m", {"n": store.get_verdict("theirs")["n"] + 1 if store.get_verdict("theirs") else 1})
    print("done", flush=True)
"""


@pytest.fixture
def keeper(tmp_path, request):
    """Starts another process that keeps the store open."""
    begun = []

    def start(how: str):
        command = [sys.executable, "-c", KEEPS, str(tmp_path / "store.duckdb"), how]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        begun.append(subprocess.Popen(command, cwd=request.config.rootpath, **pipes))
        assert begun[-1].stdout.readline() == "open\n"
        return begun[-1]

    yield start
    for process in begun:
        process.communicate("", timeout=60)


def put(process) -> None:
    process.stdin.write("put\n")
    process.stdin.flush()
    assert process.stdout.readline() == "done\n"


def add(book: Studies, name: str) -> None:
    book.add(name, model="m", settings={}, plan={}, provenance={}, state="done", progress={})


def test_who_lends_and_who_waits_write_in_turn_and_nothing_is_lost(tmp_path, keeper):
    other = keeper("lends")
    book = Studies(tmp_path / "store.duckdb", wait_seconds=30.0)
    for n in range(3):
        add(book, f"study {n}")
        put(other)
    assert [r.name for r in book.all()] == ["study 0", "study 1", "study 2"]
    with patiently(lambda: Store.open(tmp_path / "store.duckdb"), 30.0, path=tmp_path / "store.duckdb") as store:
        assert store.get_verdict("theirs") == {"n": 3}


def test_who_does_not_lend_keeps_it(tmp_path, keeper):
    keeper("keeps")
    with pytest.raises(StoreBusy):
        Studies(tmp_path / "store.duckdb", wait_seconds=0.5).all()
    assert asked(tmp_path / "store.duckdb")


def test_two_dashboards_share_a_store(tmp_path, keeper):
    other = keeper("lends")
    bench = Workbench.open(tmp_path / "store.duckdb")
    assert not bench.store_status().error
    put(other)
    add(Studies(tmp_path / "store.duckdb", wait_seconds=30.0), "mine")
    assert [s.name for s in bench.studies.all()] == ["mine"]
    bench.close()


def test_a_transaction_under_way_is_not_cut(tmp_path):
    path = tmp_path / "store.duckdb"
    store = Store.open(path)
    store.lend()
    book, inside, go = Studies(path), threading.Event(), threading.Event()
    found = []

    def slow(cursor):
        inside.set()
        assert go.wait(30.0)
        return cursor.execute("SELECT 42").fetchall()[0][0]

    thread = threading.Thread(target=lambda: found.append(store._database.read(slow)))
    thread.start()
    assert inside.wait(30.0)
    ask(path)
    time.sleep(0.3)
    assert store._database._connection is not None
    go.set()
    thread.join(30.0)
    assert found == [42]
    deadline = time.monotonic() + 30.0
    while store._database._connection is not None:
        ask(path)
        assert time.monotonic() < deadline
        time.sleep(0.02)
    add(book, "after")  # it opens again by itself
    assert [r.name for r in book.all()] == ["after"]
    store.close()
