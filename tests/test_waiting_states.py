"""Every place of every page that waits for work, drawn while the work is held: what is said, cancelling, an error, and
the way on. On a small random model."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import streamlit as st
from page_on_model import APP, shown, small_model, workbench_for
from streamlit.runtime.caching import clear_session_resource_cache
from streamlit.testing.v1 import AppTest
from word_facts import word_facts

from core import expert_link, routing_link
from core.averages import link as averages_link
from core.averages.link import AveragesView
from core.derived import DerivedRequest
from core.errors import ModelError
from core.expert_link import ExpertView
from core.jobs import CANCELLED, Job
from core.moe import MoeModel
from core.progress import Progress
from core.requests import ModelSpec, TraceRequest
from core.routing_link import PROMPTS, PromptSet, RoutingView
from core.workbench import Engine, Workbench, real_engine
from pages.parts import numbers, pictures, viewer
from pages.parts.text import plain

WAIT = 60.0
FACTS = (*word_facts()[:2], word_facts()[4])
HELD = "held up"
GONE = ModelError("The model is gone.", "Copy it again.")


class Hold:
    """Stands before all that takes long: what `wanted` is true for waits for `go`, then raises `error` if there is
    one. `begun`: it waits."""

    def __init__(self) -> None:
        self.reset()

    def reset(self, wanted=lambda what: False) -> None:
        self.wanted, self.error = wanted, None
        self.go, self.begun = threading.Event(), threading.Event()

    def __call__(self, what: object, progress: Progress) -> None:
        if not self.wanted(what):
            return
        self.begun.set()
        while not self.go.wait(0.005):
            progress.update(1, 4, HELD)
            progress.check()
        if self.error is not None:
            raise self.error


@pytest.fixture(scope="module")
def hold() -> Hold:
    return Hold()


@pytest.fixture(scope="module")
def model() -> MoeModel:
    return small_model()


@pytest.fixture(scope="module")
def everywhere(model, hold, tmp_path_factory) -> Iterator[Workbench]:
    """One workbench for all tests: what one of them asked for is there for the next."""
    real = real_engine()

    def load(name, *, progress, **options):
        hold(name, progress)
        return model

    def trace_many(model, requests, *, store, progress):
        hold(requests[0], progress)
        return real.trace_many(model, requests, store=store, progress=progress)

    def derive(model, request, *, store, progress):
        hold(request, progress)
        return real.derive(model, request, store=store, progress=progress)

    st.cache_data.clear()  # the Trace page remembers the bundled facts, for all tests
    with workbench_for(model, FACTS, tmp_path_factory.mktemp("store") / "store.duckdb") as made:
        made._engine = Engine(load, trace_many, real.from_store, derive, real.derived_from_store)
        made.residents._load = load
        submit = made.jobs.submit

        def held(key, title, work, **options):
            """Counting is held, too."""
            def hold_and_count(progress):
                hold((numbers.LANE, title), progress)
                return work(progress)

            return submit(key, title, hold_and_count if options["lane"] == numbers.LANE else work, **options)

        made.jobs.submit = held
        yield made
        hold.go.set()
    st.cache_data.clear()


@pytest.fixture
def bench(everywhere, hold) -> Iterator[Workbench]:
    yield everywhere
    hold.go.set()
    for job in everywhere.jobs.all():
        job.cancel()
        assert job.wait(WAIT)
    hold.reset()


@dataclass(frozen=True)
class Place:
    """A place that waits. `params`: of the page's link; `held`: kind of the question that is held, or what a trace's
    request is held with; `title`: what the page calls it."""

    page: str
    title: str
    params: dict[str, str]
    held: Any

    def wants(self, what: object) -> bool:
        if isinstance(what, TraceRequest):
            return isinstance(self.held, dict) and all(getattr(what, n) == v for n, v in self.held.items())
        return isinstance(what, DerivedRequest) and what.kind == self.held


TRACE = f"{FACTS[0].subject} → {FACTS[0].true}"
FACT = {"fact": str(FACTS[0].case_id)}
COMPARED = {"a.fact": FACT["fact"]}
CELL = FACT | {"layer": "1", "pos": "3"}
AVERAGES = averages_link.to_query(AveragesView(min_drop=None))
TWO_SETS = routing_link.to_query(RoutingView(section="compare", b=PromptSet(PROMPTS, prompts=("Rome is",))))


def expert(**view: Any) -> dict[str, str]:
    return expert_link.to_query(ExpertView(layer=1, expert=0, **view))


PLACES = {
    "trace": Place("", TRACE, FACT | {"noise": "2"}, {"noise": 2.0}),
    "experts": Place("", TRACE, FACT | {"pos": "1"}, {"experts": (1,)}),
    "site": Place("", "Layer × token at another site", FACT | {"site": "attention"}, "site_map"),
    "check": Place("", TRACE, FACT | {"check": "1"}, {"corruption": "replace"}),
    "coalition": Place("", "Coalition of experts", CELL | {"section": "coalition", "coalition": "0,1"}, "coalition"),
    "minimal": Place("", "Minimal set", CELL | {"section": "minimal"}, "minimal_set"),
    "necessity": Place("", "Knockouts of a cell's experts", CELL | {"section": "necessity"}, "cell_knockouts"),
    "controls": Place("", "Controls of an expert", CELL | {"section": "controls", "expert": "0"}, "cell_controls"),
    "method": Place("Method", TRACE, FACT | {"noise": "1.5"}, {"noise": 1.5}),
    "averages": Place("Averages", "Averages over facts", AVERAGES, "averages"),
    "averages experts": Place("Averages", "Experts over facts", AVERAGES | {"seed": "1"}, "expert_averages"),
    "routing": Place("Routing", "Routing of many prompts", {}, "routing"),
    "pasted": Place("Routing", "Routing of many prompts", {"set": PROMPTS, "prompts": "Rome is"}, "routing"),
    "two sets": Place("Routing", "Routing of two sets compared", TWO_SETS, "routing_comparison"),
    "expert": Place("Expert", "Rescue of all experts", expert(noise=2.5), "expert_rescue"),
    "expert routing": Place("Expert", "Routing of many prompts", expert(seed=3), "routing"),
    "knockout": Place("Expert", "Knocking the expert out", expert(section="knockout"), "expert_knockout"),
    "writes": Place("Expert", "What an expert writes", expert(section="writes"), "expert_writes"),
    "size": Place("Expert", "Size of an expert's output", expert(section="size"), "expert_size"),
    "neurons": Place("Expert", "Neurons of an expert", expert(section="neurons"), "expert_neurons"),
    "steering": Place("Expert", "Steering an expert", expert(section="steering"), "steering"),
    "compare b": Place("Compare", TRACE, COMPARED | {"b.noise": "1"}, {"noise": 1.0}),
    "compare map": Place("Compare", "b · Layer × token at another site", COMPARED | {"b.site": "residual"}, "site_map"),
    "validation": Place("Library", "Validation of facts", {"show": "validation"}, "validation"),
}


def opened(page: str, params: dict[str, str]) -> AppTest:
    made = AppTest.from_file(str(APP), default_timeout=60)
    if page:
        made.switch_page(f"pages/{page}.py")
    for name, value in params.items():
        made.query_params[name] = value
    return ran(made)


def ran(what) -> AppTest:
    page = what.run()
    assert not page.exception, page.exception
    return page


def until(page: AppTest, bench: Workbench, hold: Hold, there) -> AppTest:
    """The page once `there()`: drawn again whenever all work has ended or is held."""
    deadline = time.monotonic() + WAIT
    while not there():
        while not hold.begun.is_set() and any(job.status().active for job in bench.jobs.all()):
            assert time.monotonic() < deadline, [job.status() for job in bench.jobs.all()]
            time.sleep(0.005)
        assert time.monotonic() < deadline, (boxes(page), shown(page))
        ran(page)
    return page


def boxes(page: AppTest) -> list[str]:
    return [re.sub(r"\\(.)", r"\1", box.proto.text) for box in page.get("progress")]


def button(page: AppTest, label: str):
    return next(b for b in page.button if b.label == label)


def job_of(bench: Workbench, place: Place) -> Job:
    """The latest job of that place."""
    return next(job for job in reversed(bench.jobs.all()) if place.wants(job.key))


@pytest.mark.parametrize("name", PLACES)
def test_who_waits_is_told_for_what_and_can_cancel_and_go_on(bench, hold, name):
    place = PLACES[name]
    hold.reset(place.wants)
    page = opened(place.page, place.params)
    until(page, bench, hold, lambda: [HELD in box for box in boxes(page)] == [True])  # what else it needs is there
    (box,) = boxes(page)
    assert re.fullmatch(rf"{re.escape(place.title)}: {HELD} · (under 1|\d+) s so far", box)
    ran(button(page, "Cancel").click())
    job = job_of(bench, place)
    assert job.wait(WAIT) and job.state == CANCELLED
    until(page, bench, hold, lambda: not boxes(page))
    assert f"Cancelled: {place.title}. What was finished before is kept." in shown(page)
    assert job_of(bench, place) is job, "it does not begin again by itself"
    hold.error = GONE
    hold.go.set()
    ran(button(page, "Try again").click())
    until(page, bench, hold, lambda: not boxes(page))
    assert "Cancelled" not in shown(page) and f"{GONE.what}  \n{GONE.next}" in shown(page)
    assert button(page, "Try again")


COUNTED = {
    "averages by role": Place("Averages", "", AVERAGES, None),
    "the rescue of all experts": Place("Expert", "", {}, None),
    "the rescue of L1E000": Place("Expert", "", expert(section="rescue"), None),
    "the routing of L1E000": Place("Expert", "", expert(), None),
    "expert frequency": Place("Routing", "", {}, None),
    "co-activation": Place("Routing", "", {"show": "co-activation"}, None),
}


@pytest.mark.parametrize("name", COUNTED)
def test_what_is_counted_from_an_answer_is_named_and_can_be_counted_again(bench, hold, name, monkeypatch):
    monkeypatch.setattr(numbers, "PATIENCE", 0.05)
    monkeypatch.setattr(pictures, "_cache", type(pictures._cache)())
    hold.reset(lambda what: what == (numbers.LANE, name))
    page = opened(COUNTED[name].page, COUNTED[name].params)
    said = re.compile(rf"Counting {name} · (under 1|\d+) s so far")
    until(page, bench, hold, lambda: any(said.fullmatch(box) for box in boxes(page)))
    hold.error = GONE
    hold.go.set()
    until(page, bench, hold, lambda: not boxes(page))
    assert [error.value for error in page.error] == [f"{plain(GONE.what)}  \n{plain(GONE.next)}"]
    hold.error = None
    ran(button(page, "Try again").click())
    until(page, bench, hold, lambda: not boxes(page))
    assert not page.error and "Try again" not in [b.label for b in page.button]


# -- several who wait --------------------------------------------------------------------------------------------------


@pytest.fixture
def looks(monkeypatch):
    """Says who looks at the pages that are drawn from now on."""
    who = ["ada"]
    monkeypatch.setattr(viewer, "me", lambda: who[0])
    return lambda name: who.__setitem__(0, name)


def asked(noise: float, **params: str) -> dict[str, str]:
    return FACT | {"noise": f"{noise:g}"} | params


def waits_for(noise: float):
    return lambda what: isinstance(what, TraceRequest) and what.noise == noise


def test_who_cancels_a_question_leaves_it_to_those_who_wait_for_it_too(bench, hold, looks):
    hold.reset(waits_for(3.1))
    first = opened("", asked(3.1))
    until(first, bench, hold, lambda: any(HELD in box for box in boxes(first)))
    (job,) = [job for job in bench.jobs.all() if job.status().active]
    looks("bob")
    second = opened("", asked(3.1))
    assert HELD in boxes(second)[0] and job.owners == {"ada", "bob"}
    ran(button(second, "Cancel").click())
    assert not boxes(second) and job.owners == {"ada"}
    assert f"Cancelled: {TRACE}. Another viewer waits for it too, so it goes on." in shown(second)
    ran(button(second, "Try again").click())
    assert HELD in boxes(second)[0] and job.owners == {"ada", "bob"}
    looks("ada")
    ran(button(first, "Cancel").click())
    assert job.status().active, "bob waits for it again"
    hold.go.set()
    assert job.wait(WAIT)
    assert not ran(first).info and ran(first).metric, "what is there by now is shown"


def test_two_places_of_a_page_wait_for_one_question_and_one_of_them_asks_another(bench, hold):
    hold.reset(waits_for(3.2))
    page = opened("Compare", COMPARED | {"a.noise": "3.2"})
    until(page, bench, hold, lambda: any(HELD in box for box in boxes(page)))
    assert [box.split(" · ")[0] for box in boxes(page)] == [f"{TRACE}: {HELD}"] * 2
    (job,) = [job for job in bench.jobs.all() if job.status().active]
    page.query_params["b.noise"] = "3.3"
    ran(page)
    assert [box.split(" · ")[0] for box in boxes(page)] == [
        f"{TRACE}: {HELD}", f"{TRACE}: waits for your own trace of {TRACE} on demo",
    ]  # fmt: skip
    assert not job.stopping
    other = next(job for job in bench.jobs.all() if job.status().waits)
    ran(page.button(f"es_cancel_compare b_{other.id}").click())
    assert other.state == CANCELLED and HELD in boxes(page)[0] and len(boxes(page)) == 1


def test_who_leaves_frees_the_place_in_the_queue(bench, hold, looks, monkeypatch):
    hold.reset(waits_for(3.4))
    pages = {}
    for name, noise in (("ada", 3.4), ("bob", 3.5), ("carol", 3.6)):
        looks(name)
        pages[name] = opened("", asked(noise))
        until(pages[name], bench, hold, lambda: boxes(pages[name]))  # noqa: B023
    says = f"{TRACE}: waits for another viewer's trace on demo"
    assert boxes(pages["carol"]) == [f"{says} · place 2 of 2 in the queue"]
    monkeypatch.setattr(viewer, "GRACE", 0.01)
    viewer._here.add("bob")
    viewer.gone("bob")
    (his,) = [job for job in bench.jobs.all() if waits_for(3.5)(job.key)]
    assert his.wait(WAIT) and his.state == CANCELLED
    assert boxes(ran(pages["carol"])) == [says]
    viewer._here.add("carol")  # her connection broke, but she is back before it is looked at
    viewer._let_go("carol")
    assert boxes(ran(pages["carol"])) == [says]
    viewer._here.discard("carol")
    ran(button(pages["carol"], "Cancel").click())
    assert f"Cancelled: {TRACE}." in shown(pages["carol"])


def test_streamlit_says_when_a_tab_is_gone(bench, hold, monkeypatch):
    hold.reset(waits_for(3.7))
    page = opened("", asked(3.7))
    until(page, bench, hold, lambda: any(HELD in box for box in boxes(page)))
    (job,) = [job for job in bench.jobs.all() if job.status().active]
    monkeypatch.setattr(viewer, "GRACE", 0.01)
    (tab,) = job.owners
    clear_session_resource_cache(tab)  # what Streamlit does when the connection of a tab ends
    assert job.wait(WAIT) and job.state == CANCELLED


# -- loading by hand ---------------------------------------------------------------------------------------------------


def test_loading_can_be_watched_cancelled_and_joined_and_what_goes_wrong_is_said(bench, hold):
    bench.residents.drop()
    hold.reset(lambda what: what == "demo")
    page = opened("Library", {"show": "models"})
    ran(button(page, "Load it now").click())
    until(page, bench, hold, lambda: any(HELD in box for box in boxes(page)))
    assert re.fullmatch(rf"Loading demo: {HELD} · (under 1|\d+) s so far", *boxes(page))
    ran(button(page, "Cancel").click())
    until(page, bench, hold, lambda: not boxes(page))
    assert "Cancelled: Loading demo." in shown(page)
    assert "Cancelled" not in shown(ran(page)), "said once"
    hold.begun.clear()
    ran(button(page, "Load it now").click())
    again = opened("Library", {"show": "models"})  # read anew, or another viewer
    until(again, bench, hold, lambda: any(HELD in box for box in boxes(again)))
    hold.error = GONE
    hold.go.set()
    for one in (page, again):
        until(one, bench, hold, lambda: not boxes(one))  # noqa: B023
        assert [error.value for error in one.error] == [f"{plain(GONE.what)}  \n{plain(GONE.next)}"]
        assert not button(one, "Load it now").disabled
    hold.error = None
    ran(button(page, "Load it now").click())
    until(page, bench, hold, lambda: not boxes(page))
    assert "demo** is loaded" in shown(page) and not ran(page).error


def test_a_trace_waits_for_the_loading_of_its_model(bench, hold):
    bench.residents.drop()
    hold.reset(lambda what: what == "demo")
    job = bench.load(ModelSpec(), owner="another")
    page = opened("", asked(3.8))
    until(page, bench, hold, lambda: boxes(page))
    assert boxes(page) == [f"{TRACE}: waits for another viewer's loading of demo"]
    hold.go.set()
    assert job.wait(WAIT)
    until(page, bench, hold, lambda: not boxes(page))
    assert page.metric
