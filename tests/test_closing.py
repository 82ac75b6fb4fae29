"""The process is gone soon after SIGTERM or SIGINT, whatever it does, and what was acknowledged is there afterwards."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from closing import close_at

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals")

SOON = 10.0
"""Seconds. `make closing` prints what it really takes; here other tests have the machine too."""

STUBBORN = """
import threading, time
from core import closing
signal_handler_of_another = lambda number, frame: time.sleep({handler})
import signal
signal.signal(signal.SIGTERM, signal_handler_of_another)
closing.at_end(lambda seconds: print("first", flush=True))
closing.at_end(lambda seconds: (print("second", flush=True), time.sleep({closer})))
closing.at_end(lambda seconds: 1 / 0)
closing.end_soon()
threading.Thread(target=time.sleep, args=(60,)).start()
async def hold():
    print("ready", flush=True)
    time.sleep(60)
{run}(hold())
"""


@pytest.mark.parametrize("run", ["import asyncio; asyncio.run", "import uvloop; uvloop.run"])
@pytest.mark.parametrize(
    ("handler", "closer", "closed"), [(60, 0, ["second", "first"]), (0, 60, ["second"])],
    ids=["the main thread is held up", "closing is held up"],
)  # fmt: skip
def test_neither_the_main_thread_nor_others_nor_a_slow_end_holds_the_process_up(handler, closer, closed, run):
    code = STUBBORN.format(handler=handler, closer=closer, run=run)
    root = Path(__file__).resolve().parent.parent
    process = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=50)
    assert (process.returncode, said.split()) == (0, closed)
    assert time.monotonic() - begun < SOON


def test_a_process_that_ends_by_itself_closes_too():
    code = "from core import closing; closing.at_end(lambda seconds: print(seconds)); closing.end_soon()"
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "5.0\n"


@pytest.mark.parametrize(
    ("moment", "number"), [("study", signal.SIGTERM), ("loading", signal.SIGINT), ("asleep", signal.SIGTERM)]
)
def test_a_server_at_work_goes_and_keeps_what_it_said(tmp_path, moment, number):
    seconds, status = close_at(tmp_path / "life", moment, number)
    assert status == 0 and seconds < SOON
