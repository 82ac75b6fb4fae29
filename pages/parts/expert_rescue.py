"""What the expert's patch restores: its distribution over facts and relations, its controls; and the list of all."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from core import expert_charts, expert_tables
from core.derived import DerivedResult
from core.expert_link import ExpertView
from core.expert_tables import Rescue
from core.views import PAPER_CLEAN, PAPER_DROP

from . import expert_state, numbers, pictures, present, study_state, text
from .expert_pieces import TRACE, Column, Shown, figure, header, table

LOGITS = "%+.3f"
EVERYONE: dict[str, Column] = {
    "name": ("expert", None, "Layer and expert."),
    "mean_all": ("rescue", LOGITS, "Mean rescue of its patch at the last position, 0 where it is not clean-active."),
    "mean_active": ("where active", LOGITS, "Mean rescue over the facts where it is clean-active."),
    "n_active": ("active in", "%d", "Facts in which it is clean-active at the last position."),
    "recurrence": ("recurrence", "percent", "Their share of all facts."),
    "mean_weight": ("w clean", "%.3f", "Mean router weight where it is clean-active."),
}
ESTIMATES: dict[str, Column] = {
    "meaning": ("quantity", None, ""),
    "mean": ("mean", LOGITS, "Mean over the facts, logits."),
    "ci_low": ("low", LOGITS, "Lower end of the 95 % bootstrap interval; the facts of a subject stay together."),
    "ci_high": ("high", LOGITS, "Upper end of the interval."),
    "n": ("n", "%d", "Facts with a value."),
    "n_missing": ("missing", "%d", "Facts without a value: not clean-active, or no other expert to compare with."),
    "positive_fraction": ("positive", "percent", "Share of the facts in which it is above 0."),
    "p_sign_flip": ("p", "%.4f", "Two-sided sign-flip test."),
}
RELATIONS: dict[str, Column] = {
    "relation": ("relation", None, ""),
    "n": ("n", "%d", "Facts."),
    "n_active": ("active in", "%d", "Facts in which it is clean-active at the last position."),
    "expert_rescue": ("rescue", LOGITS, "Mean over all facts of the relation, 0 where it is not clean-active."),
    "expert_rescue_low": ("low", LOGITS, "Lower end of the 95 % bootstrap interval."),
    "expert_rescue_high": ("high", LOGITS, "Upper end of the interval."),
    "expert_rescue_active_only": ("where active", LOGITS, "Mean over the facts where it is clean-active."),
    "expert_rescue_active_only_low": ("low", LOGITS, "Lower end of its interval."),
    "expert_rescue_active_only_high": ("high", LOGITS, "Upper end of its interval."),
    "specificity": ("specificity", LOGITS, "Rescue minus the mean of its active-random controls, all facts."),
}
FACTS: dict[str, Column] = {
    "subject": ("subject", None, ""),
    "true": ("true", None, "True object."),
    "rescue": ("rescue", LOGITS, "Of the expert patch at the last position; 0 where it is not clean-active."),
    "clean_active": ("active", None, "Clean-active at the last position."),
    "rank": ("rank", "%d", "Of its rescue among the fact's clean-active experts of this layer."),
    "router_weight": ("w clean", "%.3f", "Router weight in the clean run."),
    "specificity": ("specificity", LOGITS, "Rescue minus the mean of the active-random controls."),
    "gate_matched_specificity": ("gate-matched", LOGITS, "Rescue minus that of the expert with the nearest weight."),
    "drop": ("drop", "%+.2f", "Clean minus corrupt contrast."),
    "relation": ("relation", None, ""),
    "prompt": ("prompt", None, ""),
    "case_id": ("case_id", "%d", ""),
}
STRIP = (
    "One dot per fact. Pink tick: mean of the relation, with 0 where the expert is not clean-active. Click a dot for "
    "its fact."
)
FILTER = "No fact is filtered out; {} of {} would not pass the paper's filter (clean contrast {:g}, drop {:g} logits). "
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
    said = MEANS + " " + _filtered(found) + _rounding(shown.rescue)
    figure("Rescue and its controls", "rescue_estimates", shown.rescue, picture, found.estimates, view, caption=said)
    table(found.estimates, ESTIMATES, key=f"es_expert_estimates_{view.name}", alt="Estimates of the expert")
    if n := found.values["n_active"]:
        rest = f"{n} facts where it is clean-active; in the other {found.values['n'] - n} its rescue counts as 0."
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


def _rounding(result: DerivedResult) -> str:
    """Only where it could be mistaken for an effect."""
    where = result.provenance
    if (where["noise_floor"] or 0.0) < VISIBLE_ROUNDING:
        return ""
    return f"Rescues of one fact below {where['noise_floor']:.2g} logits are within rounding ({where['dtype']})."


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
        on_pick=pick, height=460, more={"trace": TRACE},
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
    shape = {"moe_layers": where["moe_layers"], "n_experts": where["n_experts"]}
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
