"""Lists of one's own on the Trace page: choosing a fact of one, and its neighbours. The engine is made up."""

from __future__ import annotations

import dataclasses

import pytest
from fake_results import FRANCE
from test_trace_page import JAPAN, bench, engine, finished, opened, params_of, shown, widget  # noqa: F401

from cache.fact_lists import FactLists
from core.browsing import BROWSING_NAMES
from core.fact_lists import FactListDesk
from core.links import View, to_query
from core.requests import Fact, TraceRequest
from pages.parts import neighbours

ROME = Fact(prompt="{} lies in", subject="Rome", true="Italy", foil="Spain", case_id=3, relation="lies_in")
OSLO = dataclasses.replace(ROME, subject="Oslo", true="Norway", case_id=9)
LONE = Fact(prompt="{} was written by", subject="Emma", true="Austen", foil="Eliot", case_id=4)
MINE = (ROME, LONE, FRANCE, OSLO)


@pytest.fixture
def lists(bench, tmp_path):  # noqa: F811
    """The bench with one stored list, `mine`."""
    bench.fact_lists = FactListDesk(FactLists(tmp_path / "store.duckdb"))
    bench.fact_lists.put("mine", MINE)
    neighbours._holding.cache_clear()
    return bench


def link_of(fact: Fact, *, listed: str = "", bundled: bool = False, view: View = View()) -> dict[str, str]:
    return to_query(TraceRequest(fact=fact), view, bundled=bundled, listed=listed)


def pressed(page, label: str, bench):  # noqa: F811
    return finished(next(button for button in page.button if button.label == label).click().run(), bench)


def test_a_fact_of_a_stored_list_has_the_neighbours_of_its_relation_there(lists, engine):  # noqa: F811
    page = finished(opened(link_of(ROME, view=View(layer=2))), lists)
    assert "Fact 1 of 2: lies in, in the list “mine”" in shown(page), "found without the link's saying so"
    page = pressed(page, "Next", lists)
    assert engine.asked[-1].fact == OSLO and params_of(page) == link_of(OSLO, listed="mine", view=View(layer=2))
    assert "Fact 2 of 2: lies in" in shown(page)
    page = pressed(page, "Next", lists)
    assert params_of(page) == link_of(ROME, listed="mine", view=View(layer=2)), "round and round"


def test_facts_that_stand_alone_or_in_no_list_have_no_neighbours(lists, engine):  # noqa: F811
    for link in (link_of(LONE), link_of(LONE, listed="mine"), link_of(dataclasses.replace(ROME, true="France"))):
        page = finished(opened(link), lists)
        assert not {"Next", "Previous"} & {button.label for button in page.button}


def test_a_list_that_is_not_here_is_said_and_the_fact_shown(lists, engine):  # noqa: F811
    page = finished(opened(link_of(ROME, listed="gone")), lists)
    assert engine.asked[-1].fact == ROME and len(page.metric) == 4
    assert "There is no list of facts" in shown(page) and params_of(page)["list"] == "gone"


def test_a_bundled_fact_of_a_list_stays_in_that_list(lists, engine):  # noqa: F811
    lists.fact_lists.put("capitals", [FRANCE, dataclasses.replace(JAPAN, prompt="{}'s capital is")])
    page = finished(opened(link_of(FRANCE, listed="capitals", bundled=True)), lists)
    page = pressed(page, "Previous", lists)
    assert engine.asked[-1].fact.prompt == "{}'s capital is" and params_of(page)["list"] == "capitals"
    page = pressed(page, "Next", lists)
    assert params_of(page) == link_of(FRANCE, listed="capitals", bundled=True)


def test_the_sidebar_offers_lists_of_ones_own(lists, engine):  # noqa: F811
    page = finished(opened(link_of(FRANCE, bundled=True)), lists)
    widget(page.segmented_control, "Where the fact comes from").set_value("lists").run()
    assert widget(page.selectbox, "List of facts").options == ["mine"]
    fact = widget(page.selectbox, "Fact")
    assert fact.value is None and fact.options == [
        "Rome → Italy  ·  lies in", "Emma → Austen", "France → Paris  ·  capital", "Oslo → Norway  ·  lies in",
    ]  # fmt: skip
    page = finished(fact.select("Oslo → Norway  ·  lies in").run(), lists)
    assert engine.asked[-1].fact == OSLO and params_of(page) == link_of(OSLO, listed="mine")
    assert widget(page.segmented_control, "Where the fact comes from").value == "lists"
    assert widget(page.selectbox, "Fact").value == OSLO.case_id
    page = finished(widget(page.number_input, "Draws").set_value(2).run(), lists)
    assert params_of(page)["list"] == "mine" and engine.asked[-1].draws == 2
    widget(page.segmented_control, "Where the fact comes from").set_value("bundled").run()
    page = finished(widget(page.selectbox, "Fact").select("Japan → Tokyo  ·  capital").run(), lists)
    assert "list" not in params_of(page) and engine.asked[-1].fact == JAPAN


def browsed(page) -> dict[str, str]:
    """What the address says of the list that is leafed through."""
    return {name: value for name, value in params_of(page).items() if name in BROWSING_NAMES}


def test_what_is_leafed_through_is_in_the_address(lists, engine):  # noqa: F811
    page = finished(opened(link_of(FRANCE, bundled=True)), lists)
    assert browsed(page) == {}
    widget(page.segmented_control, "Where the fact comes from").set_value("typed").run()
    assert browsed(page) == {"choose": "typed"}
    widget(page.segmented_control, "Where the fact comes from").set_value("lists").run()
    assert browsed(page) == {"choose": "lists", "choose_list": "mine"}
    widget(page.selectbox, "Relation").set_value("lies_in").run()
    widget(page.text_input, "Search").set_value(" oslo ").run()
    there = {"choose": "lists", "choose_list": "mine", "choose_relation": "lies_in", "choose_text": "oslo"}
    assert browsed(page) == there and widget(page.selectbox, "Fact").options == ["Oslo → Norway  ·  lies in"]
    assert len(engine.asked) == 1, "nothing was asked"

    page = finished(opened(params_of(page)), lists)  # the link, opened
    assert widget(page.segmented_control, "Where the fact comes from").value == "lists"
    assert widget(page.selectbox, "Relation").value == "lies_in" and widget(page.text_input, "Search").value == "oslo"
    page = finished(widget(page.selectbox, "Fact").select("Oslo → Norway  ·  lies in").run(), lists)
    assert engine.asked[-1].fact == OSLO and params_of(page)["list"] == "mine"
    assert browsed(page) == {"choose_relation": "lies_in", "choose_text": "oslo"}, "the list is the fact's own now"
    page = pressed(page, "Next", lists)
    assert engine.asked[-1].fact == ROME and widget(page.text_input, "Search").value == "oslo"
    widget(page.segmented_control, "Where the fact comes from").set_value("bundled").run()
    assert browsed(page) == {"choose": "bundled"}, "another list begins anew"
    widget(page.segmented_control, "Where the fact comes from").set_value("lists").run()
    assert browsed(page) == {} and widget(page.selectbox, "Fact").value == ROME.case_id


def test_a_link_may_leaf_through_what_is_not_here(lists, engine):  # noqa: F811
    link = link_of(FRANCE, bundled=True)
    page = finished(opened({**link, "choose_relation": "<b>[x](y)"}), lists)
    assert widget(page.selectbox, "Relation").value == "<b>[x](y)" and "has this relation" in shown(page)
    assert "<b>[x]" not in shown(page)
    widget(page.selectbox, "Relation").set_value("").run()
    assert browsed(page) == {} and widget(page.selectbox, "Fact").value == FRANCE.case_id
    page = finished(opened({**link, "choose": "lists", "choose_list": "gone"}), lists)
    assert "There is no list of facts" in shown(page) and engine.asked[-1].fact == FRANCE
    widget(page.selectbox, "List of facts").select("mine").run()
    assert browsed(page) == {"choose": "lists", "choose_list": "mine"} and "Emma" in str(page.selectbox)
    page = finished(opened({**link, "choose": "lists"}), lists)
    assert widget(page.selectbox, "List of facts").value == "mine"


def test_without_lists_nothing_offers_them(bench, engine):  # noqa: F811
    page = finished(opened(), bench)
    assert widget(page.segmented_control, "Where the fact comes from").options == ["Bundled", "Typed in"]
