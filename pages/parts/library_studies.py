"""The Library's studies: all of the store, opened on their page, renamed, deleted, exported, read from a file."""

from __future__ import annotations

import functools

import streamlit as st

from core import library_script
from core.errors import ExpertScopeError
from core.library_link import LibraryView
from core.study.desk import StudyStatus
from core.study.link import StudyView, to_query
from core.study.settings import StudySettings

from . import address, base, downloads, library_state, present, study_list, study_state, text
from .library_state import doing

STUDY = study_state.APP.parent / "pages" / "Study.py"


def draw(view: LibraryView) -> None:
    """The section."""
    del view  # nothing of it concerns studies
    try:
        studies = base.workbench().studies.all()
    except ExpertScopeError as error:
        st.error(text.error(error))
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.page_link(STUDY, label="To the Study page, where new ones begin", icon=":material/lab_research:")
        with st.popover("Import", icon=":material/upload_file:", key="es_library_study_import"):
            _import()
    if not studies:
        st.info("No study is stored yet.")
        return
    key = address.key(f"library studies {hash(tuple(study.name for study in studies))}")
    above = st.container()
    listed = study_list.table(studies, key=key, on_select="rerun")
    present.note("library-studies", "Stored studies", None, listed, None)
    library_state.offer(library_script.of_studies((s.name, StudySettings.from_dict(s.settings)) for s in studies))
    rows = library_state.ticked(key, len(studies))
    with above, st.container(horizontal=True, vertical_alignment="center"):
        if rows:
            _actions(studies[rows[0]])
        else:
            st.caption("Tick a study for what can be done with it.")


def _import() -> None:
    st.caption("A study that was exported here, or by `python -m core study export` on another machine.")
    file = st.file_uploader("File of a study (.zip)", type="zip", key=address.key("library study file"))
    key = address.key("library study file name")
    st.text_input("Name here", key=key, placeholder="the name that it has", max_chars=120)
    st.button("Import", disabled=file is None, on_click=_read, args=(file, key), type="primary", key="es_library_read")


def _read(file, key: str) -> None:  # noqa: ANN001 - Streamlit's uploaded file
    content, name = file.getvalue(), (st.session_state.get(key) or "").strip() or None
    doing(lambda: base.workbench().studies.import_file(content, name=name), lambda made: f"Imported “{made}”.")


def _actions(study: StudyStatus) -> None:
    desk, name = base.workbench().studies, study.name
    st.page_link(STUDY, label="Open", icon=":material/open_in_new:", query_params=to_query(StudyView(study=name)))
    if study.active:
        st.caption("It is being measured; cancel it on its page before it is renamed or deleted.")
        return
    if study.progress:
        st.download_button(
            "Export", functools.partial(desk.export, name), file_name=f"{downloads.study_stem(name)}.study.zip",
            mime="application/zip", on_click="ignore", icon=":material/download:", key="es_library_study_export",
            help="Settings, plan and every row; opened elsewhere with Import.",
        )  # fmt: skip
    with st.popover("Rename", icon=":material/edit:", key="es_library_study_rename"):
        key = address.key(f"library study {name}")
        st.text_input("Another name", name, key=key, max_chars=120)
        st.button("Rename", on_click=_rename, args=(name, key), key="es_library_study_rename_do")
    library_state.confirm(
        "Delete", f"Delete “{text.plain(name)}” and all its results", lambda: _delete(name), key="study"
    )


def _rename(name: str, key: str) -> None:
    doing(lambda: base.workbench().studies.rename(name, st.session_state.get(key) or ""))


def _delete(name: str) -> None:
    doing(lambda: base.workbench().studies.delete(name), f"Deleted the study “{name}”.")
