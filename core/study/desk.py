"""Studies as the pages see them: how each stands, starting, going on, stopping, what was found, files.

Work goes on in two threads of its own: one measures (a study after the other, giving way to whoever waits for a trace),
one reads what was found. The truth is the store, so that a study of another process is seen too. No Streamlit; what
needs pandas or torch is imported when it is first called.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import Cancelled, ExpertScopeError, StoreError
from ..jobs import RUNNING, Job, JobRegistry, JobStatus
from ..progress import Progress, Share
from ..requests import Fact, ModelSpec
from ..turns import GaveWay
from . import data
from .settings import StudySettings

if TYPE_CHECKING:
    from .findings import Findings

KEPT_FINDINGS = 6

LongWork = Callable[[ModelSpec, Progress], AbstractContextManager[tuple[Any, Callable[[], None]]]]


@dataclass(frozen=True)
class StudyStatus:
    """How a study stands now. `state`: of `core.study.data`; `note`: why it failed; `label`: what is being done;
    `fraction`: 0 to 1; `progress`: see `core.study.reporting.Reporter.snapshot`; `stopping`: it was asked to stop;
    `created`: microseconds since 1970."""

    name: str
    state: str
    settings: dict[str, Any]
    model: str
    note: str
    label: str
    fraction: float
    progress: Mapping[str, Any]
    created: int
    stopping: bool

    @property
    def active(self) -> bool:
        """Whether somebody works on it, or is about to."""
        return self.state in ("queued", "running")


class StudyDesk:
    """See the module. Methods may be called from any thread; what they raise for a person is an ExpertScopeError."""

    def __init__(self, book: Any, long_work: LongWork, *, store_error: str = "") -> None:
        """`book`: a `cache.studies.Studies`, or None (then `store_error` says why); `long_work`: `Workbench`'s."""
        self._book, self._long_work = book, long_work
        self._store_error = store_error
        self._jobs, self._readers = JobRegistry(keep=20), JobRegistry(keep=1)  # what they keep is large
        self._lock = threading.Lock()
        self._latest: dict[str, Job] = {}
        self._findings: OrderedDict[tuple, Findings] = OrderedDict()

    # -- how they stand -----------------------------------------------------------------------------------------

    def all(self) -> list[StudyStatus]:
        """Every study, the latest first."""
        with self._lock:
            jobs = {name: (job, job.status()) for name, job in self._latest.items()}
        return [self._status(record, *jobs.get(record.name, (None, None))) for record in reversed(self._stored().all())]

    def status(self, name: str) -> StudyStatus | None:
        """One study, or None where there is none of that name."""
        job = self._job(name)
        now = None if job is None else job.status()  # before the record, so that one that ends meanwhile is not lost
        record = self._stored().find(name)
        return None if record is None else self._status(record, job, now)

    def _status(self, record: Any, job: Job | None, now: JobStatus | None) -> StudyStatus:
        state = None
        if job is None or now is None or not now.active:
            state = data.state_of(self._stored(), record)
            if state == data.INTERRUPTED:  # or it ended between reading the record and finding it idle
                record = self._stored().find(record.name) or record
                state = data.state_of(self._stored(), record)
        label, fraction = record.progress.get("label", ""), float(record.progress.get("fraction", 0.0))
        if state in (data.QUEUED, data.RUNNING):  # by another process
            label = record.note or label
        stopping = record.stop
        if job is not None and now is not None and now.active:
            state = data.RUNNING if now.state == RUNNING else data.QUEUED
            label, fraction = now.label or label, max(fraction, now.fraction)
            stopping = stopping or job.stopping
        return StudyStatus(
            record.name, state, record.settings, str(record.provenance.get("model", record.model)), record.note, label,
            fraction, record.progress, record.created, stopping,
        )  # fmt: skip

    # -- measuring ----------------------------------------------------------------------------------------------

    def start(self, name: str, settings: StudySettings, facts: Sequence[Fact]) -> str:
        """Begin a new study; its name without white space at the ends. Raises `InputError` naming the field that is
        wrong: the name, or facts that do not fit the settings."""
        data.create(self._stored(), name, settings, facts)
        self._submit(name.strip(), settings.model)
        return name.strip()

    def resume(self, name: str) -> None:
        """Go on with a study that is not finished."""
        from .manage import check_idle

        self._check_idle(name)
        check_idle(self._stored(), name)
        self._submit(name, StudySettings.from_dict(self._stored().get(name).settings).model)

    def cancel(self, name: str) -> None:
        """Ask a study to stop, wherever it runs; what is done is kept."""
        from .manage import cancel

        job = self._job(name)
        if job is not None and job.status().active:
            job.cancel()
            if not job.wait(0):
                return  # it sees to the rest itself
        cancel(self._stored(), name)

    def _job(self, name: str) -> Job | None:
        with self._lock:
            return self._latest.get(name)

    def _submit(self, name: str, spec: ModelSpec) -> None:
        job = self._jobs.submit(
            ("study", name), name, lambda progress: self._measure(name, spec, progress), lane="study"
        )
        with self._lock:
            self._latest[name] = job

    def _measure(self, name: str, spec: ModelSpec, progress: Progress) -> None:
        while True:
            try:
                return self._turn(name, spec, progress)
            except GaveWay:
                progress.update(0, 1, "giving way to a trace of another model")

    def _turn(self, name: str, spec: ModelSpec, progress: Progress) -> None:
        """Measure until the end, or until someone else needs the place of the model."""
        with contextlib.ExitStack() as stack:
            try:
                # waiting and loading are no part of the study that is done
                before = Share(progress, 0.0, 0.0, 1.0)
                model, between = stack.enter_context(self._long_work(spec, before))
            except Cancelled:
                self._stored().update(name, state=data.CANCELLED)
                raise
            except ExpertScopeError as error:
                self._stored().update(name, state=data.FAILED, note=str(error))
                raise
            except Exception as error:
                note = f"Unexpected failure: {type(error).__name__}. The server's log has the details."
                self._stored().update(name, state=data.FAILED, note=note)
                raise
            from .run import run

            run(self._stored(), model, name, progress=progress, between=between)

    def measuring(self) -> str:
        """The name of a study that this process works on or is about to, or empty."""
        with self._lock:
            return next((name for name, job in self._latest.items() if job.status().active), "")

    # -- results ------------------------------------------------------------------------------------------------

    def findings(self, name: str) -> Findings | None:
        """What was found so far, if it was read in this state of the study already (see `read`)."""
        key = _key(self._stored().get(name))
        with self._lock:
            if key in self._findings:
                self._findings.move_to_end(key)
            return self._findings.get(key)

    def read(self, name: str) -> Job:
        """A job after which `findings` knows the study, unless it went on meanwhile; its result is what was found."""

        def work(progress: Progress) -> Findings:
            from . import findings

            progress.update(0, 2, "reading the study")
            record = self._stored().get(name)
            study = data.assemble(record, self._stored().parts(name))
            progress.check()
            progress.update(1, 2, "bootstrap and sign flips")
            found = findings.of_study(study)
            with self._lock:
                self._findings[_key(record)] = found
                while len(self._findings) > KEPT_FINDINGS:
                    self._findings.popitem(last=False)
            return found

        return self._readers.submit(("findings", name), name, work, lane="findings")

    def reading(self, name: str) -> JobStatus | None:
        """How far the reading of a study's results is; None where nobody reads."""
        job = self._readers.find(("findings", name))
        return None if job is None else job.status()

    # -- keeping ------------------------------------------------------------------------------------------------

    def rename(self, name: str, new: str) -> str:
        """Give a study that is not running another name; that name."""
        from .manage import rename

        self._check_idle(name)
        rename(self._stored(), name, new)
        self._forget(name)
        return new.strip()

    def delete(self, name: str) -> None:
        """Remove a study that is not running."""
        from .manage import delete

        self._check_idle(name)
        delete(self._stored(), name)
        self._forget(name)

    def export(self, name: str) -> bytes:
        """The study as one file, for `import_file` here or elsewhere."""
        from .archive import pack

        return pack(self._stored(), name)

    def import_file(self, content: bytes, *, name: str | None = None) -> str:
        """Put an exported study into the store, under `name` or its own; that name."""
        from .archive import unpack

        return unpack(self._stored(), content, name=name)

    def stop(self) -> None:
        """Ask all work to stop, and take no more."""
        self._readers.stop()
        self._jobs.stop()

    def close(self, timeout: float = 5.0) -> None:
        """Stop all work, waiting at most `timeout` seconds for it; what is done is kept."""
        self.stop()
        self._jobs.close(timeout)

    # -- inside -------------------------------------------------------------------------------------------------

    def _stored(self) -> Any:
        if self._book is None:
            raise StoreError(f"There is no store to keep studies in. {self._store_error}".strip())
        return self._book

    def _check_idle(self, name: str) -> None:
        """Raises `InputError` where this process works on the study, or will."""
        job = self._job(name)
        if job is not None and job.status().active:
            raise data.running_already(name)

    def _forget(self, name: str) -> None:
        with self._lock:
            self._latest.pop(name, None)


def _key(record: Any) -> tuple:
    """What says that a study's results are the same: `updated` changes with everything that is committed."""
    return record.id, record.name, record.updated
