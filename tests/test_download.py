"""Fetching a model, from a hub of our own on this machine: what comes, how much, stopping in the middle, what is
said."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from core import download as module
from core.download import download
from core.errors import Cancelled, ModelError
from core.progress import Progress

COMMIT = "c0ffee" + 34 * "0"
NAME = "lab/tiny"
FILES = {"config.json": b"{}", "model.safetensors": bytes(4_000_000), "run.py": b"print()"}
WAIT = 30.0


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as the library asks for. Of the weights the second half waits for `go`."""

    go = threading.Event()

    def do_HEAD(self) -> None:  # noqa: N802 - the library's name
        self.do_GET()

    def do_GET(self) -> None:  # noqa: N802
        path = self.path.split("?")[0]
        if path.startswith(f"/api/models/{NAME}/revision/"):
            return self._json({"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]})
        if path.startswith(f"/api/models/{NAME}/tree/"):
            return self._json([
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in FILES.items()
            ])  # fmt: skip
        if path.startswith(f"/{NAME}/resolve/"):
            return self._file(path.rsplit("/", 1)[1])
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()

    def _json(self, data: object) -> None:
        body = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _file(self, name: str) -> None:
        data = FILES[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            half = len(data) // 2
            self.wfile.write(data[:half])
            if name == "model.safetensors":
                self.wfile.flush()
                self.go.wait(WAIT)
            self.wfile.write(data[half:])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    from huggingface_hub import constants

    Hub.go.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    here, template = f"http://127.0.0.1:{server.server_port}", constants.HUGGINGFACE_CO_URL_TEMPLATE
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template.replace(constants.ENDPOINT, here))
    monkeypatch.setattr(constants, "ENDPOINT", here)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    monkeypatch.setattr(module, "_LOOK", 0.02)
    yield Hub
    Hub.go.set()
    server.shutdown()
    server.server_close()


class Told(Progress):
    """What was said; `at`: what is done when so much has come."""

    def __init__(self, at=lambda: None) -> None:
        self.labels: list[str] = []
        self.at = at

    def update(self, done: float, total: float, label: str = "") -> None:
        self.labels.append(label)

    def check(self) -> None:
        if self.labels and "downloading" in self.labels[-1]:
            self.at()


def test_a_model_comes_and_it_is_said_how_much(hub):
    told = Told(hub.go.set)
    folder = download(NAME, None, told)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: data for name, data in FILES.items() if name != "run.py"
    }
    assert told.labels[0] == "looking for the model's files"
    assert re.fullmatch(r"downloading the model, 0\.00 GB so far", told.labels[-1])


def test_it_stops_in_the_middle_and_goes_on_the_next_time(hub):
    def stop():
        raise Cancelled()

    with pytest.raises(Cancelled):
        download(NAME, None, Told(stop))
    assert not hub.go.is_set(), "the rest was not waited for"
    hub.go.set()
    assert (download(NAME, None, Told()) / "model.safetensors").stat().st_size == len(FILES["model.safetensors"])


def test_what_the_hub_does_not_have_is_said(hub):
    with pytest.raises(ModelError, match="The hub has no model lab/none"):
        download("lab/none", None, Told())
