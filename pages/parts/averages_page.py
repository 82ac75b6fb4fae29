"""The Averages page: the role-averaged maps of many facts, and the experts at one role."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import streamlit as st

from core.averages import tables
from core.averages.link import AveragesView, check
from core.averages.questions import cells_request
from core.derived import DerivedResult
from core.requests import Fact, corrupt_runs
from core.sites import MEANING

from . import averages_sidebar, base, frame, in_line, listing, present, text
from . import averages_state as state
from .answers import answer

if TYPE_CHECKING:
    from core.script import Script

AUTO_RUNS = 160
"""Up to so many corrupt runs of the demo start without a click."""


@in_line.drawn
def draw() -> None:
    """The whole page."""
    base.start_page("Averages")
    view = state.HERE.begin()
    averages_sidebar.draw(view)
    state.HERE.write()
    top = st.container()
    frame.problems(view.problems)
    facts = base.facts_of(view.facts)
    if facts:
        _averages(view, facts, top)
    else:
        _title(top)
        st.info("There is no fact in this set. Choose others in the sidebar.")
    frame.foot()


def starts(view: AveragesView, facts: tuple[Fact, ...]) -> bool:
    """Whether it is quick enough to start without a click."""
    return view.asked.model.name == "demo" and len(facts) * view.asked.draws <= AUTO_RUNS


def _averages(view: AveragesView, facts: tuple[Fact, ...], top: Any) -> None:
    request = cells_request(view.asked, facts, site=view.site, window=view.window)
    result, fresh = answer(request, "averages", auto=starts(view, facts))
    _title(top, result, fresh)
    if result is None:
        return
    where = result.provenance
    layers = sorted(int(layer) for layer in result.tables["cells"].layer.unique())
    view, problems = check(
        view, layers=layers, moe_layers=where["moe_layers"], n_layers=where["n_layers"],
        n_experts=where["n_experts"], shared=where["has_shared"],
    )  # fmt: skip
    for problem in problems:
        st.warning(text.plain(problem))
    with top:
        _what(view, result)
    counted = tables.count(result, min_drop=view.min_drop)
    if not counted.kept:
        smaller = ", or a smaller least drop" if counted.small_drop else ""
        st.info(f"None of these facts is left to average. Choose others in the sidebar{smaller}.")
        return
    from . import averages_experts, averages_maps  # charts take most of a second to import: the head is there by then

    averages_maps.draw(view, result, facts)
    averages_experts.draw(view, facts, auto=starts(view, facts))
    with st.expander("Where these numbers come from"):
        st.json({"request": result.request.to_dict(), "provenance": where}, expanded=1)


def _title(place: Any, result: DerivedResult | None = None, fresh: bool = False) -> None:
    """The page's name, where the answer came from, report, script and link."""
    with place, st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        with st.container(horizontal=True, vertical_alignment="center", width="content"):
            st.subheader("Averages", anchor=False, width="content")
            if result is not None:
                frame.came_from(str(result.provenance["created"]), fresh)
        with st.container(horizontal=True, vertical_alignment="center", width="content"):
            present.place("averages", "Averages over facts", script=_script)
            with st.popover("Link", icon=":material/link:"):
                st.caption("Opens exactly this: model, facts, settings, site, cell and expert.")
                st.code(state.address(), language=None, wrap_lines=True)


def _script(result: DerivedResult) -> Script:
    from core.script import of_averages, of_derived

    view = state.HERE.value
    if any(name.startswith("-") for name in view.facts.relations):  # the command would take it for an option
        return of_derived(result.request, bundled=base.bundled().get)
    return of_averages(result.request, view.facts, min_drop=view.min_drop)


def _findings(view: AveragesView, result: DerivedResult) -> list[str]:
    """What was done, over how many facts, how many are left out and why."""
    around = f", in windows of {view.window} layers at once" if view.window > 1 else ""
    counted = tables.count(result, min_drop=view.min_drop)
    return [
        f"For every layer and position of every fact, {MEANING[view.site]}{around}; then averaged over the facts by "
        f"the role of the position. Corrupt runs: {corrupt_runs(view.asked)}.",
        tables.facts_in_words(counted, min_drop=view.min_drop),
    ]


def _what(view: AveragesView, result: DerivedResult) -> None:
    """The findings, and the facts that are left out one by one."""
    findings = _findings(view, result)
    present.say(findings)
    for sentence in findings:
        st.markdown(text.plain(sentence))
    left_out = tables.left_out(result, min_drop=view.min_drop)
    if len(left_out):
        with st.expander(f"{len(left_out)} fact{'s' if len(left_out) != 1 else ''} left out"):
            listing.left_out(left_out, alt="Facts that are left out, and why")
