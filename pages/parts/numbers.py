"""Numbers that take a moment to be counted from a result (intervals, say): in a job, not in the page's own thread.

No model is needed for them, so they have a queue of their own. Knows no numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from core import formats
from core.derived import DerivedResult
from core.errors import ExpertScopeError
from core.jobs import FAILED, Job

from . import address, base, in_line, pictures, text

LANE = "numbers"
PATIENCE = 2.0
"""Seconds that the page waits before it shows progress instead."""
_AGAIN = "es_counted_again"


def of(name: str, count: Callable[..., Any], result: DerivedResult, *args: Any, **options: Any) -> Any:
    """`count(result, *args, **options)`, remembered with the result; None while it is counted, or where that failed
    (the page says so). `name`: what a person calls the numbers.
    """
    again: dict[str, int] = st.session_state.setdefault(_AGAIN, {})

    def submit(result: DerivedResult, *args: Any, attempt: int, **options: Any) -> Job:
        key = (count.__module__, count.__name__, result.request, args, tuple(sorted(options.items())))
        jobs = base.workbench().jobs
        return jobs.submit(key, name, lambda progress: count(result, *args, **options), lane=LANE)

    submit.__name__ = f"job of {count.__module__}.{count.__name__}"
    try:
        job: Job = pictures.kept(submit, result, *args, attempt=again.get(name, 0), **options)
    except ExpertScopeError as error:
        st.error(text.error(error))
        return None
    if not in_line.waited(job, PATIENCE):
        _counting(job)
    elif job.state == FAILED:
        st.error(text.error(job.error))
        if st.button("Try again", key=f"es_again_{name}", on_click=address.touch, icon=":material/refresh:"):
            again[name] = again.get(name, 0) + 1
            address.rerun()
    return job.result


@st.fragment(run_every=0.5)
def _counting(job: Job) -> None:
    if job.wait(0):
        address.rerun()
        return
    status = job.status()
    words = f"Counting {status.title} · {formats.duration(status.elapsed)} so far"
    st.progress(status.fraction, text=text.plain(words if status.elapsed else f"Counting {status.title}"))
