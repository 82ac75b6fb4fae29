"""Clean shutdown of a real server: SIGTERM (or SIGINT) while it is idle, traces, studies, or loads a model.

`python tests/closing.py FOLDER [MOMENT ...]` prints for each moment how long the process took to go and its exit
status, and ends with an error where the status is not 0, the log has a traceback, or the store has lost an answer that
was acknowledged. `MOMENTS` lists what it can do.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from sessions import Session  # noqa: E402

from cache import Store  # noqa: E402
from cache.holdings import Holdings  # noqa: E402
from cache.studies import Studies  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
WAIT = 120.0
MOST_DRAWS = 50
"""So many start without a click."""


class Life:
    """One server process with the store in `folder`/home."""

    def __init__(self, folder: Path) -> None:
        self.store, self.log = folder / "home" / "store.duckdb", folder / "log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "serve.py", "--server.port", str(port), "--server.headless", "true"]
        environment = os.environ | {"EXPERTSCOPE_HOME": str(self.store.parent)}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        self.url = f"http://127.0.0.1:{port}"
        self.sessions: list[Session | socket.socket] = []
        self.until(self._answers)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=1).read() == b"ok"
        except OSError:
            return False

    def until(self, condition: Callable[[], bool], every: float = 0.02) -> None:
        deadline = time.monotonic() + WAIT
        while not condition():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(every)

    def look(self, page: str = "", **params: object) -> Session:
        self.sessions.append(Session(self.url, page, **params))
        return self.sessions[-1]

    def events(self, name: str, **fields: object) -> list[dict]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [x for x in lines if x.get("event") == name and fields.items() <= x.items()]

    def end(self, signal_number: int) -> tuple[float, int]:
        """(seconds until the process was gone, its exit status)."""
        begun = time.monotonic()
        self.process.send_signal(signal_number)
        status = self.process.wait(WAIT)
        return time.monotonic() - begun, status


def idle(life: Life) -> None:
    """Nobody has come yet."""


def page(life: Life) -> None:
    """A viewer has an answer on the screen."""
    life.look()
    life.until(lambda: bool(life.events("job ended", state="done")))


def trace(life: Life) -> None:
    """A trace of many draws is computed for one viewer, another one has an answer on the screen."""
    page(life)
    life.look(draws=MOST_DRAWS)
    life.until(lambda: len(life.events("job begun")) == 2)
    time.sleep(0.3)


def study(life: Life) -> None:
    """A study is measured."""
    page(life)
    life.look("Study").click("Start the demo study")
    life.until(lambda: bool(life.events("job begun", lane="study")))
    life.until(lambda: any(Studies(life.store).part_names(record.name) for record in Studies(life.store).all()), 0.5)


def loading(life: Life) -> None:
    """The first viewer's model is imported, loaded or checked."""
    life.look()
    life.until(lambda: bool(life.events("job begun")))


def importing(life: Life) -> None:
    """The first viewer's page was just drawn: torch and transformers are being imported."""
    session = life.look()
    session.until(lambda: session.finished > 0)


def asleep(life: Life) -> None:
    """A viewer has an answer on the screen; the machine of another one sleeps, its connection is there still."""
    page(life)
    host, port = life.url.removeprefix("http://").split(":")
    line = socket.create_connection((host, int(port)))
    upgrade = {
        "Host": f"{host}:{port}",
        "Origin": life.url,
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    head = ["GET /_stcore/stream HTTP/1.1", *(f"{name}: {value}" for name, value in upgrade.items()), "", ""]
    line.sendall("\r\n".join(head).encode())
    assert b" 101 " in line.recv(100)
    life.sessions.append(line)


MOMENTS = {f.__name__: f for f in (idle, page, trace, study, loading, importing, asleep)}


def close_at(folder: Path, moment: str, signal_number: int = signal.SIGTERM) -> tuple[float, int]:
    """Let a server live up to that moment and end it; (seconds, exit status). Raises AssertionError for what was lost,
    and for a traceback."""
    folder.mkdir(parents=True)
    life = Life(folder)
    try:
        MOMENTS[moment](life)
        said = len(life.events("job ended", state="done"))
        how = life.end(signal_number)
    finally:
        life.process.kill()
        life.process.wait()
        for session in life.sessions:
            session.close()
    text = life.log.read_text()
    assert not any(word in text for word in ("Traceback", "Fatal", "leaked")), text[-6000:]
    if said:  # the log begins with the first page
        assert life.events("ended"), "the process came to its end in another way"
    path = life.store
    if path.exists():
        Store.open(path).close()
        held = Holdings(path).answers() + Holdings(path).derived()
        assert len(held) >= said, f"{said} answers were acknowledged, {len(held)} are there"
        for record in Studies(path).all():
            assert Studies(path).parts(record.name)
    else:
        assert not said
    return how


if __name__ == "__main__":
    for name in sys.argv[2:] or MOMENTS:
        for number in (signal.SIGTERM, signal.SIGINT):
            seconds, status = close_at(Path(sys.argv[1]) / f"{name}-{number.name}", name, number)
            print(f"{name:10} {number.name}  gone after {seconds:.2f} s, exit status {status}", flush=True)
            assert status == 0
