"""The derived kinds `routing` and `routing_comparison`: tables against counting by hand, the store, odd prompts."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import jensenshannon

from cache import Store
from core import derived
from core.errors import InputError
from core.moe import MoeModel
from core.requests import Fact, ModelSpec, TraceRequest
from core.roles import ALL, CLASSES, LAST, LAST_SUBJECT, OTHERS
from core.routed import collect, place
from core.routing import Sample, compare
from core.routing_kinds import comparison_request, routed_of, routing_request, sides_of
from core.routing_sets import (
    co_activation_table,
    frequency_table,
    load_table,
    mask_of,
    of_expert,
    parts_of,
    relation_table,
)
from tests.checkpoints import build
from tests.tokenizers_for_tests import tokenizer
from tests.word_facts import word_facts

SPEC = ModelSpec("ours")
LINES = ("The capital of France is Paris.", "Rome", "The city of New York is in America.")


@pytest.fixture(scope="module")
def model() -> MoeModel:
    return MoeModel(build("qwen2_moe"), tokenizer("prefix_space"), spec=SPEC)


@pytest.fixture(scope="module")
def facts() -> tuple[Fact, ...]:
    return tuple(word_facts()[:12])


@pytest.fixture(scope="module")
def request_(facts):
    return routing_request(SPEC, facts=facts, draws=2, seed=3)


@pytest.fixture(scope="module")
def result(model, request_):
    return derived.derive(model, request_)


@pytest.fixture(scope="module")
def routed(model, facts):
    return collect(model, [place(model, TraceRequest(fact)) for fact in facts], draws=2, seed=3)


def test_a_result_gives_back_the_raw_routing_also_from_the_store(model, request_, result, routed, tmp_path) -> None:
    with Store.open(tmp_path / "store.duckdb") as store:
        first = derived.derive(model, request_, store=store)
        again = derived.derive(model, request_, store=store)
    assert again.cached and not first.cached
    for one in (result, again):
        back = routed_of(one)
        assert (back.index == routed.index).all() and back.index.dtype == np.uint8
        assert np.abs(back.weight - routed.weight).max() < 1e-6 and back.weight.dtype == np.float32
        assert back.layers == routed.layers and back.n_experts == routed.n_experts
        pd.testing.assert_frame_equal(back.tokens.astype(object), routed.tokens.astype(object), check_dtype=False)
    assert len(derived.pack(result)) < 3 * (routed.index.nbytes + routed.weight.nbytes) + 60_000


def test_frequencies_are_counts_of_tokens(routed) -> None:
    table = frequency_table(routed)
    assert len(table) == 2 * len(CLASSES) * len(routed.layers) * routed.n_experts
    classes = {"first subject", "last subject", "last token"}
    for row in table.sample(60, random_state=1).itertuples():
        hits = tokens = 0
        for i, token in enumerate(routed.tokens.itertuples()):
            mine = token.role if token.role in classes else OTHERS
            if token.run == row.run and row.position_class in (mine, ALL):
                tokens += 1
                hits += int(row.expert) in routed.index[i, routed.layers.index(row.layer)]
        assert (row.count, row.tokens) == (hits, tokens) and row.frequency == pytest.approx(hits / tokens)
    load = load_table(table)
    for row in load.itertuples():
        part = table[
            (table.run == row.run) & (table.position_class == row.position_class) & (table.layer == row.layer)
        ]
        share = part["count"] / part["count"].sum()
        bits = -(share[share > 0] * np.log2(share[share > 0])).sum()
        assert row.load_entropy == pytest.approx(bits / np.log2(routed.n_experts))
        assert row.unused == (part["count"] == 0).sum() == len(row.unused_names.split())
        assert set(row.unused_names.split()) == set(part.name[part["count"] == 0])
        assert row.busiest_frequency == part.frequency.max()


def test_an_experts_tokens_are_found_with_their_weights(routed) -> None:
    layer = routed.layers[1]
    expert = int(routed.index[5, 1, 0])
    found = of_expert(routed, layer, expert)
    assert 5 in found.index
    for i in range(len(routed.tokens)):
        slots = (routed.index[i, 1] == expert).nonzero()[0]
        assert (i in found.index) == bool(len(slots))
        if len(slots):
            assert found.router_weight[i] == pytest.approx(routed.weight[i, 1, slots].sum())
            assert found.token_id[i] == routed.tokens.token_id[i]


def test_pairs_and_relations_are_counts(routed) -> None:
    layer, at = routed.layers[0], 0
    mask = mask_of(routed, "corrupt", OTHERS)
    pairs = co_activation_table(routed, "corrupt", OTHERS, layer).set_index(["expert", "other"])
    for i, j in itertools.combinations(range(routed.n_experts), 2):
        both = sum({i, j} <= set(row.tolist()) for row in routed.index[mask, at])
        assert pairs.together[i, j] == both and pairs.name[i, j] == f"L{layer}E{i:03d}"
        assert pairs.frequency[i, j] == pytest.approx((routed.index[mask, at] == i).any(1).mean())
    table = relation_table(routed, "clean", LAST, layer)
    mask = mask_of(routed, "clean", LAST)
    for row in table.itertuples():
        mine = routed.index[mask & (routed.tokens.relation == row.relation), at]
        assert (row.count, row.tokens, row.facts) == ((mine == row.expert).sum(), len(mine), len(mine))
    assert set(table.relation) == {fact.relation for fact in word_facts() if fact.relation}


def test_information_is_zero_for_one_relation_and_a_bit_for_a_perfect_sign(model, result, routed) -> None:
    table = result.tables["information"]
    assert set(zip(table.run, table.position_class, strict=True)) == {
        part for part in parts_of(routed) if part[1] != ALL
    }
    mask = mask_of(routed, "clean", LAST)
    relation = routed.tokens.relation[mask].astype(str).to_numpy()
    for row in table[(table.run == "clean") & (table.position_class == LAST)].itertuples():
        active = (routed.index[mask, routed.layers.index(row.layer)] == row.expert).any(1)
        total = 0.0
        for value, group in itertools.product((True, False), set(relation)):
            joint = ((active == value) & (relation == group)).mean()
            if joint:
                total += joint * np.log2(joint / (active == value).mean() / (relation == group).mean())
        assert row.information == pytest.approx(total, abs=1e-6)
        assert row.above_baseline == pytest.approx(row.information - row.baseline)
        assert row.facts == 12 and row.relations == 3
    one = word_facts()[:4]
    assert derived.derive(model, routing_request(SPEC, facts=one)).tables["information"].empty


def test_plain_prompts_have_clean_runs_only_and_two_classes(model) -> None:
    request = routing_request(SPEC, prompts=LINES, noise=2.0, draws=9)
    assert request == routing_request(SPEC, prompts=LINES), "nothing of the corruption counts"
    result = derived.derive(model, request)
    routed = routed_of(result)
    assert parts_of(routed) == [("clean", LAST), ("clean", OTHERS), ("clean", ALL)]
    assert result.tables["clean_corrupt"].empty and result.tables["information"].empty
    assert result.tables["prompts"].text.tolist() == list(LINES)
    assert mask_of(routed, "clean", LAST).sum() == 3


def test_what_cannot_be_taken_is_left_out_and_named(model, facts) -> None:
    wrong = Fact("The capital of it is", "Nowhere", "Paris", "Rome", case_id=77)
    result = derived.derive(model, routing_request(SPEC, facts=(facts[0], wrong)))
    assert result.values["n_prompts"] == 1
    (left,) = result.values["left_out"]
    assert (left["case_id"], left["subject"]) == (77, "Nowhere") and "is not in the prompt" in left["why"]
    with pytest.raises(InputError, match="none of the 1 prompts"):
        derived.derive(model, routing_request(SPEC, facts=(wrong,)))


def test_a_comparison_is_of_its_two_sides(model, facts, tmp_path) -> None:
    a, b = routing_request(SPEC, facts=facts[:6], draws=2), routing_request(SPEC, facts=facts[6:], draws=2)
    request = comparison_request(a, b)
    assert sides_of(request) == (a, b)
    with Store.open(tmp_path / "store.duckdb") as store:
        result = derived.derive(model, request, store=store)
        sides = [derived.from_store(store, side) or derived.derive(model, side, store=store) for side in (a, b)]
        assert all(side.cached for side in sides), "the sides are answers of their own"
    left, right = map(routed_of, sides)
    assert len(result.tables["layers"]) == 2 * len(CLASSES) * len(left.layers)
    for row in result.tables["layers"].itertuples():
        at = left.layers.index(row.layer)
        shares = []
        for routed in (left, right):
            index = routed.index[mask_of(routed, row.run, row.position_class), at]
            shares.append(np.bincount(index.ravel(), minlength=routed.n_experts) / index.size)
        assert row.divergence == pytest.approx(jensenshannon(*shares, base=2) ** 2, abs=1e-9)
        parts = result.tables["experts"]
        mine = parts[
            (parts.run == row.run) & (parts.position_class == row.position_class) & (parts.layer == row.layer)
        ]
        assert mine.part.sum() == pytest.approx(row.divergence)
        assert mine.share_a.to_numpy() == pytest.approx(shares[0])
        assert 0 < row.p <= 1 and row.above_baseline == pytest.approx(row.divergence - row.baseline)
        assert row.prompts_a <= 6 and row.prompts_b <= 6
    mixed = derived.derive(model, comparison_request(a, routing_request(SPEC, prompts=LINES)))
    parts = mixed.tables["layers"][["run", "position_class"]].drop_duplicates()
    assert set(parts.itertuples(index=False, name=None)) == {("clean", LAST), ("clean", OTHERS), ("clean", ALL)}


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("routing", {"nois": 3}, "no setting 'nois'"),
        ("routing", {"draws": 0}, "draws is 0"),
        ("routing", {"corruption": "x"}, "corruption is 'x'"),
        ("routing", {"prompts": "Rome"}, "a list of texts"),
        ("routing", {"prompts": ["Rome"]}, "facts and plain prompts"),
        ("routing_comparison", {"a": {}, "b": {}}, "needs the settings a, b and facts_of_a"),
        ("routing_comparison", {"a": {}, "b": {}, "facts_of_a": 99}, "needs the settings"),
    ],
)
def test_questions_written_by_hand_are_checked(model, facts, kind, settings, words) -> None:
    with pytest.raises(InputError, match=words):
        derived.derive(model, derived.DerivedRequest.of(kind, SPEC, facts=facts, **settings))


def test_a_prompt_is_known_again_in_the_other_set_and_in_another_form_it_is_another(model, facts) -> None:
    def p_values(a, b) -> np.ndarray:
        return derived.derive(model, comparison_request(a, b)).tables["layers"].p.to_numpy()

    kinds = sorted({fact.relation for fact in facts})
    some = tuple(fact for fact in facts if fact.relation == kinds[0])
    few, every = (routing_request(SPEC, facts=of) for of in (some, facts))
    assert 0 < len(some) < len(facts) and p_values(few, every).min() < 0.3, "it can differ from a set that holds it"
    otherwise = routing_request(SPEC, facts=tuple(replace(fact, prompt=f"Well, {fact.prompt}") for fact in some))
    assert p_values(few, otherwise).min() < 1, "each fact trades places with itself"
    lines = [routing_request(SPEC, prompts=LINES[:n]) for n in (1, len(LINES))]
    assert p_values(*lines).min() < 1


def test_a_set_does_not_diverge_from_itself_and_chance_is_no_divergence(routed) -> None:
    units = routed.tokens.fact.to_numpy()
    mask = mask_of(routed, "clean", LAST_SUBJECT)
    same = compare(Sample(routed, mask, units), Sample(routed, mask, units), permutations=50)
    assert same.total == pytest.approx(0, abs=1e-12) and same.baseline == pytest.approx(0, abs=1e-12)
    assert (same.p == 1).all()
