"""Links: what goes in comes out, and nothing that a stranger writes into one breaks anything."""

from __future__ import annotations

import dataclasses
from urllib.parse import parse_qs, urlsplit

import pytest

from core.browsing import BROWSING_NAMES, MAX_WORDS, SOURCES, Browsing
from core.links import NAMES, SHARED, Link, View, check_view, from_query, to_query, with_query
from core.requests import Fact, ModelSpec, TraceRequest

FRANCE = Fact(prompt="The capital of {} is", subject="France", true="Paris", foil="Rome", case_id=17)
JAPAN = Fact(prompt="The capital of {} is", subject="Japan", true="Tokyo", foil="Seoul", case_id=18)
BUNDLED = {17: FRANCE, 18: JAPAN}


def read(params):
    return from_query(params, bundled=BUNDLED.get, default=FRANCE)


TYPED = Fact(
    prompt="Größe & <b>{}</b>?", subject="x=1&y=2", true="ü", foil="#", occurrence=2, case_id=5, relation="a b"
)
CASES = [
    (TraceRequest(fact=FRANCE), View(), True),
    (
        TraceRequest(
            fact=JAPAN, model=ModelSpec("org/name", revision="main", dtype="bfloat16", device="cpu", placement="disk"),
            noise=2.25, draws=10, seed=12345678901, special_tokens="off", object_tokens="paper", first_token=True,
        ),
        View(measure="rescue", pos=3, layer=0, expert=0, strip=7),
        True,
    ),
    (TraceRequest(fact=JAPAN, model=ModelSpec(quantisation="int8")), View(), True),
    (
        TraceRequest(fact=JAPAN),
        View(
            measure="rescue_sd", pos=3, layer=0, site="attention", window=10, section="coalition",
            coalition=(0, 7, SHARED), scope="model", target=1.5, check=True,
        ),
        True,
    ),
    (TraceRequest(fact=TYPED, noise=1e-3), View(pos=0, layer=5, expert=SHARED), False),
    (TraceRequest(fact=Fact(prompt="{} is", subject="A", true="b", foil_auto=True)), View(), False),
    (TraceRequest(fact=Fact(prompt="{} is", subject="A", true="b")), View(), False),
]  # fmt: skip


@pytest.mark.parametrize(("request_", "view", "bundled"), CASES)
def test_a_link_says_what_it_was_made_from(request_, view, bundled):
    address = with_query("http://host:1/?old=1#top", to_query(request_, view, bundled=bundled))
    parts = urlsplit(address)
    assert (parts.netloc, parts.path, parts.fragment) == ("host:1", "/", "")
    params = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    assert set(params) <= set(NAMES)
    back = read(params)
    assert (back.request, back.view, back.bundled, back.problems) == (request_, view, bundled, ())


def test_a_link_names_the_list_that_its_fact_is_from():
    for fact, bundled in ((TYPED, False), (FRANCE, True)):
        params = to_query(TraceRequest(fact=fact), View(), bundled=bundled, listed="a & b")
        back = read(params)
        assert (back.request.fact, back.bundled, back.listed, back.problems) == (fact, bundled, "a & b", ())
        assert back.to_query() == params and read({**params, "list": " "}).listed == ""


BROWSED = [
    Browsing(),
    Browsing(source="typed"),
    Browsing(source="lists", stored="a & b", relation="<b>capital</b>", words="x=1&y=2 ü"),
    Browsing(relation="capital"),
    Browsing(words="'; DROP TABLE facts"),
]


@pytest.mark.parametrize("browsing", BROWSED)
def test_a_link_says_what_is_leafed_through_and_asks_the_same(browsing):
    plain = Link(TraceRequest(fact=FRANCE), View(layer=2), True)
    browsed = dataclasses.replace(plain, browsing=browsing)
    params = browsed.to_query()
    assert read(params) == browsed
    more = {name: value for name, value in params.items() if name not in plain.to_query()}
    assert {name: params[name] for name in plain.to_query()} == plain.to_query()
    assert list(more) == [name for name in BROWSING_NAMES if name in more] and "" not in more.values()
    assert len(more) == sum(map(bool, dataclasses.astuple(browsing)))


def test_what_cannot_be_leafed_through_is_named():
    for params, word in (({"choose": "all"}, ", ".join(SOURCES)), ({"choose_text": "a" * (MAX_WORDS + 1)}, "at most")):
        link = read(params)
        assert link.browsing == Browsing() and link.request == read({}).request
        (problem,) = link.problems
        assert word in problem and next(iter(params)) in problem


def test_what_must_be_one_of_several_is_named_without_nothing():
    (problem,) = read({"section": "x"}).problems
    assert "section must be one of coalition, minimal" in problem


def test_the_address_of_a_server_gets_a_path():
    assert with_query("http://host:8501", {"model": "a b"}) == "http://host:8501/?model=a+b"


def test_the_numbers_are_always_in_the_link():
    assert to_query(TraceRequest(fact=FRANCE), View(), bundled=True) == {
        "model": "demo", "fact": "17", "noise": "3", "draws": "1", "seed": "0",
    }  # fmt: skip


def test_an_empty_link_is_the_default():
    back = read({})
    assert (back.request, back.view, back.bundled, back.problems) == (TraceRequest(fact=FRANCE), View(), True, ())


BAD = {
    "fact": ["999", "-1", "x", "", "1e3", "٣", "9" * 30],
    "noise": ["0", "-1", "nan", "inf", "101", "abc", ""],
    "draws": ["0", "1001", "1.5", "1_0", " 2", "abc"],
    "seed": ["-1", "9" * 30, "x"],
    "dtype": ["float8", ""],
    "device": ["tpu"],
    "special_tokens": ["maybe"],
    "object_tokens": ["<script>"],
    "first_token": ["yes"],
    "show": ["everything"],
    "pos": ["-1", "x"],
    "layer": ["1.0"],
    "strip": ["last"],
    "model": ["m" * 5000],
    "site": ["mlp", "MOE"],
    "window": ["0", "1001", "all"],
    "section": ["everything"],
    "coalition": ["1;2", "-3", "x", "1.5", "9" * 10, ",".join(["1"] * 1025), "1," * 3000],
    "scope": ["here"],
    "target": ["0", "nan", "x"],
    "check": ["yes"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_what_cannot_be_is_replaced_and_named(name, value):
    back = read({name: value})
    assert back.request == TraceRequest(fact=FRANCE)
    assert back.view == View()
    assert len(back.problems) == 1
    assert name.replace("fact", "") in back.problems[0]
    assert len(back.problems[0]) < 200


def test_half_a_typed_fact_is_named():
    back = read({"prompt": "{} is", "subject": " "})
    assert back.request.fact == FRANCE
    assert "no subject and no true" in back.problems[0]


def test_an_expert_without_its_layer_means_nothing():
    back = read({"expert": "3", "pos": "1"})
    assert (back.view.expert, back.view.pos) == (None, 1)
    assert "no layer" in back.problems[0]


def test_a_coalition_has_each_expert_once_and_needs_its_layer():
    back = read({"coalition": "7,,3,shared,7", "layer": "2"})
    assert back.view.coalition == (3, 7, SHARED) and not back.problems
    back = read({"coalition": "7"})
    assert back.view.coalition == () and "no layer" in back.problems[0]


def test_another_cell_lets_go_of_the_experts_and_another_fact_of_the_cell():
    view = View("rescue", pos=3, layer=2, expert=1, strip=4, site="residual", window=3, section="minimal",
                coalition=(1, 5), scope="layer", target=0.5, check=True)  # fmt: skip
    assert view.at(2, 3, 7) == dataclasses.replace(view, expert=7, strip=None)
    assert view.at(2, 4) == dataclasses.replace(view, pos=4, expert=None, strip=None, coalition=())
    assert view.of_neighbour(9) == view.elsewhere()
    assert view.of_neighbour(3) == dataclasses.replace(view.elsewhere(), layer=2, expert=1)
    assert dataclasses.replace(view, pos=None).of_neighbour(9) == view.of_neighbour(3)
    assert view.maps() == View("rescue", pos=3, layer=2, expert=1, strip=4, site=view.site, window=view.window)
    assert dataclasses.replace(view, measure="rescue_sd").maps().measure == "restoration"
    assert view.elsewhere() == View("rescue", site="residual", window=3, section="minimal", check=True)


def test_control_characters_are_dropped():
    assert read({"prompt": "a\x00b\x1b {}", "subject": "s", "true": "t"}).request.fact.prompt == "ab {}"


@pytest.mark.parametrize(
    ("view", "expected", "words"),
    [
        (View(pos=5, layer=2, expert=7, strip=3), View(pos=5, layer=2, expert=7, strip=3), ""),
        (View(pos=6, layer=2, expert=1), View(), "no position 6"),
        (View(pos=1, layer=0), View(pos=1), "dense"),
        (View(pos=1, layer=9, expert=1), View(pos=1), "the model has 4"),
        (View(pos=1, layer=2, expert=8), View(pos=1, layer=2), "no expert 8"),
        (View(pos=1, layer=2, expert=SHARED), View(pos=1, layer=2), "no shared expert"),
        (View(strip=0), View(), "Layer 0"),
        (View(layer=1, coalition=(1, 9, SHARED)), View(layer=1, coalition=(1,)), "no expert 9"),
        (View(layer=0, coalition=(1,)), View(), "dense"),
        (View(layer=0, pos=1, expert=1, site="residual"), View(layer=0, pos=1, site="residual"), None),
        (View(layer=9, site="residual"), View(site="residual"), "the model has 4"),
        (View(window=5), View(window=4), "window of 5"),
    ],
)
def test_a_view_is_cut_down_to_what_the_result_has(view, expected, words):
    kept, problems = check_view(view, n_tokens=6, moe_layers=[1, 2, 3], n_layers=4, n_experts=8, shared=False)
    assert kept == expected
    assert (words or "") in " ".join(problems)
    assert bool(problems) == bool(words)
