"""What the clean runs lose without the expert: on its own facts, on others, by relation."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from core import expert_charts, expert_link, expert_tables
from core.derived import DerivedResult
from core.expert_link import EVERYWHERE, LAST, REROUTE, ZERO
from core.formats import logits

from . import address, expert_state, numbers, pictures, present
from .answers import answer
from .expert_pieces import Shown, figure, header, table, traces
from .listing import Column

PLACES = {EVERYWHERE: "at every position", LAST: "at the last position"}
ESTIMATES: dict[str, Column] = {
    "mode": Column("mode", "zero: its contribution is taken out; reroute: it cannot be chosen."),
    "group": Column("facts", "Own: the expert is clean-active at the last position. Other: it is not."),
    "mean": Column("change", "Mean change of the clean contrast, logits; below 0: the knockout costs."),
    "ci_low": Column("low", "Lower end of the 95 % bootstrap interval; the facts of a subject stay together."),
    "ci_high": Column("high", "Upper end of the interval."),
    "n": Column("n", "Facts."),
    "touched": Column("touched", "Facts in which it is routed at some knocked-out position; the others change by 0."),
    "p_sign_flip": Column("p", "Two-sided sign-flip test."),
}
RELATIONS: dict[str, Column] = {
    "relation": Column("relation"),
    "mode": Column("mode"),
    "mean": Column("change", "Mean change of the clean contrast over the relation's facts, logits."),
    "ci_low": Column("low", "Lower end of the 95 % bootstrap interval."),
    "ci_high": Column("high", "Upper end of the interval."),
    "n": Column("n", "Facts."),
    "n_own": Column("own", "Facts of the relation in which it is clean-active at the last position."),
}
FACTS: dict[str, Column] = {
    "subject": Column("subject"),
    "change": Column("change", "Of the clean contrast (logits); below 0: the knockout costs."),
    "clean_contrast": Column("clean contrast", "Without the knockout."),
    "contrast": Column("contrast", "With it."),
    "positions": Column("positions", "At how many the expert was taken out."),
    "clean_active": Column("own", "Clean-active at the last position."),
    "router_weight": Column("w clean", "Router weight at the last position."),
    "relation": Column("relation"),
    "case_id": Column("case_id"),
}
NOTE = (
    "In the clean run. Zero mode subtracts what the expert contributes there, without renormalisation; reroute mode "
    "masks it where the router's top-k selects, so that another expert steps in. A rescue shows what suffices, a "
    "knockout what is needed; later layers compensate."
)


def count(result: DerivedResult) -> expert_tables.Knockout:
    """The means of an answer."""
    return expert_tables.knockout(result.tables["knockouts"])


def draw(shown: Shown) -> None:
    """The section."""
    request = expert_link.knockout_request(shown.view, shown.facts)
    result, _ = answer(request, "expert knockout")
    if result is None:
        return
    found = numbers.of(f"the knockout of {shown.view.name}", count, result)
    if found is None:
        return
    present.intro(NOTE)
    if REROUTE not in result.values["modes"]:
        present.intro("This model's router cannot be driven so that it reroutes: only the zero mode is shown.")
    view, palette = shown.view, pictures.theme()
    place, key = view.place, address.key("expert place")
    st.segmented_control(
        "Where it is knocked out", list(PLACES), default=place, key=key, wrap=True, required=True,
        format_func=PLACES.__getitem__, label_visibility="collapsed",
        on_change=address.callback(key, lambda: expert_state.look(place=st.session_state[key] or EVERYWHERE)),
    )  # fmt: skip
    estimates = found.estimates[found.estimates.place == place].reset_index(drop=True)
    picture = expert_charts.knockout_bars(found.estimates, place, palette=palette)
    figure(
        "Cost on its own facts, side effects on others", f"knockout_{place}", result, picture, found.estimates, view,
        caption=_sentence(estimates),
    )  # fmt: skip
    estimates = estimates.sort_values(["mode", "group"], ascending=[False, False], ignore_index=True)
    table(estimates, ESTIMATES, key=f"es_expert_knockout_{view.name}_{place}", alt="Knockout: own and other facts")
    relations = found.relations[found.relations.place == place].reset_index(drop=True)
    picture = expert_charts.knockout_relations(found.relations, place, palette=palette)
    figure(
        "By relation", f"knockout_relations_{place}", result, picture, found.relations, view,
        caption="Mean change of the clean contrast over all facts of the relation, most lost first.",
    )  # fmt: skip
    table(
        relations.sort_values("mean", ignore_index=True), RELATIONS, alt="Knockout by relation",
        key=f"es_expert_knockout_relations_{view.name}_{place}",
    )  # fmt: skip
    _facts(shown, result, found.facts[found.facts.place == place])


def _sentence(estimates: pd.DataFrame) -> str:
    zero = estimates[estimates["mode"] == ZERO].set_index("group")
    parts = []
    for group in (expert_tables.OWN, expert_tables.OTHERS):
        if zero.n[group]:
            parts.append(f"{group} {logits(zero['mean'][group])} (n {zero.n[group]})")
    return f"Mean change in zero mode, logits: {', '.join(parts)}." if parts else ""


def _facts(shown: Shown, result: DerivedResult, rows: pd.DataFrame) -> None:
    """Fact by fact, in zero mode, each with its way to the Trace page."""
    rows = rows[rows["mode"] == ZERO].sort_values("change", kind="stable").reset_index(drop=True)
    header("Fact by fact, zero mode", "knockout_facts", result, None, result.tables["knockouts"], shown.view)
    listed = rows.assign(trace=[shown.trace_address(shown.facts[fact], None) for fact in rows.fact])
    key = f"es_expert_knockout_facts_{shown.view.name}_{shown.view.place}"
    table(listed, FACTS, key=key, alt="Knockout fact by fact", more=traces())
