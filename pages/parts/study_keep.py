"""What can be done with a study as a whole: link, report, file, another name, deleting it."""

from __future__ import annotations

import functools

import streamlit as st

from core.cli_lists import LIST
from core.fact_sets import BUNDLED
from core.study import explain
from core.study.desk import StudyDesk, StudyStatus
from core.study.settings import StudySettings

from . import address, base, downloads, study_state, text


def draw(status: StudyStatus) -> None:
    """The buttons at the right of the head."""
    desk = base.workbench().studies
    stem = downloads.study_stem(status.name)
    if status.progress and not status.active:
        st.download_button(
            "Report", functools.partial(_report, desk, status.name), file_name=f"{stem}.html", mime="text/html",
            on_click="ignore", icon=":material/description:", key="es_study_report",
            help="One HTML file with verdict, figures and tables. It opens offline.",
        )  # fmt: skip
    with st.popover("Script", icon=":material/terminal:", key="es_study_script"):
        _script(status)
    with st.popover("Link", icon=":material/link:"):
        st.caption("Opens exactly this: the study, the section, what is chosen. It works where this store is.")
        st.code(study_state.address(), language=None, wrap_lines=True)
    if status.active:
        return
    with st.popover("Keep", icon=":material/folder_open:", help="Export, rename, delete"):
        if status.progress:
            st.download_button(
                "Export to a file", functools.partial(desk.export, status.name), file_name=f"{stem}.study.zip",
                mime="application/zip", on_click="ignore", icon=":material/upload_file:", key="es_study_export",
                width="stretch", help="Settings, plan and every row; opened elsewhere with Import.",
            )  # fmt: skip
        key = address.key(f"rename {status.name}")
        st.text_input("Another name", status.name, key=key, max_chars=120)
        st.button("Rename", on_click=_rename, args=(status.name, key), width="stretch", icon=":material/edit:")
        st.divider()
        sure = st.checkbox(f"Delete “{text.plain(status.name)}” and all its results", key=address.key("sure"))
        st.button(
            "Delete for good", disabled=not sure, on_click=_delete, args=(status.name,), width="stretch",
            icon=":material/delete:",
        )  # fmt: skip


def _script(status: StudyStatus) -> None:
    """The same study again, under another name: this one's is taken."""
    settings, name = StudySettings.from_dict(status.settings), explain.again(status.name)
    if settings.facts != BUNDLED and not settings.facts.startswith(LIST):
        st.caption(f"Its facts are those of the file {text.plain(settings.facts)}: give the path where it lies.")
    st.caption("The same study on the command line, in the project's folder:")
    st.code(explain.command(settings, name), language="bash", wrap_lines=True)
    st.caption("The same study in Python:")
    st.code(explain.python(settings, name), language="python", wrap_lines=True)


def _report(desk: StudyDesk, name: str) -> bytes:
    from core.study import figures, report

    found = desk.findings(name)
    if found is None:
        job = desk.read(name)
        job.wait()
        if job.error is not None:
            raise job.error
        found = job.result
    return report.page(found, figures.figures(found.analysis, found.tables))


def _rename(name: str, key: str) -> None:
    new = study_state.doing(lambda: base.workbench().studies.rename(name, st.session_state[key] or ""))
    address.touch()
    if new is not None:
        study_state.HERE.change(study_state.renamed(new))


def _delete(name: str) -> None:
    address.touch()
    if study_state.doing(lambda: base.workbench().studies.delete(name) or True):
        study_state.look(study=None)
