"""The facts of a study, or those behind one average: filters, the table, and the way to the Trace page for each."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from core.formats import NONE, logits
from core.links import Link
from core.named_rows import named_rows
from core.requests import Fact
from core.results import expert_name
from core.study import rows, values, words
from core.study.behind import behind
from core.study.findings import Findings
from core.study.link import SPLITS, StudyView, expert_view, trace_request, trace_view
from core.study.settings import StudySettings

from . import address, base, downloads, expert_state, listing, pictures, study_columns, study_state, text
from .listing import Column

COLUMNS = (
    "trace", "subject", "true", "layer_rescue", "expert_rescue", "clean_active", "router_weight", "drop",
    "clean_contrast", "split", "relation", "prompt", "foil", "case_id",
)  # fmt: skip
"""Columns of the table, in their order."""


def draw(found: Findings, view: StudyView, *, chosen: bool = False) -> None:
    """Filters and table. `chosen`: under another section, for the patch that was chosen there."""
    layer, expert = _spot(found, view)
    table = pictures.kept(_behind, found, layer=layer, expert=expert)
    name = "the layer patch" if expert is None else expert_name(layer, expert)
    where = "" if layer is None else f" behind {name}" + (f" at layer {layer}" if expert is None else "")
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown(f"##### Facts{where}", width="content")
        shown = _filtered(table, view)
        downloads.of_study("facts", f"Facts{where}", found, table=_whole(found, table) if not chosen else table)
    if layer is not None and expert is not None:
        expert_state.page_link(expert_view(StudySettings.from_dict(found.settings), layer=layer, expert=expert))
    _filters(found, view, layer, expert)
    if shown.empty:
        st.caption("No fact of this study is like that.")
        return
    _sentence(shown, expert)
    if said := words.rounding(found):
        st.caption(text.plain(said))
    links = [_address(found, row, layer, expert) for row in named_rows(shown)]
    key = f"es_study_facts_{found.name}_{layer}_{expert}_{view.relation}_{view.split}"

    def pick(row: int) -> None:
        study_state.look(fact=int(shown.scan_index.iloc[row]))

    listed = shown.assign(trace=links)
    study_columns.show(
        listed[[name for name in COLUMNS if name in listed]], key=key, alt=f"Facts{where}", on_pick=pick, height=460,
        columns={
            "trace": listing.link("Trace", "Opens this fact on the Trace page."),
            "prompt": Column("prompt", width="large"),
        },
    )  # fmt: skip
    _one(found, shown, view.fact, layer, expert)


def _behind(found: Findings, *, layer: int | None, expert: int | None) -> pd.DataFrame:
    return behind(found, layer=layer, expert=expert)


def _spot(found: Findings, view: StudyView) -> tuple[int | None, int | None]:
    """The patch whose values are listed: the chosen one, else the study's selection."""
    if view.layer is not None:
        return view.layer, view.expert
    return found.analysis.layer, found.analysis.expert


def _whole(found: Findings, table: pd.DataFrame) -> pd.DataFrame:
    """Every quantity of every fact, for the download."""
    every = found.tables["facts"]
    new = [name for name in table if name not in every]
    return every.merge(table[["scan_index", *new]], on="scan_index", how="left")


def _filtered(table: pd.DataFrame, view: StudyView) -> pd.DataFrame:
    if view.relation is not None:
        table = table[table.relation == view.relation]
    if view.split is not None:
        table = table[table.split == view.split]
    return table.reset_index(drop=True)


def _filters(found: Findings, view: StudyView, layer: int | None, expert: int | None) -> None:
    layers = sorted(int(value) for value in found.tables["layers"].layer.unique())
    experts = pictures.kept(_experts_at, found, layer) if layer is not None else []
    relations = sorted(str(r) for r in found.analysis.known.relation.dropna().unique())
    choices = [
        ("layer", "Layer", layers, layer, "layer {}".format),
        ("expert", "Expert", [None, *experts], expert, lambda e: "layer patch" if e is None else expert_name(layer, e)),
        ("split", "Half", [None, *SPLITS], view.split, lambda s: "both halves" if s is None else s),
        ("relation", "Relation", [None, *relations], view.relation, lambda r: "all relations" if r is None else r),
    ]
    with st.container(horizontal=True):
        for name, label, options, current, form in choices:
            if not options:
                continue
            known = options if current in options else [*options, current]
            key = address.key(f"study {name} {current} {layer}")

            def change(name: str = name, key: str = key) -> None:
                value = st.session_state[key]
                changes = {name: value}
                if name == "layer":
                    changes["expert"] = None
                if name == "expert":
                    changes["layer"] = layer
                study_state.look(**changes)

            st.selectbox(
                label, known, index=known.index(current), format_func=form, key=key, width=190,
                on_change=address.callback(key, change),
            )  # fmt: skip


def _experts_at(found: Findings, layer: int) -> list[int]:
    """Experts of the layer that are clean-active in some fact."""
    return [int(e) for e in values.expert_table(found.rows, layer=layer).rescue.columns]


def _sentence(shown: pd.DataFrame, expert: int | None) -> None:
    """The mean of what is listed, so that it can be held against the section's."""
    name = "layer_rescue" if expert is None else "expert_rescue"
    if name not in shown:
        return
    parts = []
    for half in rows.SPLITS:
        mine = shown.loc[shown.split == half, name]
        if len(mine):
            missing = int(mine.isna().sum())
            said = logits(mine.mean()) if missing < len(mine) else NONE
            parts.append(f"{half} **{said}** (n {len(mine) - missing}" + (f", {missing} missing)" if missing else ")"))
    st.markdown(f"Mean rescue of what is listed: {', '.join(parts)} logits.")


def _link(found: Findings, scan_index: int, pos: int | None, layer: int | None, expert: int | None) -> Link | None:
    """The fact as a question to the Trace page, with the study's settings, at the same patch."""
    if scan_index >= len(found.facts):
        return None
    fact: Fact = found.facts[scan_index]
    request = trace_request(StudySettings.from_dict(found.settings), fact)
    return Link(request, trace_view(pos=pos, layer=layer, expert=expert), base.is_bundled(fact))


def _address(found: Findings, row, layer: int | None, expert: int | None) -> str | None:
    pos = None if pd.isna(row.pos) else int(row.pos)
    link = _link(found, int(row.scan_index), pos, layer, expert)
    return None if link is None else study_state.trace_address(link)


def _one(found: Findings, shown: pd.DataFrame, scan_index: int | None, layer: int | None, expert: int | None) -> None:
    """The ticked fact, and the way to it in this tab."""
    mine = shown[shown.scan_index == scan_index]
    if scan_index is None or mine.empty:
        st.caption("“open” shows the fact on the Trace page in another tab; tick a row to go there in this one.")
        return
    row = mine.iloc[0]
    link = _link(found, scan_index, None if pd.isna(row.pos) else int(row.pos), layer, expert)
    if link is None:
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"{text.plain(link.request.fact.text)} → **{text.plain(link.request.fact.true)}**", width="content")
        study_state.trace_link(link)
