"""The Library's store: how full it is, its limit, making the file smaller, forgetting a model; derived answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st

from core import formats
from core.derived import KINDS
from core.errors import ExpertScopeError
from core.library_link import LibraryView
from core.stored import StoredDerived
from core.workbench import StoreStatus

from . import address, base, display, library_state, listing, present, text
from .library_state import doing, ticked
from .listing import Column

_MB = 10**6
SIZE = Column("size", form=formats.size)
"""The column of bytes."""


def draw(view: LibraryView) -> None:
    """The section."""
    del view  # nothing of it concerns the store
    status = base.workbench().store_status()
    if status.error:
        st.error(text.plain(f"Nothing is stored: {status.error}"))
        return
    _size(status)
    st.markdown("##### By model")
    _models(status)
    st.markdown("##### Answers that are more than one trace")
    try:
        derived = base.workbench().stored.derived()
    except ExpertScopeError as error:
        st.error(text.error(error))
        return
    _derived(derived)


def _size(status: StoreStatus) -> None:
    share = status.contents / status.limit if status.limit else 0.0
    with st.grid(3, min_column_width=display.pixels(170), gap="small"):
        st.metric("contents", formats.size(status.contents), border=True, help="What is counted against the limit.")
        st.metric("limit", formats.size(status.limit), border=True, help="More is evicted, least recently used first.")
        st.metric("file on the disk", formats.size(status.size), border=True, help="Freed space is used again.")
    present.say([
        f"The store holds {formats.size(status.contents)} of at most {formats.size(status.limit)} "
        f"({formats.progress(share)}); its file takes {formats.size(status.size)} on the disk."
    ])  # fmt: skip
    st.progress(min(share, 1.0), text=f"{formats.progress(share)} of the limit")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        key = address.key(f"library limit {status.limit}")
        limit = st.number_input("Limit (MB)", 10, 10**7, max(round(status.limit / _MB), 10), 100, key=key, width=180)
        if limit * _MB < status.contents:
            over = formats.size(status.contents - limit * _MB)
            library_state.confirm(
                "Set limit", f"Delete what was not used for longest, about {over}", lambda: _limit(key), key="limit",
                icon=":material/compress:",
            )  # fmt: skip
        else:
            st.button("Set limit", on_click=_limit, args=(key,), key="es_library_limit")
        st.button(
            "Compact", on_click=_compact, icon=":material/compress:", key="es_library_compact",
            help="Rewrites the file without its free space. It needs room for a second copy meanwhile.",
        )  # fmt: skip
        library_state.confirm(
            "Forget everything", "Delete every stored trace and derived answer of every model", lambda: _clear(None),
            key="everything",
        )  # fmt: skip


def _models(status: StoreStatus) -> None:
    if not status.models:
        st.caption("Nothing is stored yet.")
        return
    table = pd.DataFrame({"model": [m for m, _ in status.models], "size": [formats.size(b) for _, b in status.models]})
    present.note("store-models", "The store by model", None, table, None)
    library_state.offer()
    key = address.key(f"library store models {hash(tuple(table.model))}")
    above = st.container()
    listing.show(
        pd.DataFrame(status.models, columns=list(table)), {"model": Column("model"), "size": SIZE}, key=key,
        on_select="rerun", selection_mode="single-row", alt="The store by model", most=300, width="content",
    )  # fmt: skip
    with above:
        rows = ticked(key, len(table))
        if not rows:
            st.caption("Tick a model to forget what is stored of it.")
            return
        model = status.models[rows[0]][0]
        library_state.confirm(
            "Forget this model", f"Delete everything that is stored of {text.plain(model)}", lambda: _clear(model),
            key="model",
        )  # fmt: skip


def _derived(found: Sequence[StoredDerived]) -> None:
    if not found:
        st.caption("Routing, dossiers of experts, validations and their like appear here once they were computed.")
        return
    kinds: dict[str, list[StoredDerived]] = {}
    for one in found:
        kinds.setdefault(one.kind, []).append(one)
    summary = ", ".join(
        f"{_title(kind)}: {formats.count(len(ones))} ({formats.size(sum(one.bytes for one in ones))})"
        for kind, ones in kinds.items()
    )
    st.caption(text.plain(f"{summary}. The latest first."))
    table = pd.DataFrame(
        {
            "kind": [_title(one.kind) for one in found],
            "model": [one.model for one in found],
            "facts": [one.facts for one in found],
            "settings": [_settings(one.settings) for one in found],
            "computed": [formats.moment(one.created) for one in found],
            "size": [formats.size(one.bytes) for one in found],
        }
    )
    present.note("store-derived", "Answers that are more than one trace", None, table, None, caption=f"{summary}.")
    library_state.offer()
    key = address.key(f"library derived {hash(tuple(one.key for one in found))}")
    above = st.container()
    columns = {
        "kind": Column("kind"),
        "model": Column("model"),
        "facts": Column("facts"),
        "settings": Column("settings", width="large"),
        "computed": Column("computed (UTC)"),
        "size": SIZE,
    }
    listing.show(
        table.assign(size=[one.bytes for one in found]), columns, key=key, on_select="rerun",
        selection_mode="multi-row", alt="Derived answers",
    )  # fmt: skip
    with above, st.container(horizontal=True, vertical_alignment="center"):
        chosen = [found[row] for row in ticked(key, len(found))]
        if not chosen:
            st.caption("Tick rows to delete them.")
            return
        keys = [one.key for one in chosen]
        library_state.confirm(
            f"Delete {len(keys):,}", f"Delete {_answers(len(keys))} for good", lambda: _delete(keys), key="derived"
        )


def _settings(values: dict[str, Any]) -> str:
    shown = (f"{name.replace('_', ' ')} {value if isinstance(value, str) else json.dumps(value)}"
             for name, value in values.items())  # fmt: skip
    return ", ".join(shown)[:300]


def _title(kind: str) -> str:
    return KINDS[kind].title if kind in KINDS else kind


def _limit(key: str) -> None:
    limit = st.session_state.get(key)
    if limit:
        doing(lambda: base.workbench().set_store_limit(int(limit) * _MB), f"The limit is {int(limit):,} MB.")


def _compact() -> None:
    doing(base.workbench().stored.compact, "The file is as small as its contents.")


def _clear(model: str | None) -> None:
    doing(lambda: base.workbench().clear_store(model), "Deleted.")


def _delete(keys: Sequence[str]) -> None:
    doing(lambda: base.workbench().stored.delete_derived(keys), lambda n: f"Deleted {_answers(n)}.")


def _answers(n: int) -> str:
    return f"{n:,} answer{'' if n == 1 else 's'}"
