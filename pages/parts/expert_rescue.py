"""What the expert's patch restores: its distribution over facts and relations, its controls; and the list of all."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from core import expert_charts, expert_tables
from core.derived import DerivedResult
from core.expert_link import ExpertView
from core.expert_tables import Rescue
from core.formats import bound
from core.views import PAPER_CLEAN, PAPER_DROP

from . import expert_state, numbers, pictures, present, study_state, text
from .expert_pieces import Shown, figure, header, table, traces
from .listing import Column

EVERYONE: dict[str, Column] = {
    "name": Column("expert", "Layer and expert."),
    "mean_all": Column("rescue", "Mean rescue of its patch at the last position, 0 where it is not clean-active."),
    "mean_active": Column("where active", "Mean rescue over the facts where it is clean-active."),
    "n_active": Column("active in", "Facts in which it is clean-active at the last position."),
    "recurrence": Column("recurrence", "Their share of all facts."),
    "mean_weight": Column("w clean", "Mean router weight where it is clean-active."),
}
ESTIMATES: dict[str, Column] = {
    "meaning": Column("quantity"),
    "mean": Column("mean", "Mean over the facts, logits."),
    "ci_low": Column("low", "Lower end of the 95 % bootstrap interval; the facts of a subject stay together."),
    "ci_high": Column("high", "Upper end of the interval."),
    "n": Column("n", "Facts with a value."),
    "n_missing": Column("missing", "Facts without a value: not clean-active, or no other expert to compare with."),
    "positive_fraction": Column("positive", "Share of the facts in which it is above 0."),
    "p_sign_flip": Column("p", "Two-sided sign-flip test."),
}
RELATIONS: dict[str, Column] = {
    "relation": Column("relation"),
    "n": Column("n", "Facts."),
    "n_active": Column("active in", "Facts in which it is clean-active at the last position."),
    "expert_rescue": Column("rescue", "Mean over all facts of the relation, 0 where it is not clean-active."),
    "expert_rescue_low": Column("low", "Lower end of the 95 % bootstrap interval."),
    "expert_rescue_high": Column("high", "Upper end of the interval."),
    "expert_rescue_active_only": Column("where active", "Mean over the facts where it is clean-active."),
    "expert_rescue_active_only_low": Column("low", "Lower end of its interval."),
    "expert_rescue_active_only_high": Column("high", "Upper end of its interval."),
    "specificity": Column("specificity", "Rescue minus the mean of its active-random controls, all facts."),
}
FACTS: dict[str, Column] = {
    "subject": Column("subject"),
    "true": Column("true", "True object."),
    "rescue": Column("rescue", "Of the expert patch at the last position; 0 where it is not clean-active."),
    "clean_active": Column("active", "Clean-active at the last position."),
    "rank": Column("rank", "Of its rescue among the fact's clean-active experts of this layer."),
    "router_weight": Column("w clean", "Router weight in the clean run."),
    "specificity": Column("specificity", "Rescue minus the mean of the active-random controls."),
    "gate_matched_specificity": Column("gate-matched", "Rescue minus that of the expert with the nearest weight."),
    "drop": Column("drop", "Clean minus corrupt contrast."),
    "relation": Column("relation"),
    "prompt": Column("prompt"),
    "case_id": Column("case_id"),
}
STRIP = (
    "One dot per fact. Pink tick: mean of the relation, with 0 where the expert is not clean-active. Click a dot for "
    "its fact."
)
FILTER = "No fact is filtered out; {} of {} would not pass the paper's filter (clean contrast {:g}, drop {:g} logits)."
VISIBLE_ROUNDING = 1e-3
"""From this noise floor on (logits) it is said."""
MEANS = (
    "Points with 95 % bootstrap intervals; all facts of a subject are resampled together. An average over co-active "
    "experts favours whoever has the largest router weight: a specific expert beats its gate-matched control too."
)


def count(result: DerivedResult, layer: int, expert: int) -> Rescue:
    """The numbers of one expert."""
    return expert_tables.rescue(result.tables, layer, expert)


def found_of(view: ExpertView, result: DerivedResult) -> Rescue | None:
    """The same, counted once for a result."""
    return numbers.of(f"the rescue of {view.name}", count, result, view.layer, view.expert)


def draw(shown: Shown) -> None:
    """The section."""
    found = shown.found
    if found is None:
        return
    view, palette = shown.view, pictures.theme()
    picture = expert_charts.estimates(found.estimates, palette=palette)
    said = " ".join(filter(None, (MEANS, _filtered(found), _alone(found), _rounding(shown.rescue))))
    figure("Rescue and its controls", "rescue_estimates", shown.rescue, picture, found.estimates, view, caption=said)
    table(found.estimates, ESTIMATES, key=f"es_expert_estimates_{view.name}", alt="Estimates of the expert")
    if n := found.values["n_active"]:
        mine = text.amount(n, "fact")
        rest = f"{mine} where it is clean-active; in the other {found.values['n'] - n} its rescue counts as 0."
        picture = expert_charts.rescue_histogram(found.facts, palette=palette)
        figure(
            "How the rescue is distributed", "rescue_histogram", shown.rescue, picture, found.facts, view, caption=rest
        )

    def pick(mark: dict[str, int]) -> None:
        row = found.facts[found.facts.fact == mark["fact"]].iloc[0]
        expert_state.look(fact=int(row.case_id))

    picture = expert_charts.rescue_strip(found.facts, found.relations, palette=palette)
    figure(
        "Rescue by relation", "rescue_relations", shown.rescue, picture, found.relations, view, caption=STRIP,
        selection="fact", on_pick=pick,
    )  # fmt: skip

    def pick_relation(row: int) -> None:
        expert_state.look(relation=str(found.relations.relation[row]), fact=None)

    table(
        found.relations, RELATIONS, key=f"es_expert_relations_{view.name}", alt="Rescue by relation",
        on_pick=pick_relation,
    )  # fmt: skip
    st.caption("Tick a relation to list its facts only.")
    _facts(shown, found)


def _filtered(found: Rescue) -> str:
    facts = found.facts
    fails = (facts.clean_contrast < PAPER_CLEAN) | (facts["drop"] < PAPER_DROP)
    return FILTER.format(int(fails.sum()), len(facts), PAPER_CLEAN, PAPER_DROP)


def _alone(found: Rescue) -> str:
    """Only where controls are missing: with one expert per token there never is one."""
    if not (n := int(found.facts.control_random.isna().sum())):
        return ""
    return (
        f"In {n} of {text.amount(len(found.facts), 'fact')} no other expert of the layer is clean-active: nothing to "
        "compare with, and its specificity is missing there."
    )


def _rounding(result: DerivedResult) -> str:
    """Only where it could be mistaken for an effect."""
    where = result.provenance
    if (where["noise_floor"] or 0.0) < VISIBLE_ROUNDING:
        return ""
    return f"Rescues of one fact below {bound(where['noise_floor'])} logits are within rounding ({where['dtype']})."


def _facts(shown: Shown, found: Rescue) -> None:
    """All facts, or those of a relation, each with its way to the Trace page."""
    view, rows = shown.view, found.facts
    if view.relation is not None:
        rows = rows[rows.relation == view.relation]
    rows = rows.sort_values("rescue", ascending=False, kind="stable").reset_index(drop=True)
    of_relation = f" of {text.plain(view.relation)}" if view.relation is not None else ""
    header(f"Facts{of_relation}", "facts", shown.rescue, None, rows, view)
    if view.relation is not None:
        st.button("All relations", on_click=expert_state.look, kwargs={"relation": None}, key="es_expert_all_relations")
    if rows.empty:
        st.caption("No fact of this set is of that relation.")
        return
    last = dict(zip(shown.rescue.tables["facts"].fact, shown.rescue.tables["facts"]["last"], strict=True))
    listed = rows.assign(
        trace=[shown.trace_address(shown.facts[fact], int(last[fact])) for fact in rows.fact]
    )  # fmt: skip

    def pick(row: int) -> None:
        expert_state.look(fact=int(rows.case_id[row]))

    table(
        listed, FACTS, key=f"es_expert_facts_{view.name}_{view.relation}", alt="Facts and the rescue of the expert",
        on_pick=pick, height=460, more=traces(),
    )  # fmt: skip
    mine = rows[rows.case_id == view.fact]
    if view.fact is None or mine.empty:
        st.caption("“open” shows the fact on the Trace page in another tab; tick a row to go there in this one.")
        return
    fact = shown.facts[int(mine.fact.iloc[0])]
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"{text.plain(fact.text)} → **{text.plain(fact.true)}**", width="content")
        study_state.trace_link(shown.trace(fact, int(last[int(mine.fact.iloc[0])])))


def everyone(result: DerivedResult) -> None:
    """The list from which an expert is chosen."""
    found = numbers.of("the rescue of all experts", _everyone, result)
    if found is None:
        return
    view = expert_state.HERE.value
    n = len(result.tables["facts"])
    present.intro(
        f"Every expert that is clean-active at the last position of some of these {n} facts, by the mean rescue of its "
        "patch there. Click one, or tick it in the table. The best of many is there by luck too: judge it on other "
        "facts."
    )

    where = result.provenance
    shape = {name: where[name] for name in ("n_layers", "moe_layers", "n_experts")}
    picture = expert_charts.expert_map(found, palette=pictures.theme(), **shape)
    header("All experts", "experts", result, picture, found, view)
    pictures.show(
        picture, key=f"es_expert_map_{pictures.theme().name}", selection="expert", alt="Mean rescue, layer by expert",
        on_pick=lambda mark: expert_state.look(layer=mark["layer"], expert=mark["expert"]),
    )  # fmt: skip

    def pick(row: int) -> None:
        expert_state.look(layer=int(found.layer[row]), expert=int(found.expert[row]))

    table(found, EVERYONE, key="es_expert_everyone", alt="All experts", on_pick=pick, height=700)


def _everyone(result: DerivedResult) -> pd.DataFrame:
    return expert_tables.every_expert(result.tables)
