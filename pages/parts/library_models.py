"""The Library's models: those known by name or on this machine, which one is in memory, loading and unloading."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from core import catalog, formats, library_script
from core.catalog import CatalogEntry
from core.jobs import DONE, FAILED
from core.library_link import LibraryView
from core.requests import ModelSpec

from . import answers, base, in_line, library_state, listing, model_panel, present, text, viewer
from .library_state import doing
from .listing import Column

STATES = {catalog.HERE: "on this machine", catalog.PARTLY: "incomplete", catalog.ABSENT: "not here"}
_JOB, _LEFT = "es_library_model_job", "es_library_model_left"
HELP_MEMORY = "About what tracing takes: the weights as the checkpoint stores them, and working space."
COLUMNS = {
    "model": Column("model"),
    "state": Column("state", width=115),
    "layers × experts": Column("layers × experts", "MoE layers × routed experts of each."),
    "top-k": Column("top-k", "Experts that a token is routed to.", width=60),
    "parameters": Column("parameters", form=formats.parameters),
    "size on disk": Column("size on disk", form=formats.size),
    "memory": Column("memory", HELP_MEMORY, formats.size),
    "weights": Column("weights"),
}


def draw(view: LibraryView) -> None:
    """The section."""
    bench = base.workbench()
    working = _working(view.model)
    there = [resident.spec for resident in bench.residents.all()]
    if not there and not working:
        st.markdown("No model is in memory. One is loaded when something is asked of it, or below.")
    for number, spec in enumerate(there):
        with st.container(horizontal=True, vertical_alignment="center"):
            state = bench.model_state(spec)
            memory = f" About {formats.size(state.memory)} of memory." if state.memory else ""
            st.markdown(f"**{text.plain(spec.name)}** is loaded. {text.plain(state.detail)}{memory}", width="content")
            key = f"es_library_unload{number or ''}"
            st.button("Unload", icon=":material/eject:", on_click=_unload, args=(spec,), key=key, disabled=working)
    _table(bench.catalogue(), there)
    st.markdown("##### Load a model")
    with st.grid(2, min_column_width=330, gap="large"):
        left, right = st.container(), st.container()
    with left:
        model_panel.draw(view.model, place="library models ", changed=lambda spec: library_state.look(model=spec))
    with right:
        here = view.model in there
        st.button(
            "Load it now", type="primary", icon=":material/memory:", on_click=_load, args=(view.model,),
            disabled=here or working, key="es_library_load", help="It is in memory." if here else None,
        )  # fmt: skip


def _table(entries: list[CatalogEntry], there: list[ModelSpec]) -> None:
    names = {entry.id for entry in entries}
    entries = entries + [catalog.entry(x.name, revision=x.revision) for x in there if x.name not in names]
    table = pd.DataFrame(
        {
            "model": [entry.id for entry in entries],
            "state": [_state(entry, there) for entry in entries],
            "layers × experts": [entry.shape for entry in entries],
            "top-k": pd.array([entry.top_k for entry in entries], dtype="Int64"),
            "parameters": pd.array([entry.parameters for entry in entries], dtype="Int64"),
            "size on disk": pd.array([entry.size or None for entry in entries], dtype="Int64"),
            "memory": pd.array([entry.memory() or None for entry in entries], dtype="Int64"),
            "weights": [entry.quantisation or None for entry in entries],
        }
    )
    if table.weights.isna().all():
        table = table.drop(columns="weights")
    forms = {name: column.form for name, column in COLUMNS.items() if column.form is not None}
    present.note("library-models", "Models", None, table.assign(**{n: table[n].map(f) for n, f in forms.items()}), None)
    library_state.offer(library_script.MODELS)
    listing.show(table, COLUMNS, most=460, alt="Models")


def _state(entry: CatalogEntry, there: list[ModelSpec]) -> str:
    if any(entry.id == spec.name for spec in there):
        return "loaded"
    return STATES.get(entry.state, entry.state)


def _working(spec: ModelSpec) -> bool:
    """Whether a model is being loaded or unloaded for this tab; shows how far that is, and what went wrong. Where
    `spec` is being loaded (for another viewer, or for this one before the page was read anew) this tab waits too."""
    bench = base.workbench()
    job, loading = bench.jobs.get(st.session_state.get(_JOB, "")), bench.loading(spec)
    if job is None and loading is not None and loading.id != st.session_state.get(_LEFT):
        _load(spec)  # joins it
        job = loading
    if job is None:
        return False
    in_line.waited(job, answers.PATIENCE)
    if job.status().active and not answers.given_up(job):
        answers.progress(job.id, "library models")
        return True
    if job.state == FAILED and job.error is not None:
        st.error(text.error(job.error))
    elif job.state != DONE:
        answers.cancelled(job)
    st.session_state[_LEFT] = job.id
    st.session_state.pop(_JOB, None)
    return False


def _load(spec: ModelSpec) -> None:
    job = doing(lambda: base.workbench().load(spec, owner=viewer.me()))
    if job is not None:
        st.session_state[_JOB] = job.id


def _unload(spec: ModelSpec) -> None:
    job = doing(lambda: base.workbench().unload(spec, owner=viewer.me()))
    if job is not None:
        st.session_state[_JOB] = job.id
