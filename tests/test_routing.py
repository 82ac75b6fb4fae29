"""Routing statistics against counting by hand, scipy, and cases with a known answer."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from core.roles import ROLES, roles_of
from core.routing import (
    RoutedTokens,
    Sample,
    co_activation,
    compare,
    divergence,
    frequency,
    information,
    load_entropy,
)

N_EXPERTS, K, LAYERS = 6, 2, (1, 3, 4)


@pytest.fixture
def routed() -> RoutedTokens:
    generator = np.random.default_rng(3)
    n = 40
    index = np.stack([
        [generator.choice(N_EXPERTS, K, replace=False, p=[0.4, 0.3, 0.1, 0.1, 0.1, 0.0]) for _ in LAYERS]
        for _ in range(n)
    ])  # fmt: skip
    tokens = pd.DataFrame({"relation": [["a", "b", "c"][i % 3] for i in range(n)]})
    return RoutedTokens(tokens, index.astype(np.int16), np.full(index.shape, 0.5, dtype=np.float32), LAYERS, N_EXPERTS)


def test_roles() -> None:
    assert roles_of(7, (2, 3, 4)) == [
        "before subject", "before subject", "first subject", "middle subject", "last subject", "further", "last token",
    ]  # fmt: skip
    assert roles_of(4, (1,)) == ["before subject", "last subject", "further", "last token"]
    assert roles_of(3, (1, 2)) == ["before subject", "first subject", "last token"]
    assert roles_of(3, (0, 1)) == ["first subject", "last subject", "last token"]
    assert set(roles_of(9, (1, 2, 3, 4))) == set(ROLES)


def test_frequency_counts_tokens(routed: RoutedTokens) -> None:
    mask = (routed.tokens.relation == "b").to_numpy()
    got = frequency(routed, mask)
    for layer, expert in itertools.product(range(len(LAYERS)), range(N_EXPERTS)):
        hits = [expert in routed.index[i, layer] for i in range(40) if mask[i]]
        assert got[layer, expert] == pytest.approx(sum(hits) / len(hits))
    assert frequency(routed).sum(-1) == pytest.approx(K)
    assert frequency(routed)[:, 5].tolist() == [0.0] * len(LAYERS)
    assert np.isnan(frequency(routed, np.zeros(40, dtype=bool))).all()


def test_what_is_no_expert_counts_nowhere(routed: RoutedTokens) -> None:
    index = routed.index.copy()
    index[:, 0, 1] = N_EXPERTS  # families mark dropped slots so
    other = RoutedTokens(routed.tokens, index, routed.weight, LAYERS, N_EXPERTS)
    assert frequency(other)[0].sum() == pytest.approx(1.0)
    assert other.active()[:, 0].sum(-1).tolist() == [1] * 40
    assert (other.active().mean(0) == frequency(other)).all()


def test_load_entropy(routed: RoutedTokens) -> None:
    got = load_entropy(frequency(routed))
    for layer, row in enumerate(frequency(routed)):
        assert got[layer] == pytest.approx(entropy(row / row.sum(), base=N_EXPERTS))
    assert load_entropy(np.ones((1, 4)))[0] == pytest.approx(1.0)
    assert load_entropy(np.array([[2.0, 0, 0, 0]]))[0] == pytest.approx(0.0)
    assert np.isnan(load_entropy(np.full((1, 4), np.nan))[0])


def test_information_is_the_mutual_information(routed: RoutedTokens) -> None:
    active, groups = routed.active(), routed.tokens.relation.tolist()
    got, baseline, _ = information(active, groups, permutations=20)
    for layer, expert in itertools.product(range(len(LAYERS)), range(N_EXPERTS)):
        total = 0.0
        for value, group in itertools.product((True, False), "abc"):
            joint = sum(bool(active[i, layer, expert]) == value and groups[i] == group for i in range(40)) / 40
            left = sum(bool(active[i, layer, expert]) == value for i in range(40)) / 40
            right = groups.count(group) / 40
            total += joint * math.log2(joint / left / right) if joint else 0.0
        assert got[layer, expert] == pytest.approx(total, abs=1e-12)
    assert (baseline[:, :5] > 0).all() and (baseline[:, 5] == 0).all()  # the bias that is subtracted


def test_information_of_a_known_dependence() -> None:
    groups = ["x", "y"] * 50
    active = np.zeros((100, 1, 2), dtype=bool)
    active[::2, 0, 0] = True  # exactly the group x: one bit
    active[:50, 0, 1] = True  # independent of the group
    got, baseline, high = information(active, groups)
    assert got[0].tolist() == pytest.approx([1.0, 0.0], abs=1e-12)
    assert baseline[0, 1] == pytest.approx(1 / (2 * 100 * math.log(2)), rel=0.5)  # (Miller 1955: dof ÷ 2N nats)
    assert (high >= baseline).all() and got[0, 0] > high[0, 0] and got[0, 1] < high[0, 1]
    again = information(active, groups)
    assert (again[0] == got).all() and (again[1] == baseline).all() and (again[2] == high).all()


def test_co_activation_counts_pairs(routed: RoutedTokens) -> None:
    active = routed.active()[:, 1]
    table = co_activation(active).set_index(["expert", "other"])
    assert len(table) == math.comb(N_EXPERTS, 2)
    for i, j in itertools.combinations(range(N_EXPERTS), 2):
        both = sum(bool(row[i] and row[j]) for row in active)
        expected = sum(row[i] for row in active) * sum(row[j] for row in active) / len(active)
        assert table.together[i, j] == both
        assert table.expected[i, j] == pytest.approx(expected)
        if expected:
            assert table.lift[i, j] == pytest.approx(both / expected)
        else:
            assert np.isnan(table.lift[i, j])


def test_divergence_is_jensen_shannon(routed: RoutedTokens) -> None:
    mask = (routed.tokens.relation == "a").to_numpy()
    a, b = frequency(routed, mask), frequency(routed, ~mask)
    total, parts = divergence(a, b)
    for layer in range(len(LAYERS)):
        assert total[layer] == pytest.approx(jensenshannon(a[layer], b[layer], base=2) ** 2)
    assert parts.sum(-1) == pytest.approx(total)
    assert divergence(a, a)[0] == pytest.approx(0.0, abs=1e-12)
    one, other = np.array([[1.0, 1, 0, 0]]), np.array([[0.0, 0, 1, 1]])
    assert divergence(one, other)[0] == pytest.approx(1.0)
    assert divergence(one, other)[1][0].tolist() == pytest.approx([0.25] * 4)


def one_layer(experts: list[list[int]], n_experts: int = 4) -> RoutedTokens:
    """One token per entry, at one layer."""
    index = np.array(experts, dtype=np.uint8)[:, None, :]
    return RoutedTokens(pd.DataFrame(index=range(len(index))), index, np.ones(index.shape), (0,), n_experts)


def exhaustive(a: list[list[int]], b: list[list[int]], sides: list[tuple[bool, ...]]) -> list[float]:
    """Divergences of every way to deal the tokens of two lists to two sets."""
    out = []
    for inside in sides:
        counts = np.zeros((2, 4))
        for mine, experts in zip(inside, [*a, *b], strict=True):
            counts[0 if mine else 1, experts] += 1
        out.append(jensenshannon(counts[0] / counts[0].sum(), counts[1] / counts[1].sum(), base=2) ** 2)
    return out


A, B = [[0, 1], [0, 2], [0, 1]], [[0, 3], [2, 3], [1, 3]]


def test_chance_is_the_mean_over_ways_to_deal_the_units() -> None:
    left, right = one_layer(A), one_layer(B)
    everything = np.ones(3, dtype=bool)
    apart = compare(
        Sample(left, everything, np.array(["a", "b", "c"])), Sample(right, everything, np.array(["d", "e", "f"])),
        permutations=4000,
    )  # fmt: skip
    observed = exhaustive(A, B, [(True,) * 3 + (False,) * 3])[0]
    every = exhaustive(A, B, [s for s in itertools.product((True, False), repeat=6) if sum(s) == 3])
    assert apart.total[0] == pytest.approx(observed) and apart.part[0].sum() == pytest.approx(observed)
    assert apart.baseline[0] == pytest.approx(np.mean(every), abs=0.01)
    assert apart.p[0] == pytest.approx(np.mean(np.array(every) >= observed - 1e-12), abs=0.02)
    assert apart.a[0].tolist() == pytest.approx([3 / 6, 2 / 6, 1 / 6, 0])
    # counterparts only trade places: two of the right set's units have theirs in the left one
    named = compare(
        Sample(left, everything, np.array(["a", "b", "c"])), Sample(right, everything, np.array(["b", "a", "z"])),
        permutations=4000,
    )  # fmt: skip
    ways = []
    for s in itertools.product((True, False), repeat=6):
        if s[0] != s[4] and s[1] != s[3] and s[2] != s[5]:
            ways.append(s)
    assert named.baseline[0] == pytest.approx(np.mean(exhaustive(A, B, ways)), abs=0.01)
    assert named.units == (3, 3) and named.tokens == (3, 3)


def test_a_prompt_of_both_sets_stays_in_both_and_a_set_can_differ_from_one_that_holds_it() -> None:
    tokens = [*A, *B]
    everything = one_layer(tokens)
    units = np.array(list("abcdef"))
    whole = np.ones(6, dtype=bool)

    def of(some: str, others: str) -> float:
        counts = np.zeros((2, 4))
        for side, names in enumerate((some, others)):
            for name in names:
                counts[side, tokens["abcdef".index(name)]] += 1
        return jensenshannon(*(each / each.sum() for each in counts), base=2) ** 2

    # a set within the other: any three of the six could have been it
    within = [("".join(some), "abcdef") for some in itertools.combinations("abcdef", 3)]
    # two sets with one prompt in common
    common = [
        ("".join(some), twice + "".join(set("abcde") - set(some)))
        for some in itertools.combinations("abcde", 3)
        for twice in some
    ]
    for left, right, ways in (("abc", "abcdef", within), ("abc", "cde", common)):
        shared = frozenset(set(left) & set(right))
        found = compare(
            *(Sample(everything, np.isin(units, list(side)), units, shared) for side in (left, right)),
            permutations=4000,
        )  # fmt: skip
        every = np.array([of(*way) for way in ways])
        assert found.total[0] == pytest.approx(of(left, right))
        assert found.baseline[0] == pytest.approx(every.mean(), abs=0.01)
        assert found.p[0] == pytest.approx(np.mean(every >= of(left, right) - 1e-12), abs=0.03)
    # without a word about it the same name is a counterpart: here it has no one to trade with
    sets = [Sample(everything, mask, units) for mask in (np.isin(units, list("abc")), whole)]
    assert compare(*sets, permutations=50).p.tolist() == [1.0]


def test_units_change_sides_whole_and_small_sets_of_one_source_do_not_diverge() -> None:
    generator = np.random.default_rng(0)
    source = [[int(e)] for e in generator.choice(4, 200, p=[0.4, 0.3, 0.2, 0.1])]
    small = one_layer(source)
    p_values, totals = [], []
    for i in range(40):
        a, b = np.zeros(200, dtype=bool), np.zeros(200, dtype=bool)
        drawn = generator.choice(200, 20, replace=False)
        a[drawn[:10]], b[drawn[10:]] = True, True
        found = compare(Sample(small, a, np.arange(200)), Sample(small, b, np.arange(200)), permutations=99, seed=i)
        totals.append(found.total[0])
        p_values.append(found.p[0])
    assert np.mean(totals) > 0.03, "ten tokens each differ by chance alone"
    assert 0.3 < np.mean(p_values) < 0.75 and np.mean(np.array(p_values) <= 0.05) < 0.2
    # ten copies of the same three tokens are three units, not thirty
    units = np.repeat(np.arange(3), 10)
    copies = one_layer([A[u] for u in units]), one_layer([B[u] for u in units])
    whole = np.ones(30, dtype=bool)
    found = compare(Sample(copies[0], whole, units), Sample(copies[1], whole, 3 + units), permutations=2000)
    alone = compare(
        Sample(one_layer(A), whole[:3], np.arange(3)), Sample(one_layer(B), whole[:3], 3 + np.arange(3)),
        permutations=2000,
    )  # fmt: skip
    assert found.total == pytest.approx(alone.total) and found.baseline == pytest.approx(alone.baseline)
    assert found.p[0] >= 0.1 - 0.02  # of the 20 ways, the observed one and its mirror image are as large
