"""Designs: a chart's spec is made once for all results of one shape; what differs between them is each one's own."""

from __future__ import annotations

import copy
import json
import re
import threading

import altair as alt
import numpy as np
import pytest
import streamlit as st
from fake_results import FRANCE, TOKENS, fake_result

from core import charts, picture, views
from core.compare import charts as compare_charts
from core.compare.tables import Compared
from core.embedding import drawable
from core.links import View
from core.palette import DARK, LIGHT
from core.picture import enlarged
from core.requests import Fact, TraceRequest

ALONE = {
    "layer_token": lambda result, **given: charts.layer_token(result, **given),
    "layer_expert": lambda result, **given: charts.layer_expert(result, 5, **given),
    "routing_strip": lambda result, **given: charts.routing_strip(result, 4, **given),
    "expert_bars": lambda result, **given: charts.expert_bars(result, 4, 5, **given),
}
BESIDE = {
    "side_map": lambda result, **given: compare_charts.side_map(beside(result), "b", **given),
    "difference_map": lambda result, **given: compare_charts.difference_map(beside(result), **given),
    "expert_difference": lambda result, **given: compare_charts.expert_difference(beside(result), 5, 5, **given),
    "routing_map": lambda result, **given: compare_charts.routing_map(beside(result), **given),
    "routing_bars": lambda result, **given: compare_charts.routing_bars(beside(result), **given),
}
EVERY = ALONE | BESIDE
SPAIN = Fact("The home of {} is", "Spain", "Madrid", "Paris")
OTHERS = ["The", " home", " of", " Sp", "ain", " is"]


def result(**given):
    return fake_result(request=TraceRequest(fact=FRANCE, draws=2), **given)


def other(**given):
    """Another fact's, of the same shape."""
    return fake_result(request=TraceRequest(fact=SPAIN, draws=2), tokens=OTHERS, seed=7, drop=3.0, **given)


def beside(one):
    """It and an answer that differs from it."""
    where, fact = one.provenance, one.request.fact
    dense = tuple(set(range(where.n_layers)) - set(where.moe_layers))
    seed = 11 if fact == FRANCE else 12
    return Compared(one, fake_result(request=one.request, tokens=where.tokens, dense=dense, seed=seed))


@pytest.fixture(autouse=True)
def none_yet():
    picture.designed.cache_clear()


def made() -> int:
    return picture.designed.cache_info().misses


def told(shown) -> str:
    """A picture as it is drawn; Altair counts the views of a process, so that their names differ."""
    return re.sub(r"view_\d+", "view", json.dumps(shown.standalone(width=300), sort_keys=True))


@pytest.mark.parametrize("name", EVERY)
def test_a_second_result_of_the_same_shape_makes_no_second_design(name):
    first = told(EVERY[name](result()))
    assert made() == 1
    second = told(EVERY[name](other()))
    assert made() == 1 and first != second
    assert told(EVERY[name](result())) == first, "nothing of the other is left"
    picture.designed.cache_clear()
    assert told(EVERY[name](other())) == second, "as if there had been no first"


@pytest.mark.parametrize("name", EVERY)
def test_nothing_that_is_done_with_a_picture_changes_what_others_are_made_of(name):
    before = told(EVERY[name](other(dense=(1,))))
    shown = EVERY[name](result(dense=(1,)))
    spec = copy.deepcopy(shown.spec)
    for each in (shown, shown.marked(None, frame=None, dots=None, marked_row=None)):
        each.for_page()
        drawable(enlarged(each.standalone(width=400, title="t", subtitle=["s"]), 1.3))
        st.vega_lite_chart(each.for_page(), theme=None)
    if shown.spec.get("params"):
        shown.marked({"layer": 1, "pos": 2})
    assert shown.spec == spec
    assert made() == 1
    assert told(EVERY[name](other(dense=(1,)))) == before
    shown.spec["layer"][0]["mark"]["color"] = "red"
    shown.spec["config"]["axis"].clear()
    assert told(EVERY[name](other(dense=(1,)))) == before, "each picture has a spec of its own"


def test_each_picture_has_its_own_labels_scales_and_layers():
    one, two = result(), other(dense=(0, 3))
    maps = [charts.layer_token(each, view=View(measure="rescue")) for each in (one, two)]
    assert made() == 1, "without and with dense layers"
    heat = [each.spec["layer"][0]["encoding"] for each in maps]
    assert [each["x"]["scale"]["domain"] for each in heat] == [
        views.token_labels(one), views.token_labels(two),
    ]  # fmt: skip
    ends = [each["color"]["condition"]["scale"]["domain"][2] for each in heat]
    values = [np.abs(each.tables["cells"].value).max() for each in maps]
    assert ends[0] != ends[1] and all(end >= value for end, value in zip(ends, values, strict=True))
    rows = [[layer for layer in each.spec["layer"] if layer["mark"]["type"] == "rule"] for each in maps]
    assert [len(each) for each in rows] == [0, 1]
    assert list(maps[1].tables["dense_layers"].layer) == [0, 3]
    grey = [layer["mark"].get("color") for layer in charts.layer_expert(one, 5).spec["layer"]]
    missing = charts.layer_expert(fake_result(request=one.request, drop=0.01), 5)
    assert made() == 2
    assert LIGHT.missing not in grey
    assert LIGHT.missing in [layer["mark"].get("color") for layer in missing.spec["layer"]]


@pytest.mark.parametrize(
    ("again", "given"),
    [
        ({}, {"palette": DARK}),
        ({}, {"view": View(measure="rescue")}),
        ({"tokens": [*TOKENS, "."]}, {}),
        ({"n_layers": 7}, {}),
    ],
    ids=["palette", "measure", "tokens", "layers"],
)
def test_another_look_or_shape_is_another_design(again, given):
    first = charts.layer_token(result())
    second = charts.layer_token(result(**again), **given)
    assert made() == 2 and told(first) != told(second)


def test_nothing_that_a_design_leaves_open_is_left_out():
    def holes(part) -> bool:
        if isinstance(part, picture.Open):
            return True
        parts = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        return any(map(holes, parts))

    for make in EVERY.values():
        assert not holes(make(result()).spec)
    assert holes(
        picture.design(lambda: picture.named("x").mark_bar().encode(y=alt.Y("y:Q", title=picture.Open("t"))))()
    )
    with pytest.raises(KeyError):
        picture.filled({"domain": picture.Open("ends")}, {"labels": []})


def test_designs_made_at_the_same_time_do_not_turn_altairs_validation_on_for_each_other():
    """It takes what a design leaves open for a mistake."""
    from altair.utils import schemapi

    inside, leave, seen = threading.Event(), threading.Event(), []

    @picture.unchecked
    def first():
        inside.set()
        assert leave.wait(30)

    @picture.unchecked
    def second():
        leave.set()
        thread.join(30)  # the first one, which found validation on, has left
        seen.append(schemapi.DEBUG_MODE)

    assert schemapi.DEBUG_MODE
    thread = threading.Thread(target=first, daemon=True)
    thread.start()
    assert inside.wait(30)
    second()
    assert not thread.is_alive() and seen == [False]
    assert schemapi.DEBUG_MODE, "as it was"
