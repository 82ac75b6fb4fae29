"""The Study page: the studies that there are, a form for a new one, one that runs, what one found."""

from __future__ import annotations

import streamlit as st

from core import formats
from core.errors import ExpertScopeError
from core.study.desk import StudyStatus

from . import (
    address,
    base,
    frame,
    in_line,
    navigation,
    study_form,
    study_keep,
    study_list,
    study_state,
    study_watch,
    text,
)

STATES = {
    "queued": ("waiting", "gray", ":material/hourglass_empty:"),
    "running": ("running", "blue", ":material/play_arrow:"),
    "done": ("done", "green", ":material/check:"),
    "cancelled": ("cancelled", "orange", ":material/pause:"),
    "interrupted": ("interrupted", "orange", ":material/pause:"),
    "failed": ("failed", "red", ":material/error:"),
}
"""State → what is said, colour, icon."""
ENDED = {
    "cancelled": "This study was cancelled. What was measured is kept; it can go on where it was.",
    "interrupted": "This study's process ended in the middle. What was measured is kept; it can go on where it was.",
}
NOT_BEGUN = "This study's process ended before anything was measured. It can begin from here."


@in_line.drawn
def draw() -> None:
    """The whole page."""
    base.start_page("Study")
    view = study_state.HERE.begin()
    try:
        studies = base.workbench().studies.all()
        problem = None
    except ExpertScopeError as error:
        studies, problem = [], error
    with st.sidebar:
        navigation.draw()
        study_list.sidebar(studies, view)
    study_state.HERE.write()
    for sentence in view.problems:
        st.warning(text.plain(sentence))
    if said := st.session_state.pop("es_study_said", None):
        st.error(text.plain(text.on_page(said)))
    chosen = next((status for status in studies if status.name == view.study), None)
    if problem is not None:
        st.error(text.error(problem))
    elif chosen is not None:
        _study(chosen)
    else:
        if view.study is not None:
            name = text.plain(view.study)
            st.warning(f"There is no study “{name}” in this store. It was renamed, deleted, or never here.")
        study_list.overview(studies)
        study_form.draw(first=not studies)
    frame.foot()


def _study(status: StudyStatus) -> None:
    """One study, in whatever state it is."""
    head = st.container()
    if status.active:
        study_watch.draw(status.name, status.state)
    elif status.state != "done":
        _ended(status)
        study_watch.notice(status.name, status.state)
    with head:
        _head(status)
    if not status.active and status.progress:
        from . import study_results  # charts take most of a second to import: the head is on the screen by then

        study_results.draw(status)


def _head(status: StudyStatus) -> None:
    said, color, icon = STATES[status.state]
    settings = status.settings
    when = f"{formats.moment(status.created)} UTC"
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        with st.container(horizontal=True, vertical_alignment="center", width="content"):
            st.subheader(text.plain(status.name), anchor=False, width="content")
            st.badge(said, color=color, icon=icon)
        with st.container(horizontal=True, vertical_alignment="center", width="content"):
            study_keep.draw(status)
    spent = status.progress.get("seconds")
    took = f" · {'took' if status.state == 'done' else 'so far'} {formats.duration(spent)}" if spent else ""
    st.caption(
        f"{text.plain(status.model)} · {text.plain(str(settings['facts']))} facts · preset {settings['preset']} · "
        f"begun {when}{'' if status.active else took}"
    )


def _ended(status: StudyStatus) -> None:
    """Why there is no end yet, and the way on."""
    with st.container(horizontal=True, vertical_alignment="center"):
        if status.state == "failed":
            st.error(text.plain(text.on_page(status.note) or "This study failed."), icon=":material/error:")
        else:
            begun = status.progress or status.state != "interrupted"
            st.info(ENDED[status.state] if begun else NOT_BEGUN, icon=":material/pause:")
        st.button("Go on", icon=":material/play_arrow:", type="primary", on_click=_resume, args=(status.name,))


def _resume(name: str) -> None:
    address.touch()
    study_state.doing(lambda: base.workbench().studies.resume(name))
