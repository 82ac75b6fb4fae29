"""From a question to its answer on a page: at once from the store, else by a job with progress and cancel.

Nothing is computed in the page's own thread. A job starts by itself where that is quick and asked for by the page
itself (a model that is loaded already, or the demo where no model has to go for it that took long to load); otherwise a
button says what it will take.
"""

from __future__ import annotations

from typing import Any, overload

import streamlit as st

from core import formats
from core.derived import DerivedRequest, DerivedResult
from core.errors import ExpertScopeError, InputError, ModelRefused
from core.jobs import CANCELLED, DONE, FAILED, Job
from core.requests import TraceRequest
from core.results import TraceResult
from core.workbench import LOADED, Request

from . import base, in_line, model_panel, state, text, viewer, waiting

AUTO_DRAWS = 50
"""Up to this many draws a trace starts without a click."""
PATIENCE = 0.3
"""Seconds that a page waits for a short job before it shows progress instead."""


@overload
def answer(
    request: TraceRequest, slot: str, *, auto: bool = True, place: str = ""
) -> tuple[TraceResult | None, bool]: ...
@overload
def answer(
    request: DerivedRequest, slot: str, *, auto: bool = True, place: str = ""
) -> tuple[DerivedResult | None, bool]: ...
def answer(request: Request, slot: str, *, auto: bool = True, place: str = "") -> tuple[Any, bool]:
    """(the result, computed just now), or (None, False) after showing why there is none and what can be done.

    `slot` names the place on the page: a new question in the same place lets go of the old one's job. `auto`: what is
    quick starts by itself; False: nothing does. `place`: what a person calls it, where a page has two for one thing.
    """
    bench = base.workbench()
    jobs: dict[str, str] = st.session_state.setdefault("es_jobs", {})
    job = bench.jobs.get(jobs.get(slot, ""))
    mine = job is not None and job.key == request
    try:
        found = bench.lookup(request)
    except ExpertScopeError as error:
        _problem(error)
        return None, False
    if found is None and not mine:
        if job is not None and list(jobs.values()).count(job.id) == 1:  # else another place waits for it too
            bench.jobs.release(job.id, viewer.me())
        job = bench.pending(request)
        if job is not None or (auto and _starts_by_itself(request)) or _button(request, slot):
            job = _submit(request, slot)  # or joins it
        mine = job is not None
    if found is None and mine:
        in_line.waited(job, PATIENCE)
        if job.state == DONE:
            found = job.result
    if found is not None:
        return found, bool(mine and job.state == DONE)
    if job is None or not mine:
        return None, False
    if job.state in (FAILED, CANCELLED) or given_up(job):
        _ended(job, request, slot, place)
    else:
        progress(job.id, slot, place)
    return None, False


def _submit(request: Request, slot: str) -> Job | None:
    """The job; None after saying why there can be none."""
    try:
        job = base.workbench().submit(request, owner=viewer.me())
    except ExpertScopeError as error:
        _problem(error)
        return None
    st.session_state["es_jobs"][slot] = job.id
    return job


def _starts_by_itself(request: Request) -> bool:
    bench = base.workbench()
    quick = request.model.name == "demo" and bench.in_the_way(request.model) is None
    quick = quick or bench.model_state(request.model).state == LOADED
    return quick and _draws(request) <= AUTO_DRAWS


def _draws(request: Request) -> int:
    return request.draws if isinstance(request, TraceRequest) else int(request.get().get("draws", 1))


def _button(request: Request, slot: str) -> bool:
    """Ask before anything heavy."""
    model = base.workbench().model_state(request.model)
    need = f" It takes about {formats.size(model.memory)} of memory." if model.memory else ""
    what = "trace" if isinstance(request, TraceRequest) else "compute"
    place = st.empty()
    with place.container(border=True):
        about = "" if isinstance(request, TraceRequest) else f" ({request.title})"
        st.markdown(f"**{text.plain(f'{model_panel.called(request.model)} has not been asked this yet{about}.')}**")
        if model.state != LOADED:
            st.markdown(f"{text.plain(model.detail)}{need}")
            if note := model_panel.in_its_place(request.model):
                st.markdown(note)
        if (draws := _draws(request)) > AUTO_DRAWS:
            st.markdown(f"{draws} draws are asked for.")
        clicked = st.button(
            what.capitalize() if model.state == LOADED else f"Load the model and {what}", type="primary",
            key=f"es_start_{slot}", on_click=state.touch,
        )  # fmt: skip
    if clicked:
        place.empty()
    return clicked


def _ended(job: Job, request: Request, slot: str, place: str) -> None:
    """There is no answer, and why; `job`: it failed, was cancelled, or goes on for others only."""
    if job.state == FAILED:
        _problem(job.error)
        if isinstance(job.error, InputError | ModelRefused):
            return  # the same question would end in the same way
    else:
        cancelled(job, place)
    if st.button("Try again", key=f"es_again_{slot}", on_click=state.touch, icon=":material/refresh:"):
        if _submit(request, slot) is not None:
            state.rerun()


def given_up(job: Job) -> bool:
    """Whether this tab wants the job no more, which goes on for others."""
    return job.status().active and not job.stopping and viewer.me() not in job.owners


def cancelled(job: Job, place: str = "") -> None:
    """Say that there is no answer because this tab, or everybody, wants none."""
    more = "Another viewer waits for it too, so it goes on." if given_up(job) else "What was finished before is kept."
    st.info(f"Cancelled: {text.plain(_called(job, place))}. {more}", icon=":material/cancel:")


def _called(job: Job, place: str) -> str:
    return f"{place} · {job.title}" if place else job.title


def _problem(error: ExpertScopeError) -> None:
    st.error(text.error(error))


@st.fragment(run_every=0.5)
def progress(job_id: str, slot: str, place: str = "") -> None:
    """A job's progress with time left and cancel; the whole page is drawn again when it ends. `slot`, `place`: see
    `answer`; one job may be waited for in two places."""
    bench = base.workbench()
    job = bench.jobs.get(job_id)
    if job is None or not job.status().active:
        state.rerun()
        return
    status, standing = job.status(), bench.waiting(job_id, viewer.me())
    if standing is not None:
        words = waiting.words(standing)
    else:
        words = f"{status.label or 'starting'} · {formats.duration(status.elapsed)} so far"
        if status.seconds_left is not None:
            words += f" · {formats.duration(status.seconds_left, about=True)} left"
    with st.container(border=True, horizontal=True, vertical_alignment="bottom"):
        st.progress(status.fraction, text=text.plain(f"{_called(job, place)}: {words}"))
        if job.stopping:
            st.button("Stopping…", disabled=True, key=f"es_stop_{slot}_{job_id}")
        elif st.button("Cancel", key=f"es_cancel_{slot}_{job_id}"):
            bench.jobs.release(job_id, viewer.me())
            state.rerun()
