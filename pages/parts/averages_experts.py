"""The experts at one role: layer × expert as a heat map, the experts that restore most, and the facts behind one."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from core import expert_link
from core.averages import charts, tables
from core.averages.link import AveragesView
from core.averages.questions import experts_request
from core.derived import DerivedResult
from core.formats import logits
from core.links import SHARED
from core.requests import Fact
from core.results import expert_name
from core.views import SHARED_INDEX

from . import averages_facts, downloads, expert_state, numbers, pictures, present, study_columns, text
from .answers import answer
from .averages_maps import header
from .averages_state import look
from .listing import Column

MAP = (
    "Each cell adds one expert's update alone in the corrupt run, at the tokens of this role, whatever the site above: "
    "mean over all facts, 0 where the expert is not clean-active. Blank: clean-active in none of them. Click an expert "
    "for the facts behind it."
)
TABLE = (
    "rescue: over all facts, 0 where the expert is not clean-active. where active: over the facts in which it is "
    "clean-active at a token of the role, with their number. Tick an expert for the facts behind it."
)
COLUMNS = {
    "rescue": Column("rescue", "Mean over all facts, 0 where it is not clean-active, logits."),
    "rescue_low": Column("low", "Lower end of its interval."),
    "rescue_high": Column("high", "Upper end of its interval."),
    "restoration": Column("restoration", "Mean rescue ÷ mean drop."),
    "rescue_active": Column("where active", "Mean over the facts in which it is clean-active, logits."),
    "n_active": Column("active in", "Facts in which it is clean-active at a token of the role."),
    "recurrence": Column("recurrence", "The same as a share of the facts."),
    "router_weight": Column("w clean", "Mean router weight where it is clean-active."),
    "n": Column("facts", "Facts that have a token of the role."),
    "n_missing": Column("missing", "Facts that have none."),
}
"""Columns of the table behind the expert's name."""


def draw(view: AveragesView, facts: tuple[Fact, ...], *, auto: bool) -> None:
    """The section; `auto`: its answer is computed without a click."""
    label = charts.role_label(view.role)
    st.markdown(f"##### Experts at the {label}")
    result, _ = answer(experts_request(view.asked, facts, role=view.role), "averages experts", auto=auto)
    if result is None:
        return
    if result.tables["cells"].empty:
        st.info(f"None of these facts has a {label}. Choose another role above.")
        return
    table = numbers.of("averages of experts", tables.expert_table, result, min_drop=view.min_drop)
    if table is None:
        return
    chosen = SHARED_INDEX if view.expert == SHARED else view.expert
    _map(view, result, table, chosen)
    _table(view, result, table, chosen)
    if view.layer is not None and chosen is not None:
        _expert(view, result, facts, table, int(chosen))


def _map(view: AveragesView, result: DerivedResult, table: pd.DataFrame, expert: int | None) -> None:
    where = result.provenance
    slot = pictures.slot(
        "averages_experts", (id(table), view.measure, pictures.theme().name, view.layer), (view.layer, expert)
    )
    n_facts = len(tables.kept_facts(result, min_drop=view.min_drop))
    picture = pictures.kept(
        charts.expert_map, table, n_layers=where["n_layers"], n_experts=where["n_experts"],
        moe_layers=tuple(where["moe_layers"]), has_shared=where["has_shared"], n_facts=n_facts, measure=view.measure,
        layer=view.layer, expert=slot.preset[1], palette=pictures.theme(),
    )  # fmt: skip
    seen = pictures.as_seen(picture, slot, layer=view.layer, expert=expert)
    header("Layer × expert", "averages-experts", result, seen, table)

    def pick(mark: dict[str, int]) -> None:
        slot.picked = (mark["layer"], mark["expert"])
        look(layer=mark["layer"], expert=_shared(mark["expert"]))

    alt = f"Layer by expert heat map of mean expert patches at the {charts.role_label(view.role)}"
    pictures.show(picture, key=slot.key, selection="expert", on_pick=pick, alt=alt)
    missing = int(table.n_missing.iloc[0]) if len(table) else 0
    present.caption(MAP + (f" {missing} of {n_facts} facts have no such token and are missing." if missing else ""))


def _table(view: AveragesView, result: DerivedResult, table: pd.DataFrame, expert: int | None) -> None:
    def pick(row: int) -> None:
        look(layer=int(table.layer[row]), expert=_shared(int(table.expert[row])))

    st.markdown("**The experts that restore most**")
    key = f"es_averages_expert_table_{id(table)}"
    study_columns.show(
        table[["name", *COLUMNS]], key=key, alt="Experts, highest mean rescue first", on_pick=pick, height=300,
        columns=COLUMNS,
    )  # fmt: skip
    present.caption(TABLE)


def _expert(
    view: AveragesView, result: DerivedResult, facts: tuple[Fact, ...], table: pd.DataFrame, expert: int
) -> None:
    name = expert_name(view.layer, None if expert == SHARED_INDEX else expert)
    at = f"{name} at the {charts.role_label(view.role)}"
    behind = numbers.of(
        f"the facts behind {at}", tables.behind_expert, result, view.layer, expert, min_drop=view.min_drop
    )
    if behind is None:
        return
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown(f"##### Facts behind {at}", width="content")
        with st.container(horizontal=True, vertical_alignment="center", width="content"):
            if expert != SHARED_INDEX:
                there = expert_link.of_trace(view.asked, layer=int(view.layer), expert=expert, facts=view.facts)
                expert_state.page_link(there)
            downloads.menu("averages-expert-facts", f"Facts behind {at}", result, None, behind)
    rows = table[(table.layer == view.layer) & (table.expert == expert)]
    if rows.empty:
        present.sentence(text.plain(f"{name} is clean-active at this role in none of these facts: its mean is 0."))
        return
    row = rows.iloc[0]
    rescue = charts.interval(row.rescue, row.rescue_low, row.rescue_high, True, "logits")
    present.sentence(
        text.plain(
            f"Mean rescue {rescue} over {row.n} fact{'s' if row.n != 1 else ''}, "
            f"{logits(row.rescue_active)} over the {row.n_active} in which it is clean-active."
        )
    )
    averages_facts.draw(view, facts, behind, name="expert", expert=expert)


def _shared(expert: int) -> int | str:
    return SHARED if expert == SHARED_INDEX else expert
