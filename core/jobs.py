"""Background work: queues with one worker thread each, jobs that say how far they are and can be stopped.

Knows nothing of models, traces or pages: a job is a function that takes a `Progress` and returns a value. Jobs of one
lane that need the same thing (a model) are done one after the other; who computes at one moment is for the jobs to
settle (`core.turns`), because two forward passes at once on one machine are slower than one after the other and need
twice the memory. The workers are daemon threads: an unfinished job does not keep the process alive.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from .errors import Cancelled, ExpertScopeError, OutOfMemory
from .logs import event, working_on
from .progress import Progress
from .room import ran_out

log = logging.getLogger(__name__)

QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
ACTIVE = (QUEUED, RUNNING)
STEP_BACK = 5
"""How many steps of niceness a worker, and the threads that it computes with, stand behind who draws a page."""
RATE_WINDOW = 10.0
"""Seconds of the recent past from which the speed is estimated."""
IDLE = 60.0
"""Seconds after which a worker without work ends."""

Work = Callable[[Progress], Any]
Line = tuple[str, Hashable]
"""A queue: the lane, and what its jobs need."""


@dataclass(frozen=True)
class JobStatus:
    """How a job stands at one moment. Times in seconds; `seconds_left` is None where nothing honest can be said.

    `waits`: it has not come to its turn; `fraction`: done ÷ total of the current phase, 0 to 1.
    """

    id: str
    title: str
    state: str
    label: str
    done: float
    total: float
    elapsed: float
    seconds_left: float | None
    error: str
    error_next: str
    waits: bool

    @property
    def active(self) -> bool:
        """Whether the job waits or runs."""
        return self.state in ACTIVE

    @property
    def fraction(self) -> float:
        """Done ÷ total, between 0 and 1; 0 while nothing is known."""
        return min(max(self.done / self.total, 0.0), 1.0) if self.total > 0 else 0.0


class Job:
    """One piece of work. Made by `JobRegistry.submit`; read it through `status()`, `result` and `wait()`.

    `waits`: it has not come to its turn, as far as it takes turns; `since`: the clock's time from which it waits.
    """

    def __init__(
        self, key: Hashable, title: str, work: Work, *, lane: str, needs: Hashable, takes_turns: bool,
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self.id = secrets.token_hex(6)
        self.lane = lane
        self.needs = needs
        self.waits = takes_turns
        self.since = clock()
        self.key = key
        self.title = title
        self.state = QUEUED
        self.result: Any = None
        self.error: ExpertScopeError | None = None
        self.owners: set[Hashable] = set()
        self._work: Work | None = work
        self._clock = clock
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._begun: float | None = None
        self._finished: float | None = None
        self._done, self._total, self._label = 0.0, 0.0, ""
        self._marks: deque[tuple[float, float]] = deque()

    def cancel(self) -> None:
        """Ask the job to stop; a queued one is cancelled at once, a running one at its next `check()`."""
        with self._lock:
            self._stop.set()
            if self.state == QUEUED:
                self._end(CANCELLED, error=Cancelled())

    @property
    def stopping(self) -> bool:
        """Whether the job was asked to stop."""
        return self._stop.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the job has ended; False when `timeout` seconds passed first."""
        return self._ended.wait(timeout)

    def status(self) -> JobStatus:
        """A consistent picture of now."""
        with self._lock:
            now = self._finished if self._finished is not None else self._clock()
            return JobStatus(
                id=self.id,
                title=self.title,
                state=self.state,
                label=self._label,
                done=self._done,
                total=self._total,
                elapsed=now - self._begun if self._begun is not None else 0.0,
                seconds_left=self._seconds_left(now) if self.state == RUNNING else None,
                error=self.error.what if self.error else "",
                error_next=self.error.next if self.error else "",
                waits=self.state == QUEUED or (self.state == RUNNING and self.waits),
            )

    def _turn(self, waits: bool) -> None:
        with self._lock:
            if waits and not self.waits:
                self.since = self._clock()
            elif not waits:
                self._begun = self._clock()
            self.waits = waits

    def _report(self, done: float, total: float, label: str) -> None:
        with self._lock:
            now = self._clock()
            if total != self._total or done < self._done or not self._marks:
                self._marks.clear()  # another phase: its units say nothing about the former one's speed
                self._marks.append((now, done))
            elif done > self._done:
                self._marks.append((now, done))
            while len(self._marks) > 2 and now - self._marks[1][0] > RATE_WINDOW:
                self._marks.popleft()
            self._done, self._total, self._label = float(done), float(total), label

    def _seconds_left(self, now: float) -> float | None:
        """Left ÷ recent speed, counted down from the last report until the next one is due. Where that is late, as if
        it came now: a stalled job's estimate grows. None where all should have been done by now."""
        if not self._marks or self._total <= 0:
            return None
        (since, base), (last, _) = self._marks[0], self._marks[-1]
        gained, left, idle = self._done - base, self._total - self._done, now - last
        if gained <= 0 or now - since < 0.5:
            return None
        step, pace = gained / (len(self._marks) - 1), (last - since) / gained
        if idle <= step * pace:
            seconds = left * pace - idle
        else:
            seconds = (left - step) * (now - since) / (gained + step)
        return seconds if seconds > 0 else None

    def _end(self, state: str, *, result: Any = None, error: ExpertScopeError | None = None) -> None:
        self.state, self.result, self.error = state, result, error
        self._finished = self._clock()
        self._work = None
        self._ended.set()

    def _run(self) -> None:
        with self._lock:
            if self.state != QUEUED:
                return
            self.state, self._begun = RUNNING, self._clock()
            work, asked = self._work, self.since
        working_on(self.id)
        event(log, "job begun", lane=self.lane or "trace", private={"title": self.title})
        try:
            result = work(_JobProgress(self))
        except Cancelled as error:
            outcome: dict[str, Any] = {"state": CANCELLED, "error": error}
        except ExpertScopeError as error:
            outcome = {"state": FAILED, "error": error}
        except BaseException as error:  # the worker must outlive whatever a job raises
            log.exception("job failed", extra={"fields": {"private": {"title": self.title}}})
            outcome = {"state": FAILED, "error": _in_words(error)}
        else:
            outcome = {"state": DONE, "result": result}
        with self._lock:
            self._end(**outcome)
        event(
            log, "job ended", lane=self.lane or "trace", state=self.state,
            seconds=round(self._finished - self._begun, 3), waited=round(self._begun - asked, 3),
            error=type(self.error).__name__ if self.error else None, private={"title": self.title},
        )  # fmt: skip
        working_on("")


class _JobProgress(Progress):
    """The `Progress` that a job's work gets."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def update(self, done: float, total: float, label: str = "") -> None:
        self._job._report(done, total, label)

    def check(self) -> None:
        if self._job.stopping:
            raise Cancelled()

    def turn(self, *, waits: bool) -> None:
        self._job._turn(waits)


class JobRegistry:
    """All jobs of one process, and the threads that do them in the order in which they came: one for each lane and
    what its jobs need, so that who waits for a model does not hold up those who need another one."""

    def __init__(self, *, keep: int = 50, clock: Callable[[], float] = time.monotonic) -> None:
        """`keep`: how many ended jobs stay readable."""
        self._keep = keep
        self._clock = clock
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False
        self._workers: dict[Line, threading.Thread] = {}

    def submit(
        self, key: Hashable, title: str, work: Work, *, owner: Hashable | None = None, lane: str = "",
        needs: Hashable = None, takes_turns: bool = False,
    ) -> Job:  # fmt: skip
        """Queue `work`, or join the unfinished job with the same `key`. `owner`: who wants it (see `release`); `lane`
        and `needs`: which queue it waits in; `takes_turns`: it waits until it says otherwise (`Progress.turn`).

        Raises ExpertScopeError after `close()`.
        """
        with self._changed:
            if self._closed:
                raise ExpertScopeError("The server is shutting down.", "Start it again.")
            job = self._find(key)
            if job is None:
                job = Job(key, title, work, lane=lane, needs=needs, takes_turns=takes_turns, clock=self._clock)
                self._jobs[job.id] = job
                self._prune()
            if owner is not None:
                job.owners.add(owner)
            line = (job.lane, job.needs)
            if line not in self._workers:
                name = f"expertscope-jobs{job.lane and '-' + job.lane}"
                worker = threading.Thread(target=self._loop, args=(line,), name=name, daemon=True)
                self._workers[line] = worker
                worker.start()
            self._changed.notify_all()
            return job

    def get(self, job_id: str) -> Job | None:
        """The job with this id, unfinished or among the last ended ones."""
        with self._changed:
            return self._jobs.get(job_id)

    def find(self, key: Hashable) -> Job | None:
        """The unfinished job with this key that was not asked to stop."""
        with self._changed:
            return self._find(key)

    def all(self) -> list[Job]:
        """Every job that is still known, oldest first."""
        with self._changed:
            return list(self._jobs.values())

    def release(self, job_id: str, owner: Hashable) -> None:
        """`owner` no longer wants the job: it is cancelled when nobody else does."""
        with self._changed:
            job = self._jobs.get(job_id)
            if job is None or owner not in job.owners:
                return
            job.owners.discard(owner)
            if not job.owners:
                job.cancel()

    def leave(self, owner: Hashable) -> None:
        """`owner` wants nothing any more: `release` for all that it asked for and that is not finished."""
        for job in self.all():
            if job.status().active:
                self.release(job.id, owner)

    def stop(self) -> None:
        """Take no more work, and ask everything to stop."""
        with self._changed:
            self._closed = True
            for job in self._jobs.values():
                job.cancel()
            self._changed.notify_all()

    def close(self, timeout: float = 5.0) -> bool:
        """`stop`, and wait for the workers; whether they ended within `timeout` seconds."""
        self.stop()
        with self._changed:
            workers = [worker for worker in self._workers.values() if worker is not threading.current_thread()]
        until = time.monotonic() + timeout
        for worker in workers:
            worker.join(max(until - time.monotonic(), 0.0))
        return not any(worker.is_alive() for worker in workers)

    def _find(self, key: Hashable) -> Job | None:
        for job in self._jobs.values():
            if job.key == key and job.state in ACTIVE and not job.stopping:
                return job
        return None

    def _next(self, line: Line) -> Job | None:
        jobs = self._jobs.values()
        return next((job for job in jobs if (job.lane, job.needs) == line and job.state == QUEUED), None)

    def _prune(self) -> None:
        ended = [job.id for job in self._jobs.values() if job.state not in ACTIVE]
        for job_id in ended[: max(len(ended) - self._keep, 0)]:
            del self._jobs[job_id]

    def _loop(self, line: Line) -> None:
        _step_back()
        while True:
            with self._changed:
                until = time.monotonic() + IDLE
                while (job := self._next(line)) is None:
                    left = until - time.monotonic()
                    if self._closed or left <= 0:
                        del self._workers[line]
                        return
                    self._changed.wait(left)
            job._run()
            with self._changed:
                self._prune()
            del job  # and with it what it made


def _step_back() -> None:
    """Let other threads of this process go first: a page is drawn in milliseconds, and its viewer is waiting. On Linux,
    where threads have priorities of their own."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + STEP_BACK)


def _in_words(error: BaseException) -> ExpertScopeError:
    """A general sentence for what we did not foresee; the log has the rest."""
    if ran_out(error):
        return OutOfMemory()
    return ExpertScopeError(
        f"Something went wrong inside ExpertScope ({type(error).__name__}).", "The server's log has the details."
    )
