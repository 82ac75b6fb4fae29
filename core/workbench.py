"""What the pages talk to, one per process: the store, the loaded models, the jobs, the tokenizers.

Looking something up is quick and needs no loaded model; computing happens in the job worker only. Importing this
module loads neither torch nor transformers: `warm_up` fetches them in a thread of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib
import logging
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

from . import catalog, prompt_store
from .bounded import Bounded, values_in
from .deployment import allowed, check_allowed, is_allowed, listed, models_in_memory
from .derived import DerivedRequest, DerivedResult, derive
from .derived import from_store as derived_from_store
from .errors import ExpertScopeError, InputError, StoreError
from .fact_lists import FactListDesk
from .jobs import Job, JobRegistry
from .logs import event
from .progress import SILENT, Pausing, Progress
from .quantisation import INT8, INT8_BYTES
from .queueing import Standing, standing
from .requests import Fact, ModelSpec, TraceRequest
from .residents import Residents
from .results import TraceResult
from .stored import StoredDesk
from .study.desk import StudyDesk
from .tokenizer_files import Tokenizers
from .turns import PAUSED, SHORT, Asked, GaveWay, Turns

log = logging.getLogger(__name__)

LOADED, ON_DISK, NOT_HERE = "loaded", "on disk", "not here"
KEPT_RESULTS, KEPT_VALUES = 48, 10**7
"""How many answers stay in memory, and how many values in their tables together (about 8 bytes each)."""
TRACES, DERIVED = "", "derived"
"""The queue of what is more than a trace."""
MODELS = "models"
"""The queue of loading and unloading by hand."""
RANKS = {TRACES: SHORT, DERIVED: PAUSED, MODELS: SHORT}
"""The queues whose jobs take turns."""
PATIENCE = 2.0
"""Seconds that a larger question has before it gives way to another model, twice as many each time that it had to."""
QUICK = 5.0
"""Seconds of loading from which on a model is not unloaded for what nobody clicked on."""
OPEN_SECONDS = 3.0
"""How long opening waits for a store that another process (a study on a command line) has open for a moment."""


Request = TraceRequest | DerivedRequest


@dataclass(frozen=True)
class Engine:
    """The functions that compute, imported when they are first called. Tests pass their own."""

    load_model: Callable[..., Any]
    trace_many: Callable[..., list[TraceResult]]
    from_store: Callable[..., TraceResult | None]
    derive: Callable[..., DerivedResult] = derive
    derived_from_store: Callable[..., DerivedResult | None] = derived_from_store


def real_engine() -> Engine:
    """The engine of this package."""

    def late(module: str, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return getattr(importlib.import_module(f".{module}", __package__), name)(*args, **kwargs)

        return call

    return Engine(late("models", "load_model"), late("trace", "trace_many"), late("trace", "from_store"))


@dataclass(frozen=True)
class ModelState:
    """Where a model is. `state`: loaded, on disk or not here; `detail`: a sentence; `memory`: bytes it takes."""

    state: str
    detail: str
    memory: int | None


@dataclass(frozen=True)
class StoreStatus:
    """How full the store is, in bytes; `models`: (name, bytes), most first; `error`: why there is none."""

    size: int = 0
    contents: int = 0
    limit: int = 0
    models: tuple[tuple[str, int], ...] = ()
    error: str = ""


class Workbench:
    """See the module. All methods may be called from any thread."""

    def __init__(
        self,
        store: Any,
        *,
        engine: Engine | None = None,
        jobs: JobRegistry | None = None,
        studies: Any = None,
        fact_lists: Any = None,
        holdings: Any = None,
        store_error: str = "",
    ) -> None:
        """`store`: a `cache.store.Store`, or None (then nothing outlives the process and `store_error` says why); of
        the same store or None: `studies` (`cache.studies.Studies`), `fact_lists` (`cache.fact_lists.FactLists`),
        `holdings` (`cache.holdings.Holdings`)."""
        self.jobs = jobs or JobRegistry()
        self._store = store
        self._store_error = store_error
        self._own_engine = engine is None
        self._engine = engine or real_engine()
        self._lock = threading.Lock()
        self.setting_problem = ""
        try:
            most = models_in_memory()
        except InputError as error:
            most, self.setting_problem = 1, f"{error} One model is kept in memory."
        self.residents = Residents(self._engine.load_model, most=most)
        self._turns = Turns(queue=self._queue, near=lambda wanted: self.residents.get(wanted) is not None)
        self._results = Bounded(KEPT_RESULTS, KEPT_VALUES)
        self._prompts: dict[str, tuple[str, ...]] = {}  # where there is no store
        self._warm: threading.Thread | None = None
        self.tokenizers = Tokenizers(self._imported)
        self.studies = StudyDesk(studies, self.long_work, store_error=store_error)
        self.fact_lists = FactListDesk(fact_lists, store_error=store_error)
        self.stored = StoredDesk(holdings, store, self._results.clear, store_error=store_error)

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None = None) -> Workbench:
        """With the store at `path` (default: its usual place). A store that cannot be opened is reported, not fatal."""
        from cache import Store
        from cache.fact_lists import FactLists
        from cache.holdings import Holdings
        from cache.lending import patiently
        from cache.studies import Studies

        studies = Studies(path)
        try:
            store = patiently(lambda: Store.open(path), OPEN_SECONDS, path=studies.path)
            store.lend()
            return cls(store, studies=studies, fact_lists=FactLists(path), holdings=Holdings(path))
        except StoreError as error:
            return cls(None, store_error=str(error))

    # -- results ------------------------------------------------------------------------------------------------

    @overload
    def lookup(self, request: TraceRequest) -> TraceResult | None: ...
    @overload
    def lookup(self, request: DerivedRequest) -> DerivedResult | None: ...
    def lookup(self, request: Request) -> TraceResult | DerivedResult | None:
        """The stored answer, or None. Raises ExpertScopeError for a fact that has none (no such subject, ...), and for
        a model that viewers may not load."""
        check_allowed(request.model)
        if (known := self._results.get(request)) is not None:
            return known
        if self._store is None:
            return None
        derived = isinstance(request, DerivedRequest)
        find = self._engine.derived_from_store if derived else self._engine.from_store
        found = find(self._store, request)
        return None if found is None else self._keep(request, found)

    def submit(self, request: Request, *, owner: Hashable | None = None) -> Job:
        """Have the request answered by a job worker: load the model where needed, compute, store.

        The job's result is the `TraceResult` or `DerivedResult`. Asking for the same thing again joins the unfinished
        job. What is more than a trace waits in a queue of its own, so that traces need not wait for it.
        """
        if isinstance(request, DerivedRequest):
            lane, title, work = DERIVED, request.title, self._derive
        else:
            lane, title, work = TRACES, f"{request.fact.subject.strip()} → {request.fact.true.strip()}", self._answer
        return self.jobs.submit(
            request, title, lambda progress: work(request, progress), owner=owner, lane=lane, needs=request.model,
            takes_turns=True,
        )  # fmt: skip

    def pending(self, request: Request) -> Job | None:
        """The unfinished job for this request, if there is one."""
        return self.jobs.find(request)

    def waiting(self, job_id: str, viewer: Hashable) -> Standing | None:
        """What a job waits for, as `viewer` may know it; None where it does not wait for its turn."""
        job = self.jobs.get(job_id)
        if job is None or job.lane not in RANKS or not job.status().waits:
            return None
        inside = self._turns.inside
        return standing(
            job, viewer, waiting=self._turns.waiting(), inside=inside,
            inside_job=None if inside is None else self.jobs.get(str(inside.key)),
            there=[resident.spec for resident in self.residents.all()], most=self.residents.most,
        )  # fmt: skip

    def _queue(self) -> list[Asked]:
        return [
            _asked(job) for job in self.jobs.all() if job.waits and job.lane in RANKS and job.status().active
            and not job.stopping
        ]  # fmt: skip

    def _derive(self, request: DerivedRequest, progress: Progress) -> DerivedResult:
        """Compute with pauses in which traces are let in; begun anew where one of them needs another model."""
        patience = PATIENCE
        while True:
            found = self.lookup(request)
            if found is not None:
                return found
            try:
                asked = self._asked_for(request)
                with self._turns.paused(request.model, progress, asked=asked, patience=patience) as let_others_in:
                    result = self._engine.derive(
                        self._load(request.model, progress), request, store=self._store,
                        progress=Pausing(progress, let_others_in),
                    )  # fmt: skip
                return self._keep(request, result)
            except GaveWay:
                patience *= 2
                progress.update(0, 1, "giving way to a trace of another model")
                progress.turn(waits=True)

    def _answer(self, request: TraceRequest, progress: Progress) -> TraceResult:
        found = self.lookup(request)
        if found is not None:
            return found
        with self._turns.short(request.model, progress, asked=self._asked_for(request)):
            model = self._load(request.model, progress)
            result = self._engine.trace_many(model, [request], store=self._store, progress=progress)[0]
        return self._keep(request, result)

    def _asked_for(self, key: Hashable) -> Asked | None:
        """How the queue knows the job that works on `key`."""
        job = self.jobs.find(key)
        return None if job is None else _asked(job)

    @contextlib.contextmanager
    def long_work(self, spec: ModelSpec, progress: Progress) -> Iterator[tuple[Any, Callable[[], None]]]:
        """(the loaded model, a function) for work that takes long: the function is called between two steps of it, and
        lets those in who wait for an answer. Raises `core.turns.GaveWay` there when one of them wants another model;
        then this block has to be left, and entered again."""
        with self._turns.long(spec, progress) as let_others_in:
            yield self._load(spec, progress), let_others_in

    def _load(self, spec: ModelSpec, progress: Progress) -> Any:
        check_allowed(spec)
        self._imported(progress)  # two threads that import torch's relatives at once get half of them
        new = self.residents.get(spec) is None
        resident = self.residents.bring(spec, progress, keep=self._turns.held, store=self._store)
        if new:
            self._turns.loaded(resident.seconds)
        return resident.model

    @property
    def loaded(self) -> ModelSpec | None:
        """The model in memory, as it was asked for; of several the one that was used last."""
        return next((resident.spec for resident in self.residents.all()), None)

    def load(self, spec: ModelSpec, *, owner: Hashable | None = None) -> Job:
        """Have a model brought into memory, in place of the one that is there, or beside it where that is allowed."""
        key = _loading(spec)

        def work(progress: Progress) -> None:
            with self._turns.short(spec, progress, asked=self._asked_for(key)):
                self._load(spec, progress)

        title = f"Loading {spec.name}"
        return self.jobs.submit(key, title, work, owner=owner, lane=MODELS, needs=spec, takes_turns=True)

    def loading(self, spec: ModelSpec) -> Job | None:
        """The unfinished job of `load`, if there is one."""
        return self.jobs.find(_loading(spec))

    def unload(self, spec: ModelSpec | None = None, *, owner: Hashable | None = None) -> Job:
        """Have the memory that a model takes given back, or that of all.

        Raises `InputError` while something is computed, for that would load the model again.
        """
        active = [job for job in self.jobs.all() if job.lane in (TRACES, DERIVED) and job.status().active]
        busy = [job.title for job in active if spec is None or job.needs == spec]
        busy += [f"the study {name}" for name in [self.studies.measuring()] if name]
        if busy:
            raise InputError(f"The model is at work: {busy[0]}.", "Cancel that first, or wait for its end.")
        key = ("unload", spec)

        def work(progress: Progress) -> None:
            with self._turns.short(None, progress, asked=self._asked_for(key)):
                self.residents.drop(spec)

        return self.jobs.submit(key, "Unloading", work, owner=owner, lane=MODELS, takes_turns=True)

    def in_the_way(self, spec: ModelSpec) -> ModelSpec | None:
        """A model that took long to load and would be unloaded for `spec`; None where there is none."""
        if self.residents.get(spec) is not None or self.residents.most > 1:
            return None
        return next((resident.spec for resident in self.residents.all() if resident.seconds > QUICK), None)

    def _keep(self, request: Request, result: Any) -> Any:
        # the question is the one that was asked: the engine's copy names the loaded model's own settings
        return self._results.keep(request, dataclasses.replace(result, request=request, cached=True), values_in(result))

    # -- models -------------------------------------------------------------------------------------------------

    def catalogue(self) -> list[catalog.CatalogEntry]:
        """The bundled model, the known ones, and what else is on this machine."""
        entries = allowed()
        if entries is None:
            return catalog.catalogue()
        known = [entry for entry in catalog.catalogue() if is_allowed(entry.id, entries)]
        names = {entry.id for entry in known}
        return known + [catalog.entry(name) for name in listed(entries) if name not in names]

    def model_state(self, spec: ModelSpec) -> ModelState:
        """Where the model is; reads folders only."""
        if not is_allowed(spec.name, allowed(), revision=spec.revision):
            return ModelState(NOT_HERE, "This dashboard does not load it.", None)
        entry = catalog.entry(spec.name, revision=spec.revision)
        memory = entry.memory(INT8_BYTES if spec.quantisation == INT8 else None)
        if (resident := self.residents.get(spec)) is not None:
            model = resident.model
            how = getattr(model, "remark", "") or f"In memory, ready. {getattr(model, 'quantisation', '')}"
            return ModelState(LOADED, how.strip(), memory)
        state = ON_DISK if entry.state == catalog.HERE else NOT_HERE
        return ModelState(state, catalog.whereabouts(entry, spec.revision), memory)

    def live(self, fact: Fact, spec: ModelSpec, *, special_tokens: str, object_tokens: str, first_token: bool) -> Any:
        """`core.typed.live` with the model's tokenizer: how a fact that is being typed would be read.

        Needs the tokenizer's files only. Raises ModelError where they are not on this machine.
        """
        from .typed import live

        tokenizer, max_length = self.tokenizers.of(spec)
        return live(
            tokenizer, fact, special_tokens=special_tokens, object_tokens=object_tokens, first_token=first_token,
            max_length=max_length,
        )  # fmt: skip

    def keep_prompts(self, prompts: Sequence[str]) -> str:
        """Keep a list of pasted prompts under its content key, so that a link can name it; the key."""
        key = prompt_store.key_of(prompts)
        if self._store is None:
            self._prompts[key] = tuple(prompts)
        else:
            prompt_store.keep(self._store, prompts)
        return key

    def prompts(self, key: str) -> tuple[str, ...] | None:
        """The prompts under a key, or None where they are not kept here."""
        return self._prompts.get(key) if self._store is None else prompt_store.find(self._store, key)

    # -- the store ----------------------------------------------------------------------------------------------

    def store_status(self) -> StoreStatus:
        """Size, limit and the models' shares."""
        if self._store is None:
            return StoreStatus(error=self._store_error or "There is no store.")
        try:
            models = tuple(self._store.shares())
            return StoreStatus(self._store.size(), sum(size for _, size in models), self._store.limit, models)
        except ExpertScopeError as error:
            return StoreStatus(error=str(error))

    def clear_store(self, model: str | None = None) -> None:
        """Forget everything of one model (as `store_status` names it), or all."""
        if self._store is not None:
            self._store.clear(model)
        self._results.clear()

    def set_store_limit(self, limit_bytes: int) -> None:
        """Keep at most this many bytes, for now and later."""
        if self._store is not None:
            self._store.set_limit(limit_bytes)

    # -- life ---------------------------------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Import what computes in a daemon thread, so that the first page need not wait for it. Once."""
        with self._lock:
            if self._warm is not None:
                return
            warm = threading.Thread(target=_import_engine, name="expertscope-warm-up", daemon=True)
            warm.start()
            self._warm = warm

    def _imported(self, progress: Progress = SILENT) -> None:
        if self._own_engine:
            self.warm_up()  # the first question may come before it: nothing else may import at the same time
        while self._warm is not None and self._warm.is_alive():
            progress.update(0, 1, "importing torch and transformers")
            progress.check()
            self._warm.join(0.1)

    def close(self, timeout: float = 5.0) -> None:
        """Stop all work, waiting at most `timeout` seconds for it, close the store, let go of the models."""
        until = time.monotonic() + timeout
        self.studies.stop()
        self.jobs.close(timeout)
        self.studies.close(max(until - time.monotonic(), 0.0))
        if self._store is not None:
            self._store.close()
        self.residents.drop()


def _asked(job: Job) -> Asked:
    return Asked(job.id, job.needs, job.since, RANKS[job.lane])


def _loading(spec: ModelSpec) -> Hashable:
    return "load", spec


def _import_engine() -> None:
    begun = time.monotonic()
    try:
        for name in (".trace", ".missing", ".models"):
            importlib.import_module(name, __package__)
        importlib.import_module("transformers").AutoTokenizer  # noqa: B018 - resolves a lazy import
    except Exception:  # the job that needs it meets the same error and reports it
        log.exception("warm-up failed")
    # A closed tab's session is a cycle that holds memory and three open files until Python looks for old cycles, and it
    # does that when a quarter as much has come as is there. The libraries are half a million objects: left out of it
    # (and with them the one or two tabs that are open by now).
    gc.collect()
    gc.freeze()
    gc.collect()  # counts anew what is there
    event(log, "engine imported", seconds=round(time.monotonic() - begun, 1))
