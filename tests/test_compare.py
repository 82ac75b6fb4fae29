"""Two traces side by side: the link, which tokens correspond, the numbers (against plain loops), the sentences."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from urllib.parse import parse_qsl, urlencode

import altair as alt
import numpy as np
import pandas as pd
import pytest
from fake_cells import LIFT, fake_answer
from fake_results import FRANCE, fake_result

from core import cli_compare, export, views
from core.browsing import Browsing
from core.cells.asking import ask
from core.compare import charts, words
from core.compare.align import align
from core.compare.asked import asked
from core.compare.link import Pair, from_query, from_text, to_query
from core.compare.tables import BOTH, ONLY_A, ONLY_B, Compared
from core.errors import InputError
from core.formats import logits
from core.links import NAMES, Link, View
from core.requests import Fact, ModelSpec, TraceRequest

JAPAN = Fact(prompt="The capital of {} is", subject="Japan", true="Tokyo", foil="Seoul", case_id=18)
TYPED = Fact(prompt="Größe & {}?", subject="x=1&y=2", true="ü", foil="#", occurrence=2, case_id=5, relation="a b")
AUTO = Fact(prompt="{} is", subject="A", true="b", foil_auto=True)
BUNDLED = {17: FRANCE, 18: JAPAN}
BASE = TraceRequest(fact=FRANCE)
BIG = ModelSpec("org/name", revision="main", dtype="bfloat16", device="cpu", quantisation="int8", placement="disk")


def read(params):
    return from_query(params, bundled=BUNDLED.get, default=FRANCE)


def one(request, view=View(), bundled=True):
    return Link(request, view, bundled)


def test_both_sides_keep_the_list_that_their_facts_are_from():
    a, b = dataclasses.replace(one(BASE), listed="mine"), one(BASE.replace(fact=JAPAN))
    for pair in (Pair(a, b), Pair(b, a), Pair(a, a), Pair(a, one(BASE)), Pair(one(BASE), a)):
        back = read(to_query(pair))
        assert [side.listed for side in (back.a, back.b)] == [side.listed for side in (pair.a, pair.b)]
        assert [side.request.fact for side in (back.a, back.b)] == [pair.a.request.fact, pair.b.request.fact]


def test_each_side_keeps_what_is_leafed_through_for_it():
    browsed = [Browsing(), Browsing("typed"), Browsing(relation="capital", words="Fr"), Browsing("lists", "mine")]
    for one_, other in itertools.product(browsed, browsed):
        pair = Pair(*(dataclasses.replace(one(BASE), browsing=browsing) for browsing in (one_, other)))
        assert read(to_query(pair)) == pair


REQUESTS = [
    BASE,
    BASE.replace(noise=1.25, draws=7, seed=12345),
    BASE.replace(special_tokens="off", object_tokens="paper", first_token=True),
    BASE.replace(corruption="replace"),
    BASE.replace(corruption="replace", replacement=("Spain", "Sri Lanka")),
    BASE.replace(model=BIG),
    BASE.replace(model=dataclasses.replace(BIG, name="other/name")),
    BASE.replace(model=ModelSpec("org/name")),
    BASE.replace(fact=JAPAN),
    BASE.replace(fact=TYPED),
    BASE.replace(fact=AUTO),
    BASE.replace(fact=dataclasses.replace(TYPED, foil=None, occurrence=None, case_id=0, relation=None)),
]


@pytest.mark.parametrize("b", range(len(REQUESTS)))
@pytest.mark.parametrize("a", range(len(REQUESTS)))
def test_a_link_says_what_it_was_made_from(a, b):
    views_ = View(measure="rescue", pos=3, layer=0), View(measure="rescue", layer=0)
    sides = [one(REQUESTS[i], v, REQUESTS[i].fact in BUNDLED.values()) for i, v in zip((a, b), views_, strict=True)]
    pair = Pair(*sides, edited="a" if a > b else "b", same_model=a == b)
    params = to_query(pair)
    back = read(dict(parse_qsl(urlencode(params), keep_blank_values=True)))
    assert back == pair


def test_of_b_only_what_differs_is_written():
    pair = Pair(one(BASE), one(BASE.replace(noise=1.0, special_tokens="off")))
    params = to_query(pair)
    assert params == {
        "a.model": "demo", "a.fact": "17", "a.noise": "3", "a.draws": "1", "a.seed": "0",
        "b.noise": "1", "b.special_tokens": "off",
    }  # fmt: skip
    back = to_query(pair.swapped())
    assert back["b.special_tokens"] == "auto", "a's setting has to be undone by name"
    assert read(back) == pair.swapped()


def test_a_hand_written_link_takes_from_a_what_b_does_not_say():
    pair = read({"a.fact": "18", "a.noise": "2", "a.revision": "r", "b.model": "org/x"})
    assert pair.b.request == TraceRequest(fact=JAPAN, noise=2.0, model=ModelSpec("org/x"))
    assert pair.a.request.model == ModelSpec("demo", revision="r")
    assert not pair.problems
    nothing = read({})
    assert nothing.a.request == BASE and nothing.b.request == BASE.replace(corruption="replace")


def test_what_cannot_be_is_named_once_with_its_side_and_replaced():
    pair = read({"a.noise": "-1", "b.draws": "x", "b.fact": "999", "edit": "c", "same_model": "maybe", "b.show": "?"})
    assert pair.a.request == BASE and pair.b.request == BASE
    starts = ["a: The link says noise=-1", "b: There is no bundled fact with case_id 999", "b: The link says draws=x"]
    starts += ["b: The link says show=?", "The link says edit=c", "The link says same_model=maybe"]
    assert len(pair.problems) == len(starts)
    assert all(problem.startswith(start) for problem, start in zip(pair.problems, starts, strict=True))
    for text in ("", "nonsense", "http://host/Compare", "noise=3"):
        with pytest.raises(InputError, match="no link of the Compare page"):
            from_text(text, bundled=BUNDLED.get, default=FRANCE)
    with pytest.raises(InputError, match="noise=-1"):
        from_text("a.noise=-1", bundled=BUNDLED.get, default=FRANCE)
    text = "http://host/Compare?" + urlencode(to_query(Pair(one(BASE), one(BASE.replace(seed=4)))))
    assert from_text(text, bundled=BUNDLED.get, default=FRANCE).b.request.seed == 4


# -- which tokens correspond ---------------------------------------------------------------------------------------

CAPITAL = ["The", " capital", " of", " Fr", "ance", " is"]


def pairs_of(tokens_a, subject_a, tokens_b, subject_b, fact_b=JAPAN):
    a = fake_result(request=BASE, tokens=tokens_a, subject=subject_a, n_layers=2)
    b = fake_result(request=BASE.replace(fact=fact_b), tokens=tokens_b, subject=subject_b, n_layers=2)
    return align(a, b)


def test_the_same_tokens_correspond_one_to_one():
    found = pairs_of(CAPITAL, [3, 4], CAPITAL, [3, 4])
    assert found.pairs == [(i, i) for i in range(6)]
    assert found.same_tokens and not found.why_not
    assert [c.subject for c in found.columns] == [False] * 3 + [True] * 2 + [False]


def test_a_bos_stands_alone_and_the_others_correspond():
    found = pairs_of(["<s>", *CAPITAL], [4, 5], CAPITAL, [3, 4], FRANCE)
    assert found.pairs == [(i + 1, i) for i in range(6)]
    assert (found.columns[0].a, found.columns[0].b) == (0, None)
    assert not found.same_tokens
    assert found.partner("b", 5) == 6 and found.partner("a", 0) is None and found.partner("a", 6) == 5
    back = pairs_of(CAPITAL, [3, 4], [*["<s>", *CAPITAL], "</s>"], [4, 5], FRANCE)
    assert back.pairs == [(i, i + 1) for i in range(6)]
    assert [c.b for c in back.columns if c.a is None] == [0, 7]


@pytest.mark.parametrize(
    ("n_a", "n_b", "expected"),
    [
        (1, 1, [(1, 1)]),
        (1, 3, [(1, 3)]),
        (2, 3, [(1, 1), (2, 3)]),
        (4, 2, [(1, 1), (4, 2)]),
        (4, 3, [(1, 1), (2, 2), (4, 3)]),
    ],
)
def test_of_subjects_of_different_length_the_last_tokens_correspond(n_a, n_b, expected):
    tokens = [["The", *(f"{side}{i}" for i in range(n)), " is"] for side, n in (("x", n_a), ("y", n_b))]
    found = pairs_of(tokens[0], list(range(1, n_a + 1)), tokens[1], list(range(1, n_b + 1)))
    assert found.pairs == [(0, 0), *expected, (n_a + 1, n_b + 1)]
    assert sorted(c.a for c in found.columns if c.a is not None) == list(range(n_a + 2))
    assert sorted(c.b for c in found.columns if c.b is not None) == list(range(n_b + 2))
    labels = [c.label for c in found.columns]
    assert len(set(labels)) == len(labels)


def test_prompts_that_do_not_correspond_say_why():
    other = Fact("Paris is the capital of {}", "France", "x", "y")
    found = pairs_of(CAPITAL, [3, 4], ["Par", "is", " France"], [2], other)
    assert not found.columns and "different templates" in found.why_not
    cut = pairs_of(CAPITAL, [3, 4], ["Th", "e c", "apital of", "Japan", "is"], [3], JAPAN)
    assert not cut.columns and "cut the prompts differently" in cut.why_not


# -- numbers -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared():
    """France in 2 draws beside Japan (one token longer, with a BOS) in 3; dense layer 1, a shared expert."""
    shape = {"n_layers": 4, "dense": (1,), "shared": True}
    a = fake_result(request=BASE.replace(draws=2), tokens=CAPITAL, subject=[3, 4], **shape)
    longer = ["<s>", "The", " capital", " of", " J", "ap", "an", " is"]
    request = BASE.replace(fact=JAPAN, draws=3, noise=1.0, seed=5)
    b = fake_result(request=request, tokens=longer, subject=[4, 5, 6], clean=4.5, drop=3.0, seed=1, **shape)
    return Compared(a, b)


def mean_rescue(result, layer, pos):
    rows = [r for r in result.frame.itertuples() if r.kind == "layer" and r.layer == layer and r.pos == pos]
    assert len(rows) == result.request.draws
    return sum(r.rescue for r in rows) / len(rows)


def test_cells_are_subtracted_where_both_sides_have_them(compared):
    cells = compared.cells
    pairs = {0: 1, 1: 2, 2: 3, 3: 4, 4: 6, 5: 7}
    assert len(cells) == 3 * 8 and not compared.no_cells
    both = cells[cells.pos_a.notna() & cells.pos_b.notna()]
    assert {(r.layer, r.pos_a, r.pos_b) for r in both.itertuples()} == {
        (layer, a, b) for layer in (0, 2, 3) for a, b in pairs.items()
    }
    for row in both.itertuples():
        a = mean_rescue(compared.a, row.layer, row.pos_a)
        b = mean_rescue(compared.b, row.layer, row.pos_b)
        assert (row.rescue_a, row.rescue_b) == pytest.approx((a, b), abs=1e-9)
        assert row.rescue_difference == pytest.approx(b - a, abs=1e-9)
        assert row.restoration_difference == pytest.approx(b / compared.b.drop - a / compared.a.drop, abs=1e-9)
    alone = cells[cells.pos_a.isna()]
    assert set(alone.pos_b) == {0, 5}
    assert alone.rescue_b.notna().all() and alone.rescue_a.isna().all() and alone.rescue_difference.isna().all()


def test_a_missing_restoration_stays_missing(compared):
    nothing = fake_result(request=BASE, tokens=CAPITAL, subject=[3, 4], n_layers=4, dense=(1,), drop=0.01)
    cells = Compared(compared.a, nothing).cells
    assert cells.restoration_difference.isna().all()
    assert cells.rescue_difference.notna().all()


def test_the_order_of_the_maps_is_spearmans(compared):
    pairs = [(layer, a, b) for layer in (0, 2, 3) for a, b in {3: 4, 4: 6, 5: 7}.items()]  # from the subject on
    x = [mean_rescue(compared.a, layer, a) for layer, a, _ in pairs]
    y = [mean_rescue(compared.b, layer, b) for layer, _, b in pairs]
    ranks = [np.argsort(np.argsort(v)) for v in (x, y)]
    n = len(pairs)
    expected = 1 - 6 * float(((ranks[0] - ranks[1]) ** 2).sum()) / (n * (n * n - 1))
    correlation, cells = compared.correlation
    assert cells == n
    assert correlation == pytest.approx(expected, abs=1e-9)


def test_experts_are_subtracted_where_both_sides_route_them(compared):
    table = compared.experts(5, 7)
    assert len(table) == 3 * 9
    rescues = []
    for result, pos in ((compared.a, 5), (compared.b, 7)):
        found = {}
        for row in result.frame.itertuples():
            if row.kind == "expert" and row.pos == pos:
                found.setdefault((row.layer, row.expert), []).append(row.rescue)
        rescues.append({key: sum(values) / result.request.draws for key, values in found.items()})
    for row in table[table.expert >= 0].itertuples():
        key = row.layer, row.expert
        expected = BOTH if key in rescues[0] and key in rescues[1] else None
        expected = expected or (ONLY_A if key in rescues[0] else ONLY_B if key in rescues[1] else views.NOT_ROUTED)
        assert row.where == expected
        if expected == BOTH:
            assert row.rescue_difference == pytest.approx(rescues[1][key] - rescues[0][key], abs=1e-9)
        else:
            assert math.isnan(row.rescue_difference)
    assert set(table["where"]) == {BOTH, ONLY_A, ONLY_B, views.NOT_ROUTED}


def test_routing_agreement_counts_sets_of_experts(compared):
    def chosen(result, layer, pos):
        rows = result.routing[(result.routing.run == "clean")].itertuples()
        return {r.expert for r in rows if r.layer == layer and r.pos == pos}

    pairs = {0: 1, 1: 2, 2: 3, 3: 4, 4: 6, 5: 7}
    for layer, row in zip((0, 2, 3), compared.routing_layers.itertuples(), strict=True):
        sets = [(chosen(compared.a, layer, a), chosen(compared.b, layer, b)) for a, b in pairs.items()]
        assert (row.layer, row.positions) == (layer, 6)
        assert row.same == pytest.approx(sum(x == y for x, y in sets) / 6)
        assert row.jaccard == pytest.approx(sum(len(x & y) / len(x | y) for x, y in sets) / 6)
    same = Compared(compared.a, dataclasses.replace(compared.a))
    assert (same.routing_layers.same == 1).all() and (same.routing_layers.jaccard == 1).all()
    assert "6 of 6" not in words.routing(same) and "18 of 18" in words.routing(same)


def other_model(result, **changes):
    return dataclasses.replace(result, provenance=dataclasses.replace(result.provenance, **changes))


def test_what_cannot_be_compared_says_why(compared):
    a = compared.a
    renamed = other_model(a, model="org/other", fingerprint="g" * 16)
    two = Compared(a, renamed)
    assert not two.no_cells and "two different models" in two.no_experts and two.no_routing == two.no_experts
    assert two.could_be_versions and two.routing.empty and two.routing_layers.empty
    versions = Compared(a, renamed, same_model=True)
    assert not versions.no_experts and len(versions.routing) == 18
    deeper = fake_result(request=BASE, n_layers=6)
    more = Compared(a, other_model(deeper, model="big", fingerprint="h"))
    assert "4 layers" in more.no_cells and "6" in more.no_cells and more.cells.empty
    assert not more.could_be_versions and math.isnan(more.correlation[0])
    elsewhere = Compared(a, fake_result(request=BASE, n_layers=4, dense=(2,), shared=True))
    assert "different layers" in elsewhere.no_cells
    told = words.sentences(more)
    assert any(s.startswith("No difference map: one model has 4 layers") for s in told)
    assert any(s.startswith("Routing is not compared:") for s in told)


INT8 = "torchao: experts int8, router bf16"
SPAIN = "subject replaced by Spain"

# -- sentences -----------------------------------------------------------------------------------------------------


def test_the_sentence_names_every_setting_that_differs_and_no_other():
    a = fake_result(request=BASE)
    cases = [
        (BASE.replace(noise=1.5), {}, ["corruption noise 3 → noise 1.5"]),
        (BASE.replace(seed=9, draws=3), {}, ["draws 1 → 3", "seed 0 → 9"]),
        (BASE.replace(special_tokens="off"), {}, ["special tokens auto → off"]),
        (BASE.replace(object_tokens="paper"), {}, ["object tokens space → paper"]),
        (BASE.replace(first_token=True), {}, ["objects of several tokens not taken → the first token"]),
        (BASE.replace(corruption="replace", replacement=("Spain",)), {}, [f"corruption noise 3 → {SPAIN}"]),
        (BASE, {"dtype": "bfloat16"}, ["dtype float32 → bfloat16"]),
        (BASE, {"quantisation": "int8"}, ["weights not quantised → int8"]),
        (BASE, {"quantisation": "torchao: experts int8; router bf16"}, [f"weights not quantised → {INT8}"]),
        (BASE.replace(model=ModelSpec(revision="v2")), {}, ["revision the default one → v2"]),
        (BASE.replace(model=ModelSpec("org/x")), {"model": "demo"}, ["model demo → org/x"]),
        (BASE, {"fingerprint": "0123456789"}, ["the model's files ffffffff → 01234567"]),
        (BASE, {"versions": {**a.provenance.versions, "torch": "3.0"}}, ["torch 2.13.0 → 3.0"]),
    ]
    for request, provenance, expected in cases:
        b = other_model(fake_result(request=request), **provenance)
        found = words.settings(Compared(a, b))
        assert [f"{s.name} {s.a} → {s.b}" for s in found] == expected
        assert words.changed(Compared(a, b)).startswith(f"From a to b: {'; '.join(expected)}.")
    assert words.changed(Compared(a, fake_result(request=BASE))) == "Both sides ask the same question."
    japan = fake_result(request=BASE.replace(fact=JAPAN))
    assert [s.name for s in words.settings(Compared(a, japan))] == ["subject", "true object"]
    same = words.changed(Compared(a, fake_result(request=BASE.replace(special_tokens="off"))))
    assert same.endswith(words.SAME_IDS)


def test_what_is_asked_differently_and_comes_to_the_same_is_no_change_but_not_the_same_question():
    a, b = (fake_result(request=BASE.replace(model=spec)) for spec in (ModelSpec(), ModelSpec(placement="disk")))
    assert words.settings(Compared(a, b)) == []
    assert words.changed(Compared(a, b)) == "Asked differently, but the same computation: placement auto → disk."


def test_before_there_are_answers_each_side_says_what_it_asks_and_what_of_it_differs():
    spec = ModelSpec("org/x", revision="v2", dtype="bfloat16")
    other = BASE.replace(model=spec, corruption="replace", replacement=("Spain", "Peru"), special_tokens="on")
    assert asked(BASE, BASE) == [("demo", False), ("noise 3", False)]
    assert asked(BASE, other) == [
        ("demo", True), ("revision by default", True), ("dtype auto", True), ("noise 3", True), ("draws 1", True),
        ("special tokens auto", True),
    ]  # fmt: skip
    assert asked(other, BASE) == [
        ("org/x", True), ("revision v2", True), ("dtype bfloat16", True), ("subject replaced by Spain, Peru", True),
        ("draws 2", True), ("special tokens on", True),
    ]  # fmt: skip
    assert asked(other, other)[1] == ("revision v2", False), "what is not as by default is said on both sides"


@pytest.mark.parametrize("other, sides", [(BIG, "a"), (BASE.model, "a and b")])
def test_the_command_says_which_side_has_no_answer(monkeypatch, other, sides):
    def load(*_):
        raise InputError("There is no such folder.", "Check the path.")

    monkeypatch.setattr(cli_compare, "load", load)
    links = [one(BASE), one(BASE.replace(model=other, noise=1.0))]
    with pytest.raises(InputError) as caught:
        cli_compare._answered(links, None, None)
    assert (caught.value.what, caught.value.next) == (f"{sides}: There is no such folder.", "Check the path.")


def test_one_side_alone_says_its_numbers():
    result = fake_result(request=BASE)
    layer, pos = views.best_cell(result)
    label = views.token_labels(result)[pos]
    top = mean_rescue(result, layer, pos) / result.drop
    told = words.alone("b", result, result)
    assert told == [
        "So far only b has an answer: clean contrast +6.000, drop +5.000 logits.",
        f"It restores most in layer {layer} at {label} (restoration {top:.3f}).",
    ]
    assert words.alone("b", result, None) == told[:1], "nothing of the map as long as it is not there"


def test_a_difference_that_rounds_to_nothing_has_no_sign_of_its_own():
    assert logits(0.3996 - 0.4) == "0.000" and logits(0.3986 - 0.4) == "−0.001"
    a = fake_result(request=BASE)
    b = dataclasses.replace(a, frame=a.frame.assign(rescue=a.frame.rescue - 1e-5))
    tips = data_with(charts.difference_map(Compared(a, b)), "t_rescue").t_rescue
    assert all(tip.endswith("b − a 0.000") for tip in tips)


def test_the_sentences_say_contrasts_best_cells_and_order(compared):
    told = " ".join(words.sentences(compared))
    assert "Clean contrast +6.000 → +4.500 (−1.500), drop +5.000 → +3.000 (−2.000) logits." in told
    for side, result in (("a", compared.a), ("b", compared.b)):
        layer, pos = views.best_cell(result)
        cells = {(r.layer, r.pos) for r in result.frame.itertuples() if r.kind == "layer"}
        best = max(mean_rescue(result, *cell) for cell in cells)
        assert mean_rescue(result, layer, pos) == pytest.approx(best)
        label = views.token_labels(result)[pos]
        assert f"layer {layer} at {label} (restoration {best / result.drop:.3f})" in told, side
    assert f"correlates by {compared.correlation[0]:.3f} (Spearman)".replace("-", "−") in told
    headings, rows, titles = words.numbers(compared)
    assert headings == ["", "a", "b", "b − a"] and len(rows) == len(titles) == 5
    b = compared.b
    of_draws = b.frame[b.frame.kind == "corrupt"].contrast.to_list()
    sd = np.std(of_draws, ddof=1)
    assert len(of_draws) == b.request.draws > 1
    p_true = b.runs[b.runs.run == "corrupt"].p_true.to_list()
    spread = f" (sd {sd:.3f})"
    assert rows[2] == ["drop", f"+5.000 (sd {np.std(drops_of(compared.a), ddof=1):.3f})", f"+3.000{spread}", "−2.000"]
    assert rows[1][2].endswith(spread) and rows[0][2] == "+4.500"
    assert rows[4][2].endswith(f" (sd {np.std(p_true, ddof=1):.3f})")


def drops_of(result) -> list[float]:
    """The drop of each draw."""
    rows = result.frame
    clean = float(rows[rows.kind == "clean"].contrast.iloc[0])
    return [clean - contrast for contrast in rows[rows.kind == "corrupt"].contrast]


def test_a_small_probability_is_told_from_none_and_one_draw_has_no_spread():
    a = fake_result(request=BASE.replace(draws=1))
    b = dataclasses.replace(a, runs=a.runs.assign(p_true=2e-5))
    _, rows, _ = words.numbers(Compared(a, b))
    assert [row[2] for row in rows[3:]] == ["<0.001", "<0.001"]
    assert not any("sd" in value for row in rows for value in row)
    assert rows[0][3] == "0.000", "no signed zero"


# -- maps at other sites -----------------------------------------------------------------------------------------------


def at(request, site, window=1, **shape):
    return fake_answer(ask("site_map", request, site=site, window=window), **shape)


def test_a_link_says_which_maps_are_compared():
    view = View(site="attention", window=3)
    pair = Pair(one(BASE, view), one(BASE, View(layer=2)))
    params = to_query(pair)
    assert [params[f"{side}.{name}"] for side in "ab" for name in ("site", "window")] == ["attention", "3", "moe", "1"]
    assert read(params) == pair
    both = pair.showing(site="residual", window=2)
    assert {(link.view.site, link.view.window) for link in (both.a, both.b)} == {("residual", 2)}
    assert {"b.site", "b.window"}.isdisjoint(to_query(both)) and read(to_query(both)) == both
    alone = both.showing("b", site="moe")
    assert (alone.a.view.site, alone.b.view.site) == ("residual", "moe")
    chosen = alone.looking(layer=2, pos_a=1, pos_b=0)
    assert (chosen.a.view.site, chosen.b.view.site) == ("residual", "moe"), "another cell is one of the same maps"


@pytest.mark.parametrize("sites", [("attention", "attention"), (None, "residual")])
def test_maps_of_other_sites_are_subtracted_and_named(sites):
    """The made-up patches at another site lift the true object by `LIFT` logits more."""
    requests = BASE, BASE.replace(noise=1.0)
    traces = [fake_result(request=r, seed=i, drop=5.0 - i) for i, r in enumerate(requests)]
    shapes = [{"seed": i, "drop": 5.0 - i} for i in range(2)]
    answers = [None if s is None else at(r, s, **shape) for s, r, shape in zip(sites, requests, shapes, strict=True)]
    plain, found = Compared(*traces), Compared(*traces, False, *answers)
    lifts = [0.0 if site is None else LIFT for site in sites]
    assert len(found.cells) == len(plain.cells)
    for side, lift in zip("ab", lifts, strict=True):
        assert np.allclose(found.cells[f"rescue_{side}"], plain.cells[f"rescue_{side}"] + lift)
    assert np.allclose(found.cells.rescue_difference, plain.cells.rescue_difference + lifts[1] - lifts[0])
    pd.testing.assert_frame_equal(found.experts(5, 5), plain.experts(5, 5))
    told = words.sentences(found)
    if sites[0] is None:
        assert "layer × token map MoE output → residual" in told[0]
    else:
        assert "layer × token map" not in told[0] and any(line.startswith("Patching attention: ") for line in told)
    layer, pos = views.best_cell(plain.b)
    top = mean_rescue(plain.b, layer, pos) + lifts[1]
    assert f"(restoration {top / plain.b.drop:.3f})" in " ".join(told)
    assert len(words.sentences(found, maps=False)) == len(told) - 2, "nothing of the maps as long as they are not there"
    origin = export.origin(found)
    assert ["layer_token_map" in origin[side] for side in "ab"] == [site is not None for site in sites]
    for side in "ab":
        drawn = data_with(charts.side_map(found, side), "value")
        assert sorted(drawn.value) == pytest.approx(sorted(found.cells[f"restoration_{side}"]))


def test_maps_of_different_layers_are_subtracted_where_both_have_them():
    """A dense layer has attention, but no MoE block."""
    trace = fake_result(request=BASE, dense=(0,))
    cells = fake_answer(ask("site_map", BASE, site="attention", window=1))
    found = Compared(trace, trace, False, None, cells)
    assert not found.no_cells
    assert set(found.cells.layer) == set(trace.provenance.moe_layers) and 0 in found.mapped("b").provenance.moe_layers
    dense = [t for t in charts.difference_map(found).tables.values() if "layer" in t and len(t) and set(t.layer) == {0}]
    assert dense, "the layer that only b has is drawn as one with nothing to subtract"


def test_two_corruptions_of_one_prompt_are_judged_as_on_the_trace_page():
    noise = fake_result(request=BASE.replace(draws=2))
    replace = fake_result(request=BASE.replace(corruption="replace", draws=2), seed=3)
    for pair in (Compared(noise, replace), Compared(replace, noise)):
        assert any(s.startswith("Noise") for s in words.sentences(pair))


# -- pictures ------------------------------------------------------------------------------------------------------


def shades(picture):
    """Domains of the colour scales of a picture."""
    found = []

    def walk(part):
        if isinstance(part, dict):
            scale = part.get("scale")
            if isinstance(scale, dict) and "interpolate" in scale:
                found.append(tuple(scale["domain"]))
            for value in part.values():
                walk(value)
        elif isinstance(part, list):
            for value in part:
                walk(value)

    walk({key: value for key, value in picture.spec.items() if key != "datasets"})
    return found


def data_with(picture, column):
    return next(table for table in picture.tables.values() if column in table)


@pytest.mark.parametrize("measure", ["rescue", "restoration"])
def test_the_maps_share_axes_and_colours(compared, measure):
    end = charts.scale_end([views.layer_cells(compared.a), views.layer_cells(compared.b)], [measure])
    sides = [charts.side_map(compared, side, measure=measure, end=end, chosen=(2, 5)) for side in "ab"]
    difference = charts.difference_map(compared, measure=measure, chosen=(2, 7))
    for picture in (*sides, difference):
        alt.LayerChart.from_dict(picture.standalone(width=300))  # valid Vega-Lite
    largest = max(views.layer_cells(r)[measure].abs().max() for r in (compared.a, compared.b))
    for picture in sides:
        assert shades(picture) == [(-end, 0, end)] and end >= largest
    axes = [picture.spec["layer"][0]["encoding"] for picture in (*sides, difference)]
    assert len({str(axis["x"]["scale"]["domain"]) for axis in axes}) == 1
    assert len({str(axis["y"]["scale"]["domain"]) for axis in axes}) == 1
    drawn = data_with(difference, "column")
    cells = compared.cells.set_index(["layer", "column"])
    assert len(drawn) == 3 * 6
    for row in drawn.itertuples():
        assert row.value == pytest.approx(cells.loc[(row.layer, row.column), f"{measure}_difference"])
    assert shades(difference)[0][2] >= drawn.value.abs().max()


def test_pictures_of_experts_and_routing_draw_their_tables(compared):
    picture = charts.expert_difference(compared, 5, 7, measure="rescue", layer=2)
    table = compared.experts(5, 7)
    drawn = [t for t in picture.tables.values() if "t_expert" in t]
    assert [len(t) for t in drawn] == [
        int((table["where"] == views.NOT_ROUTED).sum()),
        int(table["where"].isin([ONLY_A, ONLY_B]).sum()),
        int(table.rescue_difference.notna().sum()),
    ]
    overlap = charts.routing_map(compared)
    assert list(data_with(overlap, "jaccard").jaccard) == list(compared.routing.jaccard)
    bars = charts.routing_bars(compared)
    assert list(data_with(bars, "same").same) == list(compared.routing_layers.same)
    for made in (picture, overlap, bars):
        alt.LayerChart.from_dict(made.standalone(width=300))


def test_maps_of_prompts_that_do_not_correspond_stand_on_their_own_columns(compared):
    other = Fact("Paris is the capital of {}", "France", "x", "y")
    b = fake_result(request=BASE.replace(fact=other), tokens=["Par", "is", " France"], subject=[2], n_layers=6)
    pair = Compared(compared.a, b)
    maps = [charts.side_map(pair, side) for side in "ab"]
    axes = [picture.spec["layer"][0]["encoding"] for picture in maps]
    assert [len(axis["x"]["scale"]["domain"]) for axis in axes] == [6, 3]
    assert [axis["y"]["scale"]["domain"] for axis in axes] == [[5, 4, 3, 2, 1, 0]] * 2


def test_no_link_breaks_the_page_and_what_is_read_can_be_written():
    rng = random.Random(0)
    values = ["", "0", "1", "17", "18", "-1", "3.5", "nan", "x", "auto", "off", "replace", "noise", "int8", "rescue"]
    values += ["A|B", "A|a", "|", "<b>", "é\n", "9" * 25, "bfloat16", "org/x", "shared"]
    for _ in range(400):
        names = rng.sample(NAMES, rng.randint(0, 6))
        names += rng.sample(["prompt", "subject", "true", "foil"], rng.randint(0, 4))
        params = {f"{rng.choice('ab')}.{name}": rng.choice(values) for name in names}
        pair = read(params | {"edit": rng.choice(values), "same_model": rng.choice(values)})
        again = read(to_query(pair))
        assert again == dataclasses.replace(pair, problems=()), params
