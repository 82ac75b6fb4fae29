"""The averages of a site: role × layer as a heat map, each role over the layers, and the facts behind a chosen cell."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from core.averages import charts, tables
from core.averages.link import AveragesView
from core.averages.questions import SHOWN_ROLES
from core.derived import DerivedResult
from core.formats import logits
from core.links import MEASURES
from core.named_rows import named_rows
from core.requests import Fact
from core.results import MIN_DROP
from core.roles import ROLES
from core.sites import NAMES
from core.stats import CONFIDENCE, RESAMPLES

from . import address, averages_facts, downloads, numbers, pictures, present, text
from .averages_state import look

MAP = (
    "One cell per layer and role: mean over the facts, several tokens of one role in one fact averaged first. Blue "
    "brings the answer back, orange drives it further away. Click a cell for the facts behind it."
)
INTERVALS = (
    f"Bands: {CONFIDENCE:.0%} percentile bootstrap ({RESAMPLES:,} resamples, seed 0) in which subjects are drawn, so "
    "that the facts of a subject stay together. Restoration is mean rescue ÷ mean drop, never a mean of ratios."
)
BEFORE = "Tokens before the subject are the same in both runs, so there is nothing to restore."


def draw(view: AveragesView, result: DerivedResult, facts: tuple[Fact, ...]) -> None:
    """Maps, curves, facts."""
    table = numbers.of("averages by role", tables.role_table, result, min_drop=view.min_drop)
    if table is None:
        return
    _switch(view)
    title = f"{NAMES[view.site][0].upper()}{NAMES[view.site][1:]}: role × layer"
    name = f"averages-{view.site}" + (f"-w{view.window}" if view.window > 1 else "")
    _map(view, result, table, title, name)
    _curves(view, result, table, name)
    _choose_cell(view, sorted(set(table.layer)))
    if view.layer is not None and view.layer in set(table.layer):
        cell = table[(table.layer == view.layer) & (table.role == view.role)].iloc[0]
        _cell(view, result, facts, cell)


def header(title: str, name: str, result: DerivedResult, picture, table: pd.DataFrame) -> None:  # noqa: ANN001
    """A heading with the download menu beside it."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown(f"**{title}**", width="content")
        downloads.menu(name, title, result, picture, table)


def _switch(view: AveragesView) -> None:
    key = address.key("averages measure")

    def change() -> None:
        look(measure=st.session_state[key] or MEASURES[0])

    st.segmented_control(
        "What the colours show", MEASURES, default=view.measure, key=key, wrap=True, required=True,
        on_change=address.callback(key, change),
        format_func=lambda m: "restoration" if m == "restoration" else "rescue in logits",
        label_visibility="collapsed",
        help="restoration = mean rescue ÷ mean drop: 0 as corrupt, 1 as clean. rescue = contrast − corrupt contrast.",
    )  # fmt: skip


def _map(view: AveragesView, result: DerivedResult, table: pd.DataFrame, title: str, name: str) -> None:
    cell = (view.layer, view.role)
    slot = pictures.slot("averages_cells", (id(table), view.measure, pictures.theme().name), cell)
    layer, role = slot.preset
    n_layers = result.provenance["n_layers"]
    picture = pictures.kept(
        charts.role_map, table, n_layers=n_layers, measure=view.measure, layer=layer, role=role,
        palette=pictures.theme(),
    )  # fmt: skip
    column = None if view.role is None else ROLES.index(view.role)
    header(title, name, result, pictures.as_seen(picture, slot, layer=view.layer, role=column), table)

    def pick(mark: dict[str, int]) -> None:
        slot.picked = (mark["layer"], ROLES[mark["role"]])
        if slot.picked != cell and slot.picked[1] in SHOWN_ROLES:
            look(layer=mark["layer"], role=slot.picked[1])

    best = table.loc[table.rescue.idxmax()] if table.rescue.notna().any() else None
    alt = "Empty map" if best is None else f"{title}; the highest is layer {best.layer}, {best.role}"
    pictures.show(picture, key=slot.key, selection="cell", on_pick=pick, alt=alt)
    dense = n_layers - table.layer.nunique()
    lacks = f" {dense} layer{'s' if dense > 1 else ''} without this site: blank." if dense else ""
    grey = " Grey: missing." if table[view.measure].isna().any() else ""
    before = "" if "before subject" in set(table.role) else f" {BEFORE}"
    present.caption(MAP + grey + lacks + before + _missing(table))


def _missing(table: pd.DataFrame) -> str:
    """How many facts lack which role."""
    lacking = table[table.n_missing > 0].drop_duplicates("role")
    parts = [f"{row.role}: {row.n_missing} of {row.n + row.n_missing}" for row in named_rows(lacking)]
    return f" Facts without a token of a role are missing there ({'; '.join(parts)})." if parts else ""


def _curves(view: AveragesView, result: DerivedResult, table: pd.DataFrame, name: str) -> None:
    picture = pictures.kept(
        charts.role_curves, table, n_layers=result.provenance["n_layers"], measure=view.measure, role=view.role,
        palette=pictures.theme(),
    )  # fmt: skip
    header("Each role over the layers", f"{name}-curves", result, picture, table)

    def pick(mark: dict[str, int]) -> None:
        if ROLES[mark["role"]] in SHOWN_ROLES:
            look(layer=mark["layer"], role=ROLES[mark["role"]])

    key = f"es_averages_curves_{id(table)}_{view.measure}_{view.role}_{pictures.theme().name}"
    alt = "Mean over the facts for each role, by layer, with intervals"
    pictures.show(picture, key=key, selection="point", on_pick=pick, alt=alt)
    present.caption(intervals(table))


def intervals(table: pd.DataFrame) -> str:
    """What the bands are, and where there is none and why."""
    there = table[table.n > 0]
    said, alone = INTERVALS, there[there.rescue_low.isna()].role.unique()
    if len(alone):
        said += f" No interval, of one subject alone: {', '.join(alone)}."
    if (there.rescue_low.notna() & there.restoration.notna() & there.restoration_low.isna()).any():
        said += f" A restoration has none where some resample has a mean drop below {MIN_DROP:g} logits."
    return said


def _choose_cell(view: AveragesView, layers: list[int]) -> None:
    """The same choice as a click on the map, for the keyboard."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        key = address.key(f"averages layer {view.layer}")
        st.selectbox(
            "Layer", [None, *layers], index=0 if view.layer not in layers else 1 + layers.index(view.layer), key=key,
            format_func=lambda layer: "no layer chosen" if layer is None else f"layer {layer}", width=220,
            on_change=address.callback(key, lambda: look(layer=st.session_state[key])),
        )  # fmt: skip
        second = address.key(f"averages role {view.role}")
        st.selectbox(
            "Role", SHOWN_ROLES, index=SHOWN_ROLES.index(view.role), key=second, width=210,
            format_func=charts.role_label,
            on_change=address.callback(second, lambda: look(role=st.session_state[second])),
        )  # fmt: skip


def _cell(view: AveragesView, result: DerivedResult, facts: tuple[Fact, ...], cell: pd.Series) -> None:
    """The chosen average, and the facts behind it."""
    where = f"layer {view.layer}, {charts.role_label(view.role)}"
    behind = numbers.of(
        f"the facts behind {where}", tables.behind_cell, result, view.layer, view.role, min_drop=view.min_drop
    )
    if behind is None:
        return
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown(f"##### Facts behind {where}", width="content")
        downloads.menu("averages-facts", f"Facts behind {where}", result, None, behind)
    if not cell.n:
        present.sentence(f"No fact has a {charts.role_label(view.role)}, so nothing is averaged here.")
        averages_facts.draw(view, facts, behind, name="cell")
        return
    restored = charts.interval(cell.restoration, cell.restoration_low, cell.restoration_high)
    rescue = charts.interval(cell.rescue, cell.rescue_low, cell.rescue_high, True, "logits")
    missing = f", {cell.n_missing} without such a token" if cell.n_missing else ""
    present.sentence(
        text.plain(
            f"Mean rescue {rescue} of a mean drop of {logits(cell.mean_drop)}, restoration {restored}, "
            f"over {cell.n} fact{'s' if cell.n != 1 else ''}{missing}."
        )
    )
    averages_facts.draw(view, facts, behind, name="cell")
