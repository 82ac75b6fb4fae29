"""The Health page: for whoever runs the server. Model, queue, store and memory, looked at anew every two seconds."""

from __future__ import annotations

import json

import pandas as pd
import streamlit as st

from core import formats, health

from . import base, display, frame, in_line, listing, navigation, text
from .listing import Column

EVERY = 2.0
"""Seconds between two looks."""
JOBS = {
    "job": Column("job"),
    "queue": Column("queue"),
    "state": Column("state"),
    "model": Column("model"),
    "done": Column("done", form=formats.progress),
    "seconds": Column("so far", form=formats.duration),
    "seconds_left": Column("left", "An estimate.", formats.duration),
}
"""Columns of the table of jobs."""


@in_line.drawn
def draw() -> None:
    """The whole page."""
    base.start_page("Health")
    with st.sidebar:
        navigation.draw()
    st.subheader("Health", anchor=False)
    st.caption("How this server is. It shows no prompts; a monitor may ask /_stcore/health whether it answers.")
    _look()
    frame.foot()


@st.fragment(run_every=EVERY)
def _look() -> None:
    now = health.look(base.workbench())
    for problem in now.problems:
        st.error(text.plain(problem))
    running = sum(job["state"] == "running" for job in now.jobs)
    with st.grid(4, min_column_width=display.pixels(190), gap="small"):
        most = now.models_at_most
        at_most = "One is kept" if most == 1 else f"At most {most} are kept, as memory allows"
        help_ = f"What is in memory, the last used first. {at_most} (EXPERTSCOPE_MODELS_IN_MEMORY)."
        st.metric("model", text.plain(now.model) or "none loaded", border=True, help=help_)
        st.metric(
            "queue", f"{running}, {len(now.jobs) - running} waiting", border=True,
            help="Traces and larger questions that are computed now, and those that wait for their turn. Studies count "
            "beside them.",
        )  # fmt: skip
        st.metric("studies", str(now.studies), border=True, help="Running or waiting.")
        st.metric("up", formats.duration(now.up), border=True, help="Since the process began.")
        st.metric("memory", formats.size(now.memory), border=True, help="Resident memory of this process.")
        free = f"{formats.size(now.memory_free)} of {formats.size(now.memory_total)}"
        st.metric("memory free", free, border=True, help="Of the machine.")
        st.metric(
            "store", f"{formats.size(now.store['contents'])} of {formats.size(now.store['limit'])}", border=True,
            help=f"The file takes {formats.size(now.store['file'])}.",
        )  # fmt: skip
        ended = ", ".join(f"{count} {state}" for state, count in sorted(now.ended.items())) or "none"
        st.metric("ended of late", ended, border=True, help="The last jobs, by how they ended.")
    if now.jobs:
        listing.show(pd.DataFrame(now.jobs), JOBS, alt="Unfinished jobs")
    st.download_button(
        "As JSON", json.dumps(now.to_dict(), indent=1), file_name="expertscope_health.json", mime="application/json",
        icon=":material/download:", type="tertiary", on_click="ignore", key="es_health_json",
    )  # fmt: skip
