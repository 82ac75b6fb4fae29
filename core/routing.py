"""Where the tokens of many prompts are routed: frequencies, entropy, information, co-activation, divergence.

Pure arrays and tables; knows no model and no store. A *set* below is a choice of tokens, given as a boolean mask.
Logarithms are to base 2: entropies, information and divergences are in bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

TOKEN_COLUMNS = ["fact", "case_id", "relation", "subject", "run", "draw", "pos", "role", "token_id", "token"]
"""Columns of `RoutedTokens.tokens`: `fact` numbers the prompts; `run` is clean or corrupt (`draw` missing on clean);
`role` is one of `core.roles.ROLES`, or `NO_SUBJECT`."""


@dataclass(frozen=True)
class RoutedTokens:
    """Tokens and where they went. `tokens`: one row per token (`TOKEN_COLUMNS`); `index` [tokens, MoE layers, k]: its
    routed experts (an index of `n_experts` or more is no expert); `weight`: their router weights, same shape;
    `layers`: the MoE layers' indices."""

    tokens: pd.DataFrame
    index: np.ndarray
    weight: np.ndarray
    layers: Sequence[int]
    n_experts: int

    def active(self, mask: np.ndarray | None = None) -> np.ndarray:
        """Whether each token of a set is routed to each expert: bool [tokens, layers, experts]."""
        index = self.index if mask is None else self.index[mask]
        out = np.zeros((*index.shape[:2], self.n_experts + 1), dtype=bool)
        np.put_along_axis(out, np.minimum(index, self.n_experts).astype(np.int64), True, axis=2)
        return out[..., : self.n_experts]


def frequency(routed: RoutedTokens, mask: np.ndarray | None = None) -> np.ndarray:
    """Share of a set's tokens that are routed to each expert: [layers, experts], between 0 and 1; NaN for no tokens.

    Sums to the model's top-k over a layer's experts.
    """
    index = routed.index if mask is None else routed.index[mask]
    out = np.full((index.shape[1], routed.n_experts), np.nan)
    if len(index):
        for layer in range(index.shape[1]):
            counts = np.bincount(index[:, layer].ravel(), minlength=routed.n_experts)[: routed.n_experts]
            out[layer] = counts / len(index)
    return out


def load_entropy(frequencies: np.ndarray) -> np.ndarray:
    """Entropy of each layer's load ÷ log₂(experts): [layers]. 1: all experts share alike, 0: one takes all."""
    load = _shares(frequencies)
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = -np.where(load > 0, load * np.log2(load), 0.0).sum(-1)
    return np.where(np.isnan(load).any(-1), np.nan, bits / np.log2(load.shape[-1]))


def information(
    active: np.ndarray, groups: Sequence[str], *, permutations: int = 200, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What being routed to an expert says about the group: mutual information, its baseline, and the 95th percentile
    of what the baseline is the mean of; each [layers, experts], in bits.

    `active` [facts, layers, experts]: whether the fact's token is routed there; `groups`: one label per fact (its
    relation). The plug-in estimate is biased upward: the baseline is its mean over random permutations of the labels
    (protocol.md, "More pitfalls"), to be subtracted.
    """
    labels, codes = np.unique(np.asarray(groups), return_inverse=True)
    flat = active.reshape(len(active), -1).astype(np.float32)  # counts below 2^24 are exact
    found = _plug_in(flat, codes, len(labels))
    generator = np.random.default_rng(seed)
    permuted = np.array([_plug_in(flat, generator.permutation(codes), len(labels)) for _ in range(permutations)])
    high = np.percentile(permuted, 95, axis=0)
    return tuple(values.reshape(active.shape[1:]) for values in (found, permuted.mean(0), high))


def _plug_in(active: np.ndarray, codes: np.ndarray, n_groups: int) -> np.ndarray:
    """I(routed; group) = H(routed) − Σ_g p(g) H(routed | g) from counts, [experts of all layers]."""
    member = np.zeros((n_groups, len(codes)), dtype=np.float32)
    member[codes, np.arange(len(codes))] = 1
    sizes = member.sum(1, dtype=np.float64)
    counts = (member @ active).astype(np.float64)
    within = _binary_entropy(counts / sizes[:, None])
    return _binary_entropy(counts.sum(0) / len(codes)) - (sizes[:, None] / len(codes) * within).sum(0)


def _binary_entropy(p: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return -(np.where(p > 0, p * np.log2(p), 0.0) + np.where(p < 1, (1 - p) * np.log2(1 - p), 0.0))


def co_activation(active: np.ndarray) -> pd.DataFrame:
    """How often two experts of one layer serve the same token: one row per pair i < j.

    `active` [tokens, experts]. `together`: tokens routed to both; `expected`: freq(i) · freq(j) · tokens, if the two
    were chosen independently; `lift`: together ÷ expected, missing where nothing is expected.
    """
    counts = active.astype(np.float64)
    together, each = counts.T @ counts, counts.sum(0)
    i, j = np.triu_indices(active.shape[1], k=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = each[i] * each[j] / len(active)
        lift = np.where(expected > 0, together[i, j] / expected, np.nan)
    return pd.DataFrame(
        {"expert": i, "other": j, "together": together[i, j].astype(np.int64), "expected": expected, "lift": lift}
    )


def divergence(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Jensen–Shannon divergence of the loads of two sets: ([layers], each expert's part of it [layers, experts]).

    `a`, `b`: frequencies [layers, experts], normalised to shares of the layer's load. Between 0 (equal) and 1 bit (no
    expert serves both). An expert's part is ½ p log₂(p/m) + ½ q log₂(q/m) with m = (p + q)/2; it is never negative.
    """
    p, q = _shares(a), _shares(b)
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = np.where(p > 0, p * np.log2(p / middle), 0.0) / 2 + np.where(q > 0, q * np.log2(q / middle), 0.0) / 2
    parts = np.where(np.isnan(p) | np.isnan(q), np.nan, np.maximum(parts, 0.0))
    return parts.sum(-1), parts


@dataclass(frozen=True)
class Sample:
    """Tokens of one set: `mask` of `routed.tokens`; `units`: one name for each token of the whole table. Tokens of a
    unit (a prompt) belong together; units of the same name in two sets are each other's counterpart, or, where their
    name is among `shared`, one and the same prompt, which belongs to both sets."""

    routed: RoutedTokens
    mask: np.ndarray
    units: np.ndarray
    shared: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Divergence:
    """Two sets compared. [layers]: `total`, in bits; `baseline`: its mean over permutations of who belongs to which
    set; `high`: their 95th percentile; `p`: the share of them that is at least as large (the observed one counted).
    [layers, experts]: `part` of the total, `part_baseline`, and the sets' shares of the load `a`, `b`. `tokens`,
    `units`: how many each set has."""

    total: np.ndarray
    baseline: np.ndarray
    high: np.ndarray
    p: np.ndarray
    part: np.ndarray
    part_baseline: np.ndarray
    a: np.ndarray
    b: np.ndarray
    tokens: tuple[int, int]
    units: tuple[int, int]


def compare(a: Sample, b: Sample, *, permutations: int = 200, seed: int = 0) -> Divergence:
    """Jensen–Shannon divergence of the loads of two sets against what chance makes of sets of these sizes.

    Two small sets differ even if they come from one and the same source. So units, not tokens, change sides at random:
    a unit with a counterpart trades places with it or not; all others are shuffled, the sets keeping their sizes, and
    how many units belong to both (were these fixed, a set would never differ from one that contains it).
    """
    names = [np.unique(each.units[each.mask]) for each in (a, b)]
    left, right = _relabelled(names[0], names[1], a.shared & b.shared, permutations, np.random.default_rng(seed))
    layers = []
    for at in range(len(a.routed.layers)):
        counts = [_counts(each, known, at) for each, known in zip((a, b), names, strict=True)]
        loads = [each.sum(0, dtype=np.float64)[None] for each in counts]
        total, part = divergence(*loads)
        both = np.concatenate(counts).astype(np.float32)
        chance, parts = divergence(*((side @ both).astype(np.float64) for side in (left, right)))
        larger = (chance >= total - 1e-12).sum() if np.isfinite(total[0]) else np.nan
        layers.append((
            total[0], chance.mean(), np.percentile(chance, 95), (1 + larger) / (1 + permutations),
            part[0], parts.mean(0), _shares(loads[0])[0], _shares(loads[1])[0],
        ))  # fmt: skip
    return Divergence(
        *(np.array(values) for values in zip(*layers, strict=True)),
        tokens=(int(a.mask.sum()), int(b.mask.sum())), units=(len(names[0]), len(names[1])),
    )  # fmt: skip


def _relabelled(
    a: np.ndarray, b: np.ndarray, shared: frozenset[str], n: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Random memberships of set a and of set b, each fp32 [n, units of a then of b]: 1 inside, 0 not. `shared`: units
    that may be in both; they keep their place among those of a, and are nowhere among those of b."""
    size = len(a) + len(b)
    left, right = np.zeros((n, size), dtype=np.float32), np.zeros((n, size), dtype=np.float32)
    names, in_a, in_b = np.intersect1d(a, b, assume_unique=True, return_indices=True)
    same = np.array([name in shared for name in names.tolist()], dtype=bool)
    pairs, twice = (in_a[~same], len(a) + in_b[~same]), len(a) + in_b[same]
    coins = generator.integers(0, 2, (n, len(pairs[0])))
    left[:, pairs[0]], left[:, pairs[1]] = coins, 1 - coins
    right[:, pairs[0]], right[:, pairs[1]] = 1 - coins, coins
    dealt = np.setdiff1d(np.arange(size), np.concatenate([*pairs, twice]))
    own = np.stack([dealt < len(a), (dealt >= len(a)) | np.isin(dealt, in_a[same])]).astype(np.float32)
    for to_left, to_right in zip(left, right, strict=True):
        to_left[dealt], to_right[dealt] = own[:, generator.permutation(len(dealt))]
    return left, right


def _counts(sample: Sample, names: np.ndarray, at: int) -> np.ndarray:
    """Routed slots of each unit and expert at the layer number `at`: [units, experts]."""
    routed = sample.routed
    unit = np.searchsorted(names, sample.units[sample.mask])
    index = np.minimum(routed.index[sample.mask, at].astype(np.int64), routed.n_experts)
    width = routed.n_experts + 1
    flat = np.bincount((unit[:, None] * width + index).ravel(), minlength=len(names) * width)
    return flat.reshape(len(names), width)[:, : routed.n_experts]


def _shares(frequencies: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return frequencies / frequencies.sum(-1, keepdims=True)
