"""The Library's models: those known by name or on this machine, which one is in memory, loading and unloading."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from core import catalog, library_script
from core.catalog import CatalogEntry
from core.jobs import DONE, FAILED
from core.library_link import LibraryView
from core.requests import ModelSpec
from core.tooltips import NONE

from . import answers, base, display, library_state, model_panel, present, text, viewer
from .library_state import doing

STATES = {catalog.HERE: "on this machine", catalog.PARTLY: "incomplete", catalog.ABSENT: "not here"}
_JOB, _LEFT = "es_library_model_job", "es_library_model_left"
HELP_MEMORY = "About what tracing takes: the weights as the checkpoint stores them, and working space."


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
            memory = f" About {text.size(state.memory)} of memory." if state.memory else ""
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
            "parameters": [_parameters(entry) for entry in entries],
            "size on disk": [text.size(entry.size) if entry.size else None for entry in entries],
            "memory": [text.size(entry.memory()) if entry.memory() else None for entry in entries],
            "weights": [entry.quantisation or None for entry in entries],
        }
    )
    if table.weights.isna().all():
        table = table.drop(columns="weights")
    present.note("library-models", "Models", None, table, None)
    library_state.offer(library_script.MODELS)
    st.dataframe(
        table, hide_index=True, alt="Models", placeholder=NONE, height=display.table_height(len(table), 460),
        column_config={
            "state": st.column_config.TextColumn(width=display.pixels(115)),
            "layers × experts": st.column_config.TextColumn(help="MoE layers × routed experts of each."),
            "top-k": st.column_config.NumberColumn(help="Experts that a token is routed to.", width=display.pixels(60)),
            "memory": st.column_config.TextColumn(help=HELP_MEMORY),
        },
    )  # fmt: skip


def _state(entry: CatalogEntry, there: list[ModelSpec]) -> str:
    if any(entry.id == spec.name for spec in there):
        return "loaded"
    return STATES.get(entry.state, entry.state)


def _parameters(entry: CatalogEntry) -> str | None:
    if entry.parameters is None:
        return None
    n = entry.parameters
    return f"{n / 1e9:.1f} B" if n >= 1e9 else f"{n / 1e6:.1f} M"


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
    job.wait(answers.PATIENCE)
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
