"""How every page begins: page configuration, the one workbench of the process, the bundled facts."""

from __future__ import annotations

import functools

import streamlit as st

from core import closing, facts, logs
from core.errors import ExpertScopeError
from core.fact_sets import BUNDLED, FactSet, choose
from core.requests import Fact
from core.workbench import Workbench

from . import display, door, present

DEFAULT_SUBJECT, DEFAULT_OBJECT = "France", "Paris"


def start_page(title: str) -> None:
    """The first call of a page."""
    st.set_page_config(
        page_title=f"{title} · ExpertScope",
        page_icon="🔬",
        layout="wide",
        menu_items={"About": "ExpertScope: which experts of a sparse model carry a fact."},
    )
    door.check()
    display.begin()
    present.begin()


def end_page() -> None:
    """The last call of a page: it is drawn, so that fetching what computes no longer holds it up."""
    present.end()
    workbench().warm_up()


@st.cache_resource(show_spinner=False)
def workbench() -> Workbench:
    """The process's workbench, shared by all sessions."""
    logs.configure()
    bench = open_workbench()
    closing.at_end(bench.close)
    return bench


def open_workbench() -> Workbench:
    """A new workbench with the store in its usual place."""
    return Workbench.open()


@functools.lru_cache(maxsize=1)
def bundled() -> dict[int, Fact]:
    """The bundled facts by case_id, in file order; empty where the file is missing (the page says so)."""
    try:
        return {fact.case_id: fact for fact in facts.bundled()}
    except ExpertScopeError:
        return {}


def listed(source: str) -> tuple[Fact, ...]:
    """The facts of a list: the bundled one, or one of the store. Raises ExpertScopeError where there is none."""
    return tuple(bundled().values()) if source == BUNDLED else workbench().fact_lists.get(source)


def facts_of(fact_set: FactSet) -> tuple[Fact, ...]:
    """The facts that are meant; none where their list is not there (`fact_set_panel` says why)."""
    try:
        return choose(fact_set, listed(fact_set.source))
    except ExpertScopeError:
        return ()


def is_bundled(fact: Fact) -> bool:
    """Whether a link can name the fact by its case_id alone."""
    return bundled().get(fact.case_id) == fact


def default_fact() -> Fact:
    """The fact of a first visit: France and Paris where that is bundled."""
    known = bundled().values()
    for fact in known:
        if fact.subject == DEFAULT_SUBJECT and fact.true == DEFAULT_OBJECT:
            return fact
    return next(iter(known), Fact("The capital of {} is", DEFAULT_SUBJECT, DEFAULT_OBJECT, "Rome"))
