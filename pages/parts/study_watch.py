"""A study under way: its stages, funnel, speed and time left, drawn anew every second. Cancelling keeps what is done.

Everything shown is read from the store and from this process's jobs, so it survives reload, other viewers, a closed
tab, and shows a study that a command line runs as well.
"""

from __future__ import annotations

import streamlit as st

from core import formats
from core.errors import ExpertScopeError
from core.study.desk import StudyStatus
from core.study.reporting import STAGES

from . import address, base, display, study_state, text

EVERY = 1.0
"""Seconds between two looks."""
FELL = {
    "unusable": "cannot be traced",
    "objects": "objects not two different single tokens",
    "clean_contrast": "clean contrast below {min_clean_contrast:g}",
    "drop": "drop below {min_drop:g}",
}


@st.fragment(run_every=EVERY)
def draw(name: str, state: str) -> None:
    """The panel; the whole page is drawn again when the study is no longer in this state: it begins, or ends."""
    try:
        status = base.workbench().studies.status(name)
    except ExpertScopeError as error:
        st.warning(text.error(error))
        return
    if status is None or status.state != state:
        address.rerun()
        return
    with st.container(border=True):
        _panel(status)


@st.fragment(run_every=2 * EVERY)
def notice(name: str, state: str) -> None:
    """Draws nothing; the whole page is drawn again when somebody goes on with a study that stood still."""
    try:
        status = base.workbench().studies.status(name)
    except ExpertScopeError:
        return
    if status is None or status.state != state:
        address.rerun()


def _panel(status: StudyStatus) -> None:
    progress = status.progress
    stages = [name for name in STAGES if name != "experts" or not status.settings["joint_search"]]
    now = stages.index(progress["stage"]) if progress.get("stage") in stages else -1
    steps = [(STAGES[s], "done" if i < now else "now" if i == now else "later") for i, s in enumerate(stages)]
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.html(text.stages(steps), width="content")
        if status.stopping:
            st.button("Stopping…", disabled=True, key="es_study_stopping")
        else:
            st.button("Cancel", key="es_study_cancel", on_click=_cancel, args=(status.name,), icon=":material/stop:")
    label = status.label or ("waiting for its turn" if status.state == "queued" else "starting")
    st.progress(status.fraction, text=text.plain(f"{label} · {status.fraction:.0%} of the whole"))
    funnel = progress.get("funnel") or {}
    rate, left = progress.get("facts_per_minute"), progress.get("seconds_left")
    kept = f"{funnel.get('kept', 0):,} of {status.settings['n']:,}"
    with st.grid(4, min_column_width=display.pixels(150), gap="small"):
        st.metric("facts kept", kept, border=True, help="Facts that passed the filters.")
        st.metric(
            "facts per minute", "–" if not rate else f"{rate:,.0f}", border=True, help="That this stage is done with."
        )
        st.metric("spent", formats.duration(progress.get("seconds")), border=True)
        st.metric("left", formats.duration(left, about=True), border=True)
    if funnel:
        st.html(funnel_bars(funnel, status.settings))
    st.caption("You can close this tab: the study goes on, and can be looked at from anywhere. Each batch is stored.")


def funnel_bars(counts: dict[str, int], settings: dict) -> str:
    """The funnel's counts as bars, longest the facts that were scanned."""
    scanned = counts.get("scanned", 0)
    steps = [("scanned", scanned, True)]
    steps += [(f"fell: {words.format(**settings)}", counts.get(name, 0), False) for name, words in FELL.items()]
    return text.funnel([*steps, ("kept", counts.get("kept", 0), True)], scanned)


def _cancel(name: str) -> None:
    address.touch()
    study_state.doing(lambda: base.workbench().studies.cancel(name))
