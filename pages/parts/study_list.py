"""The studies of the store: a choice in the sidebar, all of them as a table, and reading one from a file."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from core import formats
from core.study.desk import StudyStatus
from core.study.link import StudyView

from . import address, base, listing, study_state
from .listing import Column

WHAT = """
A **study** asks what one fact cannot tell: whether an expert carries a relation, or only this fact. It is the paper's
protocol over many facts.

1. **Filters.** Facts are scanned until enough are kept that the model knows (clean contrast) and that the noise takes
   away (drop). They are split into a *discovery* and a *validation* half.
2. **Layer sweep.** The MoE block's output is restored layer by layer; discovery selects the layer.
3. **Expert.** At that layer every clean-active expert's update is added alone. Of those that recur, discovery selects
   the one that rescues most.
4. **Controls.** On validation, which had no part in the selection, it is compared with other active experts, with the
   one of nearest router weight, and with coalitions of several.
5. **Verdict.** *Specific expert*, *coalition*, *no recurrent expert* or *no layer-level localisation*, in words, with
   the intervals behind it.
"""


def sidebar(studies: list[StudyStatus], view: StudyView) -> None:
    """Switching between studies, a new one, one from a file."""
    st.markdown("**Studies**")
    names = [status.name for status in studies]
    if names:
        key = address.key("study")

        def change() -> None:
            if st.session_state[key] in names:
                study_state.look(study=st.session_state[key])

        st.selectbox(
            "Study", names, index=names.index(view.study) if view.study in names else None, key=key,
            on_change=address.callback(key, change), label_visibility="collapsed",
            placeholder=f"{len(names)} studies, choose one" if len(names) > 1 else "1 study, choose it",
        )  # fmt: skip
    with st.container(horizontal=True):
        if view.study is not None:
            st.button("New study", icon=":material/add:", on_click=study_state.look, kwargs={"study": None})
        with st.popover("Import", icon=":material/upload_file:", key="es_study_import"):
            _import()


def _import() -> None:
    st.caption("A study that was exported here, or by `python -m core study export` on another machine.")
    file = st.file_uploader("File of a study (.zip)", type="zip", key=address.key("study file"))
    name = st.text_input("Name here", key=address.key("study file name"), placeholder="the name that it has")
    st.button("Import", disabled=file is None, on_click=_read, args=(file, name), type="primary", key="es_study_read")


def _read(file, name: str) -> None:
    address.touch()
    content = file.getvalue()
    chosen = study_state.doing(lambda: base.workbench().studies.import_file(content, name=name.strip() or None))
    if chosen is not None:
        study_state.look(study=chosen)


def overview(studies: list[StudyStatus]) -> None:
    """The table of all studies, or what a study is where there is none."""
    st.subheader("Studies", anchor=False)
    if not studies:
        st.markdown(WHAT)
        return
    key = address.key(f"studies {len(studies)}")

    def pick() -> None:
        rows = address.ticked(key)
        if rows:
            study_state.look(study=studies[rows[0]].name)

    table(studies, key=key, on_select=address.callback(key, pick))
    st.caption("Tick a row to open the study.")
    with st.expander("What is a study?"):
        st.markdown(WHAT)


def table(studies: list[StudyStatus], *, key: str, on_select: Any) -> pd.DataFrame:
    """All studies, one a row, one of which can be ticked; `on_select` as for `st.dataframe`. Gives what is shown."""
    shown = pd.DataFrame(
        {
            "name": [s.name for s in studies],
            "state": [s.state for s in studies],
            "model": [s.model for s in studies],
            "facts": [f"{(s.progress.get('funnel') or {}).get('kept', 0)} of {s.settings['n']}" for s in studies],
            "list": [str(s.settings["facts"]) for s in studies],
            "preset": [str(s.settings["preset"]) for s in studies],
            "begun": [formats.moment(s.created) for s in studies],
        }
    )
    columns = {
        "name": Column("study", pinned=True),
        "state": Column("state"),
        "model": Column("model"),
        "facts": Column("facts kept"),
        "list": Column("list of facts"),
        "preset": Column("preset"),
        "begun": Column("begun (UTC)"),
    }
    listing.show(
        shown, columns, key=key, on_select=on_select, selection_mode="single-row", alt="All studies", most=360
    )  # fmt: skip
    return shown
