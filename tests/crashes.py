"""kill -9 at random moments of everything that writes: traces, studies, migrations, eviction, export.

`python tests/crashes.py FOLDER KILLS SEED`. Every life is a forked process that says through a pipe what it has
finished (what a person would have seen), and is killed after a random number of signs of life; one that ends before
that does not count, and what it made is made anew. After each death another process opens the store and compares:
everything that was said is there and right, nothing is there by half. Prints one line per death and ends with an error
at the first difference.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import old_stores  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402

import core.facts  # noqa: E402
from cache import Store  # noqa: E402
from cache.studies import Studies  # noqa: E402
from core.identity import remember_identity  # noqa: E402
from core.models import load_model  # noqa: E402
from core.progress import Progress  # noqa: E402
from core.requests import TraceRequest  # noqa: E402
from core.study.archive import pack, unpack  # noqa: E402
from core.study.data import create  # noqa: E402
from core.study.run import run  # noqa: E402
from core.study.settings import preset  # noqa: E402
from core.tables import write_file, write_table  # noqa: E402
from core.trace import from_store, trace_many  # noqa: E402

FACTS = 12
LIMIT = 600_000
"""Bytes that the store of the eviction may keep: a few answers."""

KINDS = ("trace", "evict", "study", "migrate", "export")


class Crashes:
    """The folder, the model, and for every kind of work what was said to be finished so far."""

    def __init__(self, folder: Path, seed: int) -> None:
        torch.set_num_threads(1)  # a forked process must not inherit a pool of threads
        self.folder = folder
        self.model = load_model("demo", dtype="float32", device="cpu")
        self.requests = [TraceRequest(fact, model=self.model.spec) for fact in core.facts.bundled()[:FACTS]]
        self.truth = [trace_many(self.model, [request])[0] for request in self.requests]
        self.rng = random.Random(seed)
        self.said: dict[str, list[str]] = {kind: [] for kind in KINDS}
        self.longest = dict.fromkeys(KINDS, 60)  # signs of life before a kill
        self.begin_anew("study")
        fork(lambda: old_stores.make(self.path("old"), 1))

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.duckdb"

    def begin_anew(self, kind: str) -> None:
        """Where all work of a kind is done, so that there is something to write."""
        if kind in ("trace", "study"):
            self.said[kind].clear()
            self.path(kind).unlink(missing_ok=True)
        if kind == "study":
            fork(lambda: create(Studies(self.path(kind)), "killed", preset("demo", n=200), core.facts.bundled()))

    # -- lives: each says what it has finished -----------------------------------------------------------------------

    def trace(self, say: Callable[[str], None], beat: Progress) -> None:
        self._trace("trace", None, say, beat)

    def evict(self, say: Callable[[str], None], beat: Progress) -> None:
        self._trace("evict", LIMIT, say, beat)

    def _trace(self, name: str, limit: int | None, say: Callable[[str], None], beat: Progress) -> None:
        with Store.open(self.path(name), limit_bytes=limit) as store:
            remember_identity(store, self.model.spec, self.model.identity, label=self.model.label)
            order = random.sample(range(FACTS), FACTS)
            for number in order:
                trace_many(self.model, [self.requests[number]], store=store, progress=beat)
                say(str(number))
                if limit is not None and number % 3 == 0:  # also while the whole file is written anew
                    store.compact()

    def study(self, say: Callable[[str], None], beat: Progress) -> None:
        studies = Studies(self.path("study"))

        class Parts(Progress):
            def update(self, done: float, total: float, label: str = "") -> None:
                beat.update(done, total, label)
                say(",".join(f"{stage}-{number}" for stage, number in sorted(studies.part_names("killed"))))

        run(studies, self.model, "killed", progress=Parts())

    def migrate(self, say: Callable[[str], None], beat: Progress) -> None:
        fresh, copy = self.path("migrate"), self.path("copy")
        for _ in range(20):
            shutil.copyfile(self.path("old"), copy)  # takes its time, and is not what is tested
            fresh.unlink(missing_ok=True)
            fresh.with_name(fresh.name + ".wal").unlink(missing_ok=True)
            copy.replace(fresh)
            beat.update(0, 1)
            Store.open(fresh).close()
            say("migrated")

    def export(self, say: Callable[[str], None], beat: Progress) -> None:
        for number, result in enumerate(self.truth):
            write_table(result.frame, self.folder / "table.parquet")
            say(f"table {number}")
            if Studies(self.path("study")).get("killed").provenance:
                write_file(pack(Studies(self.path("study")), "killed"), self.folder / "study.zip")
                say("study")

    # -- deaths ------------------------------------------------------------------------------------------------------

    def death(self, kind: str) -> None:
        """Let processes of that kind begin until one of them is killed."""
        while not self.life(kind):
            self.begin_anew(kind)

    def life(self, kind: str) -> bool:
        """Let one process of that kind begin and kill it; whether it was not faster."""
        read, write = os.pipe()

        def life() -> None:
            os.close(read)
            random.seed(self.rng.random())
            getattr(self, kind)(lambda text: send(write, f"said {text}\n"), Beat(write))

        beats = self.rng.randint(1, self.longest[kind])
        child = forked(life)
        os.close(write)
        heard = b""
        while heard.count(b"\n") < beats and (got := os.read(read, 4096)):
            heard += got
        time.sleep(self.rng.uniform(0.0, 0.03))
        os.kill(child, signal.SIGKILL)
        while got := os.read(read, 65536):
            heard += got
        os.close(read)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL), f"{kind}: {code}"
        lines = heard.decode().split("\n")[:-1]  # a line without its end was not said
        self.said[kind] += [line.removeprefix("said ") for line in lines if line.startswith("said ")]
        fork(lambda: getattr(self, f"check_{kind}")())
        self.longest[kind] = max(4, len(lines)) if code == 0 else min(2 * self.longest[kind], 60)
        return code != 0

    def check_trace(self) -> None:
        with Store.open(self.path("trace")) as store:
            for number in {int(text) for text in self.said["trace"]}:
                self._whole(from_store(store, self.requests[number]), number)
            for number, request in enumerate(self.requests):
                if (found := from_store(store, request)) is not None:
                    self._whole(found, number)

    def check_evict(self) -> None:
        with Store.open(self.path("evict")) as store:
            assert store.contents_bytes() <= LIMIT
            assert not list(self.folder.glob("evict*.compact-*"))
            if self.said["evict"]:
                latest = int(self.said["evict"][-1])
                self._whole(from_store(store, self.requests[latest]), latest)
            for number, request in enumerate(self.requests):
                if (found := from_store(store, request)) is not None:
                    self._whole(found, number)

    def _whole(self, found, number: int) -> None:  # noqa: ANN001
        assert found is not None, f"the answer {number} is lost"
        pd.testing.assert_frame_equal(found.frame, self.truth[number].frame, check_exact=True)
        pd.testing.assert_frame_equal(found.routing, self.truth[number].routing, check_exact=True, check_dtype=False)

    def check_study(self) -> None:
        names = {f"{stage}-{number}" for stage, number in Studies(self.path("study")).part_names("killed")}
        said = {name for text in self.said["study"] for name in text.split(",") if name}
        assert said <= names, said - names

    def check_migrate(self) -> None:
        path = self.path("migrate")
        if not path.exists():
            return
        with Store.open(path) as store:
            old_stores.assert_the_first_traces(path, store)

    def check_export(self) -> None:
        table, archive = self.folder / "table.parquet", self.folder / "study.zip"
        if any(text.startswith("table") for text in self.said["export"]):
            frame = pd.read_parquet(table)
            assert any(len(frame) == len(result.frame) for result in self.truth)
        if "study" in self.said["export"]:
            copy = Studies(self.folder / f"copy{len(self.said['export'])}.duckdb")
            assert unpack(copy, archive) == "killed"
        assert sum(path.name.startswith(".table") for path in self.folder.iterdir()) < 250


class Beat(Progress):
    """A line at every sign of life, so that the moment of a kill does not depend on how busy the machine is."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def update(self, done: float, total: float, label: str = "") -> None:
        send(self._pipe, "beat\n")


def send(pipe: int, text: str) -> None:
    os.write(pipe, text.encode())


def forked(work: Callable[[], None]) -> int:
    """Begin `work` in a forked process; its id."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException:  # noqa: BLE001
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def fork(work: Callable[[], None]) -> None:
    """Do `work` in a forked process: this one never opens a store, so that none of its locks is inherited."""
    assert os.waitstatus_to_exitcode(os.waitpid(forked(work), 0)[1]) == 0


def main(folder: str, kills: int, seed: int) -> None:
    """See the module."""
    crashes = Crashes(Path(folder), seed)
    for number in range(kills):
        kind = KINDS[number % len(KINDS)]
        crashes.death(kind)
        print(kind, "killed", len(crashes.said[kind]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:4]))
