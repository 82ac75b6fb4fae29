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
from core.routing import RoutedTokens, co_activation, divergence, frequency, information, load_entropy

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
    got, baseline = information(active, groups, permutations=20)
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
    got, baseline = information(active, groups)
    assert got[0].tolist() == pytest.approx([1.0, 0.0], abs=1e-12)
    assert baseline[0, 1] == pytest.approx(1 / (2 * 100 * math.log(2)), rel=0.5)  # (Miller 1955: dof ÷ 2N nats)
    again = information(active, groups)
    assert (again[0] == got).all() and (again[1] == baseline).all()


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
