"""A server process of its own for browser tests, its address, and waiting for a page in Chromium."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Page, expect

ROOT = Path(__file__).resolve().parent.parent
SLOW = 120_000  # milliseconds; a busy machine loads and checks the model first
CHARTS = '[data-testid="stVegaLiteChart"]'


@dataclass
class Server:
    """A fresh server process and its address."""

    url: str
    process: subprocess.Popen

    def link(self, page: str = "", **params) -> str:
        return f"{self.url}/{page}?{urlencode(params)}"


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """A fresh server with the store in `folder`/home. Fails where it wrote a traceback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (folder / "log").open("w+")
    command = [sys.executable, "serve.py", "--server.port", str(port), "--server.headless", "true"]
    environment = os.environ | {"EXPERTSCOPE_HOME": str(folder / "home")}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
    server = Server(f"http://127.0.0.1:{port}", process)
    deadline = time.monotonic() + SLOW / 1000
    while True:
        try:
            assert urllib.request.urlopen(f"{server.url}/_stcore/health", timeout=1).read() == b"ok"
            break
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                log.seek(0)
                pytest.fail(f"the server did not start:\n{log.read()}")
            time.sleep(0.1)
    yield server
    process.terminate()
    assert process.wait(30) is not None
    log.seek(0)
    said = log.read()
    assert "Traceback" not in said, said[-6000:]


def settled(page: Page, charts: int) -> None:
    """The script has run to its end, nothing computes, and so many charts are drawn."""
    expect(page.locator(CHARTS).locator("svg.marks")).to_have_count(charts, timeout=SLOW)
    expect(page.locator('[data-testid="stProgress"]')).to_have_count(0, timeout=SLOW)
    expect(page.locator('[data-testid="stApp"]')).to_have_attribute(
        "data-test-script-state", "notRunning", timeout=SLOW
    )
