"""A fresh dashboard process on a free port, with a home of its own: for the browser tests and for the viewers.

Knows how to start and end it, and what it wrote; nothing of what is asked of it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 120.0
"""Seconds that a busy machine may take to start it."""


class NotStarted(RuntimeError):
    """The process ended, or did not answer in time; the message is what it wrote."""


@dataclass
class Server:
    """A dashboard process, its address, and the file with what it wrote."""

    url: str
    process: subprocess.Popen
    log: Path

    def link(self, page: str = "", **params: object) -> str:
        return f"{self.url}/{page}?{urlencode(params)}"

    @property
    def said(self) -> str:
        """All that it wrote so far."""
        return self.log.read_text("utf-8", "replace")


@contextlib.contextmanager
def serve(
    folder: Path, *, options: Sequence[str] = (), environment: Mapping[str, str] | None = None,
    script: Sequence[str] = ("serve.py",),
) -> Iterator[Server]:  # fmt: skip
    """A server with its store in `folder`/home and its log in `folder`/log; `options` are Streamlit's, `script` is what
    Python runs.

    Ended at the end of the block, killed where it does not end within half a minute. Raises `NotStarted`.
    """
    port = _free_port()
    command = [sys.executable, *script, "--server.port", str(port), "--server.headless", "true", *options]
    variables = os.environ | {"EXPERTSCOPE_HOME": str(folder / "home")} | dict(environment or {})
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=log, stderr=subprocess.STDOUT)
    server = Server(f"http://127.0.0.1:{port}", process, folder / "log")
    try:
        _wait_for(server)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _wait_for(server: Server) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(f"{server.url}/_stcore/health", timeout=1) as reply:
                if reply.read() == b"ok":
                    return
        except OSError:
            pass
        if server.process.poll() is not None or time.monotonic() > deadline:
            raise NotStarted(f"the server did not start:\n{server.said}")
        time.sleep(0.02)
