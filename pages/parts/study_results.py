"""What a study found: the verdict first, then one section at a time, each with figures, tables and downloads.

Nothing is computed here: the findings are read by a job of the desk and kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import streamlit as st

from core.errors import ExpertScopeError
from core.formats import NONE, count, logit, logits, percent
from core.jobs import FAILED
from core.picture import Picture
from core.results import expert_name
from core.stats import Estimate
from core.study import explain, figures, report, tables, words
from core.study.desk import StudyStatus
from core.study.findings import Findings
from core.study.link import SECTIONS, StudyView
from core.study.settings import StudySettings

from . import (
    address,
    base,
    downloads,
    in_line,
    listing,
    pictures,
    study_columns,
    study_facts,
    study_state,
    study_watch,
    text,
)

PATIENCE = 3.0
"""Seconds that the page waits for what was found before it shows that it is being read."""

TITLES = {
    "overview": "Overview",
    "layers": "Layers",
    "experts": "Experts",
    "controls": "Controls",
    "coalitions": "Coalitions",
    "robustness": "Robustness",
    "relations": "Relations",
    "joint_search": "Joint search",
    "facts": "Facts",
    "settings": "Settings",
}


@dataclass(frozen=True)
class Shown:
    """What a section is drawn from."""

    found: Findings
    view: StudyView

    @cached_property
    def captions(self) -> dict[str, str]:
        return words.captions(self.found)


def draw(status: StudyStatus) -> None:
    """Everything below the head."""
    found = _findings(status.name)
    if found is None:
        return
    if found.rows.empty:
        st.info("Nothing but the filters was measured yet, so there are no results.")
        st.html(study_watch.funnel_bars(found.summary["funnel"], status.settings))
        return
    view = study_state.HERE.value
    _verdict(found)
    _switch(view)
    _SECTIONS[view.section](Shown(found, view))


def _findings(name: str) -> Findings | None:
    desk = base.workbench().studies
    try:
        found = desk.findings(name)
        if found is not None:
            return found
        job = desk.read(name)
    except ExpertScopeError as error:
        st.error(text.error(error))
        return None
    if not in_line.waited(job, PATIENCE):
        _reading(name)
        return None
    if job.state == FAILED:
        st.error(text.error(job.error))
    return job.result


@st.fragment(run_every=0.5)
def _reading(name: str) -> None:
    desk = base.workbench().studies
    status = desk.reading(name)
    if status is None or not status.active:
        address.rerun()
        return
    st.progress(max(status.fraction, 0.05), text=f"Reading what was found: {status.label or 'waiting'}…")


def _verdict(found: Findings) -> None:
    summary = found.summary
    st.html(text.verdict(summary["verdict"], summary["verdict_words"], summary["cautions"]))
    if found.state != "done":
        st.warning("The study is not finished: the numbers are of what is there so far.")
    e, layer = found.analysis.estimates, found.analysis.layer
    expert = NONE if layer is None or found.analysis.expert is None else expert_name(layer, found.analysis.expert)
    chosen = "The candidate with the highest all-case mean rescue on discovery."

    def card(name: str, quantity: str, title: str) -> tuple[str, str, str, str]:
        estimate = e[quantity]
        if estimate.n == 0:
            return name, NONE, "missing", title
        return name, logits(estimate.mean), _ends(estimate), title

    recurrence = summary["recurrence"]
    recurs = "no recurrent expert" if recurrence is None else f"clean-active in {percent(recurrence)} of discovery"
    select = "The layer with the highest mean rescue of the layer patch on discovery."
    rows = [
        ("selected layer", NONE if layer is None else f"L{layer}", "by discovery", select),
        card("layer rescue", "layer_rescue", "Mean rescue of the layer patch on validation, logits."),
        ("selected expert", expert, recurs, chosen),
        card("expert rescue", "expert_rescue", "All validation facts; 0 where the expert is not clean-active."),
        card("specificity", "specificity", "Rescue of the expert minus the mean of active-random controls."),
        card("gate-matched specificity", "gate_matched_specificity", "Minus the expert of nearest router weight."),
    ]
    st.html(text.cards(rows))
    if (found.settings.get("model") or {}).get("name") == "demo":
        st.caption(words.DEMO)


def _ends(estimate: Estimate) -> str:
    low, high = logits(estimate.ci_low), logits(estimate.ci_high)
    return f"[{low}, {high}] · n {estimate.n}"


def _switch(view: StudyView) -> None:
    key = address.key("section")

    def change() -> None:
        study_state.look(section=st.session_state[key] or SECTIONS[0])

    st.segmented_control(
        "Section", SECTIONS, default=view.section, key=key, wrap=True, required=True, format_func=TITLES.__getitem__,
        on_change=address.callback(key, change), label_visibility="collapsed",
    )  # fmt: skip


# -- sections ------------------------------------------------------------------------------------------------------


def _overview(shown: Shown) -> None:
    found = shown.found
    st.markdown("##### Funnel")
    st.html(study_watch.funnel_bars(found.summary["funnel"], found.settings))
    n = found.summary["n_facts"]
    st.caption(f"{words.funnel_sentence(found)} {n['discovery']} discovery and {n['validation']} validation facts.")
    _figure(shown, "published")
    _table(shown, "published")
    _table(shown, "estimates")
    st.caption(words.how_to_read(found))


def _layers(shown: Shown) -> None:
    def pick(mark: dict[str, int]) -> None:
        study_state.look(layer=mark["layer"], expert=None)

    _figure(shown, "layer_curves", selection="layer", on_pick=pick, more="Click a layer for the facts behind it.")
    _table(shown, "layers")
    _behind(shown)


def _experts(shown: Shown) -> None:
    _figure(shown, "experts")
    table = shown.found.tables["experts"]
    layer = shown.found.analysis.layer

    def pick(row: int) -> None:
        study_state.look(layer=layer, expert=int(table.expert[row]))

    _table(shown, "experts", on_pick=pick, more="Tick an expert for the facts behind its mean.")
    _behind(shown)


def _controls(shown: Shown) -> None:
    if shown.found.analysis.expert is None:
        st.info("No expert was selected, so there is nothing to compare with controls.")
        return
    _figure(shown, "controls")
    _table(shown, "controls")


def _coalitions(shown: Shown) -> None:
    for name in ("coalitions", "coalition_search"):
        _figure(shown, name)
        _table(shown, name)


def _robustness(shown: Shown) -> None:
    for name in ("stability", "held_out_relations", "noise", "fresh_draw"):
        if name in figures.TITLES:
            _figure(shown, name)
        _table(shown, name, active="active")


def _relations(shown: Shown) -> None:
    _figure(shown, "relations")
    table = shown.found.tables["relations"]

    def pick(row: int) -> None:
        study_state.look(relation=str(table.relation[row]), section="facts")

    _table(shown, "relations", on_pick=pick, more="Tick a relation for its facts.", active="v_n_active")


def _joint_search(shown: Shown) -> None:
    if not shown.found.settings.get("joint_search", True):
        st.info("This study was begun without the joint search: only experts of the selected layer were patched.")

    def pick(mark: dict[str, int]) -> None:
        study_state.look(layer=mark["layer"], expert=mark["expert"])

    _shrinkage(shown.found)
    more = "Click an expert for the facts behind it."
    _figure(shown, "joint_search", selection="expert", on_pick=pick, more=more)
    table = shown.found.tables["joint_search"]

    def tick(row: int) -> None:
        study_state.look(layer=int(table.layer[row]), expert=int(table.expert[row]))

    _table(shown, "joint_search", on_pick=tick)
    _behind(shown)


def _shrinkage(found: Findings) -> None:
    joint = found.analysis.joint
    if joint.winner is None or joint.discovery is None or joint.validation is None:
        return
    st.html(
        text.cards(
            [
                ("pairs searched", count(joint.n_pairs), f"in {len(joint.layers)} layers", "(layer, expert) pairs."),
                ("candidates", count(joint.n_candidates), "recur often enough", "Pairs that recur often enough."),
                (
                    "winner on discovery",
                    expert_name(*joint.winner),
                    logits(joint.discovery.mean),
                    "Best of all on discovery.",
                ),
                ("on validation", logits(joint.validation.mean), _ends(joint.validation), "The estimate."),
                ("shrinkage", logit(joint.shrinkage), "discovery − validation", "The price of picking the best."),
            ]
        )
    )


def _facts(shown: Shown) -> None:
    study_facts.draw(shown.found, shown.view)


def _settings(shown: Shown) -> None:
    found = shown.found
    st.markdown("##### What was done")
    st.markdown("\n".join(f"{i}. {text.plain(step)}" for i, step in enumerate(words.method(found), start=1)))
    settings = StudySettings.from_dict(found.settings)
    st.markdown("##### The same study from the command line")
    st.code(explain.command(settings, found.name), language="bash", wrap_lines=True)
    st.markdown("##### All settings")
    flat = {name: value for name, value in found.settings.items() if name != "model"}
    flat |= {f"model {name}": value for name, value in found.settings["model"].items() if value is not None}
    listing.plain(
        pd.DataFrame({"setting": list(flat), "value": [explain.shown(v) for v in flat.values()]}),
        most=38 + 35 * len(flat), alt="All settings",
    )  # fmt: skip
    with st.expander("Where these numbers come from"):
        st.json(report.origin(found), expanded=1)


_SECTIONS: dict[str, Callable[[Shown], None]] = {
    "overview": _overview,
    "layers": _layers,
    "experts": _experts,
    "controls": _controls,
    "coalitions": _coalitions,
    "robustness": _robustness,
    "relations": _relations,
    "joint_search": _joint_search,
    "facts": _facts,
    "settings": _settings,
}


# -- pieces --------------------------------------------------------------------------------------------------------


def _draw_figure(found: Findings, name: str, *, palette) -> Picture | None:
    return figures.figure(name, found.analysis, found.tables, palette=palette)


def _figure(
    shown: Shown,
    name: str,
    *,
    selection: str = "",
    on_pick: Callable[[dict[str, int]], None] | None = None,
    more: str = "",
) -> None:
    """A figure with its title, downloads and what was found there; nothing where there is nothing to draw."""
    picture = pictures.kept(_draw_figure, shown.found, name, palette=pictures.theme())
    if picture is None:
        return
    title, caption = figures.TITLES[name], shown.captions.get(name, "")
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown(f"##### {title}", width="content")
        downloads.of_study(name, title, shown.found, picture=picture, table=shown.found.tables[figures.table_of(name)])
    key = f"es_study_{name}_{pictures.theme().name}"
    if on_pick is None:
        pictures.still(picture, key=key, alt=f"{title}. {caption}")
    else:
        pictures.show(picture, key=key, selection=selection, on_pick=on_pick, alt=f"{title}. {caption}")
    if caption or more:
        st.caption(text.plain(f"{caption} {more}".strip()))


def _table(
    shown: Shown, name: str, *, on_pick: Callable[[int], None] | None = None, more: str = "", active: str = "n_active"
) -> None:
    """A table with its title and downloads. A ticked row calls `on_pick` with its number. `active`: as which of
    `study_columns.MEANS` its column n_active is shown."""
    table = shown.found.tables[name]
    if table.empty:
        return
    title = tables.TITLES[name]
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown(f"**{title}**", width="content")
        downloads.of_study(name, title, shown.found, table=table)
    table = table.rename(columns={"n_active": active})
    study_columns.show(table, key=f"es_study_table_{name}_{shown.found.name}", alt=title, on_pick=on_pick)
    caption = "" if name in figures.TITLES or name == "layers" else shown.captions.get(name, "")
    if caption or more:
        st.caption(text.plain(f"{caption} {more}".strip()))


def _behind(shown: Shown) -> None:
    """The facts behind the chosen layer or expert, where one was chosen."""
    if shown.view.layer is not None:
        study_facts.draw(shown.found, shown.view, chosen=True)
