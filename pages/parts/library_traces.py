"""The Library's traces: all that the store keeps, opened, named, deleted, taken elsewhere and read from a file."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import pandas as pd
import streamlit as st

from core import facts, formats, library_script
from core.errors import ExpertScopeError
from core.library_link import LibraryView
from core.links import Link, View
from core.requests import SEPARATOR
from core.stored import StoredTrace
from core.trace_archive import MAX_LABEL, SUFFIX

from . import address, base, library_state, listing, present, study_state, text
from .library_state import doing, look
from .listing import Column

MOST = 2000
"""Rows that are shown at once."""
ALL = "all models"
HELP_EXPERTS = "Where every routed expert was patched: at the last position, everywhere, or at these token positions."
HELP_SIZE = "With the runs that it shares with other traces."
WHOLE = "Some parts were evicted: opening it computes them again."


def draw(view: LibraryView) -> None:
    """The section."""
    try:
        traces = base.workbench().stored.traces()
    except ExpertScopeError as error:
        st.error(text.error(error))
        return
    shown = _shown(view, traces)
    _head(view, traces, shown)
    if not traces:
        st.info("No trace is stored yet. Trace a fact, or import a file of traces.")
        return
    if not shown:
        st.info("No stored trace is like that.")
        return
    key = address.key(f"library traces {view.of} {view.search} {hash(tuple(trace.key for trace in shown))}")
    above = st.container()
    listed = _table(shown[:MOST], key)
    more = f"; the first {MOST:,} are listed" if len(shown) > MOST else ""
    of = formats.count(len(shown)) if len(shown) == len(traces) else f"{len(shown):,} of {len(traces):,}"
    said = f"{of} traces{more}, the latest first."
    present.note("library-traces", "Stored traces", None, listed, None, caption=said)
    known = base.bundled().get
    library_state.offer(library_script.of_traces(shown, bundled=known))
    st.caption(f"{said} Tick rows for what can be done with them.")
    rows = library_state.ticked(key, min(len(shown), MOST))
    with above, st.container(horizontal=True, vertical_alignment="center"):
        _actions([shown[row] for row in rows], shown)


def link_of(trace: StoredTrace) -> Link:
    """The stored trace as a question to the Trace page."""
    request = trace.request
    pos = request.experts[0] if isinstance(request.experts, tuple) and request.experts else None
    return Link(request.replace(experts="last"), View(pos=pos), base.is_bundled(request.fact))


def _shown(view: LibraryView, traces: Sequence[StoredTrace]) -> list[StoredTrace]:
    """Those that model and search leave. The search looks at the name, too."""
    mine = [trace for trace in traces if view.of in (None, trace.model)]
    if not view.search.strip():
        return mine
    named = {id(t.request.fact) for t in mine if view.search.strip().casefold() in t.label.casefold()}
    asked = [trace.request.fact for trace in mine]
    found = {id(fact) for fact in facts.search(asked, view.search, limit=None, everywhere=True)}
    return [trace for trace in mine if id(trace.request.fact) in found | named]


def _head(view: LibraryView, traces: Sequence[StoredTrace], shown: Sequence[StoredTrace]) -> None:
    models = sorted({trace.model for trace in traces})
    with st.container(horizontal=True, vertical_alignment="bottom"):
        current = view.of or ALL
        options = [ALL, *models] if current in (ALL, *models) else [ALL, *models, current]
        key = address.key(f"library of {view.of}")

        def of() -> None:
            chosen = st.session_state[key]
            look(of=None if chosen == ALL else chosen)

        st.selectbox(
            "Model", options, index=options.index(current), key=key, width=260, on_change=address.callback(key, of)
        )
        search_key = address.key("library traces search")

        def find() -> None:
            look(search=st.session_state[search_key] or "")

        st.text_input(
            "Search", view.search, key=search_key, type="search", live="300ms", max_chars=200, width=300,
            placeholder="words of the name or the fact", on_change=address.callback(search_key, find),
        )  # fmt: skip
        with st.popover("Import", icon=":material/upload_file:", key="es_traces_import"):
            _import()
        if shown:
            _export("Export all shown", shown, "all")


def _import() -> None:
    st.caption("Traces that were exported here or on another machine. They are marked, and shown where this machine "
               "has no answer of its own to the same question.")  # fmt: skip
    file = st.file_uploader("File of traces (.zip)", type="zip", key=address.key("library traces file"))
    st.button("Import", disabled=file is None, on_click=_read, args=(file,), type="primary", key="es_traces_read")


def _read(file) -> None:  # noqa: ANN001 - Streamlit's uploaded file
    content = file.getvalue()
    doing(lambda: base.workbench().stored.import_file(content), lambda n: f"Imported {_traces(n)}.")


def _table(shown: Sequence[StoredTrace], key: str) -> pd.DataFrame:
    """The table; gives what it shows, without the links."""
    frame = pd.DataFrame(
        {
            "open": [study_state.trace_address(link_of(t)) for t in shown],
            "name": [t.label or None for t in shown],
            "fact": [f"{t.request.fact.subject.strip()} → {t.request.fact.true.strip()}" for t in shown],
            "model": [f"{t.model.split('/')[-1]} · {t.dtype} · {t.device}" for t in shown],
            "corruption": [_corruption(t) for t in shown],
            "draws": [t.request.draws for t in shown],
            "experts": [_experts(t) for t in shown],
            "computed": [formats.moment(t.created) for t in shown],
            "size": [t.bytes for t in shown],
            "relation": [(t.request.fact.relation or "").replace("_", " ") for t in shown],
            "prompt": [t.request.fact.text for t in shown],
            "remark": [_remark(t) for t in shown],
        }
    )
    frame = frame.drop(columns=[name for name in ("name", "remark") if frame[name].isna().all()])
    columns = {
        "open": listing.link("Trace", "Opens it on the Trace page, in another tab."),
        "name": Column("name"),
        "fact": Column("fact", width=190),
        "model": Column("model", width=135),
        "corruption": Column("corruption", width=115),
        "draws": Column("draws", width=60),
        "experts": Column("experts at", HELP_EXPERTS, width=75),
        "computed": Column("computed (UTC)", width=125),
        "size": Column("size", HELP_SIZE, formats.size, width=70),
        "relation": Column("relation"),
        "prompt": Column("prompt", width="large"),
        "remark": Column("remark"),
    }
    listing.show(
        frame, columns, key=key, on_select="rerun", selection_mode="multi-row", most=500, alt="Stored traces"
    )  # fmt: skip
    return frame.drop(columns="open").assign(size=frame["size"].map(formats.size))


def _corruption(trace: StoredTrace) -> str:
    request = trace.request
    if request.corruption == "noise":
        return f"noise {formats.typed(request.noise)}, seed {request.seed}"
    return f"other subject: {SEPARATOR.join(request.replacement) or f'chosen, seed {request.seed}'}"


def _experts(trace: StoredTrace) -> str:
    experts = trace.request.experts
    return experts if isinstance(experts, str) else ", ".join(map(str, experts))


def _remark(trace: StoredTrace) -> str | None:
    said = [f"imported {trace.imported[:10]}"] if trace.imported else []
    return ", ".join([*said, *([] if trace.whole else ["partly evicted"])]) or None


def _actions(chosen: Sequence[StoredTrace], shown: Sequence[StoredTrace]) -> None:
    if not chosen:
        library_state.confirm(
            f"Delete all {len(shown):,} shown", f"Delete {_traces(len(shown))} for good", lambda: _delete(shown),
            key="all traces",
        )  # fmt: skip
        return
    if len(chosen) == 1:
        study_state.trace_link(link_of(chosen[0]))
        with st.popover("Rename", icon=":material/edit:", key=f"es_trace_rename {chosen[0].label}"):
            key = address.key(f"library label {chosen[0].key}")
            st.text_input("Name", chosen[0].label, key=key, max_chars=MAX_LABEL, placeholder="none")
            st.button("Rename", on_click=_rename, args=(chosen[0].key, key), key="es_trace_rename_do")
        if not chosen[0].whole:
            st.caption(WHOLE)
    _export(f"Export {len(chosen):,}", chosen, "ticked")
    library_state.confirm(
        f"Delete {len(chosen):,}", f"Delete {_traces(len(chosen))} for good", lambda: _delete(chosen), key="traces"
    )


def _export(label: str, chosen: Sequence[StoredTrace], name: str) -> None:
    keys = [trace.key for trace in chosen]
    st.download_button(
        label, functools.partial(base.workbench().stored.export, keys), file_name=f"expertscope{SUFFIX}",
        mime="application/zip", on_click="ignore", icon=":material/download:", key=f"es_traces_export_{name}",
        help="One file with every row, without the activations; looked at elsewhere with Import.",
    )  # fmt: skip


def _rename(trace: str, key: str) -> None:
    doing(lambda: base.workbench().stored.rename(trace, st.session_state.get(key) or ""))


def _delete(chosen: Sequence[StoredTrace]) -> None:
    doing(
        lambda: base.workbench().stored.delete(trace.key for trace in chosen), lambda n: f"Deleted {_traces(n)}."
    )


def _traces(n: int) -> str:
    return f"{n:,} trace{'' if n == 1 else 's'}"
