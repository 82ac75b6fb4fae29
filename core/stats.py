"""Means over facts with their uncertainty: percentile bootstrap, sign-flip test, positive fraction. NumPy only.

The unit is the fact, or a group of facts (all facts of a subject) that is resampled and flipped as one. Missing values
(NaN) are left out of the means and counted: nothing is dropped silently. Every function is seeded: the same values,
units and seed give the same numbers. Knows nothing of facts, experts or tables.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES, FLIPS, CONFIDENCE = 5000, 10000, 0.95
"""The paper's: bootstrap resamples, samples of the sign-flip test, level of the interval."""

_BLOCK = 4_000_000
"""Random numbers drawn at once, so that memory stays small whatever the number of units is."""
_COLUMNS = 512
"""Columns whose resampled means are held at once."""


@dataclass(frozen=True)
class Estimate:
    """A mean over facts. `ci_low`, `ci_high`: percentile-bootstrap interval; `positive_fraction`: share of the values
    above 0; `p_sign_flip`: two-sided; `n` values were there, `n_missing` were not; `units` is what was resampled.

    Undefined numbers are NaN: everything for n = 0, the interval for fewer than two units.
    """

    mean: float
    ci_low: float
    ci_high: float
    positive_fraction: float
    p_sign_flip: float
    n: int
    n_missing: int
    units: int

    @property
    def above_zero(self) -> bool:
        """The whole interval lies above 0."""
        return self.ci_low > 0

    @property
    def below_zero(self) -> bool:
        """The whole interval lies below 0."""
        return self.ci_high < 0

    def to_dict(self) -> dict[str, Any]:
        """mean, ci_low, ci_high, positive_fraction, p_sign_flip and n as JSON values, undefined ones None."""
        names = ("mean", "ci_low", "ci_high", "positive_fraction", "p_sign_flip")
        values = {name: getattr(self, name) for name in names}
        return {name: value if math.isfinite(value) else None for name, value in values.items()} | {"n": self.n}


def estimate(
    values: Sequence[float] | np.ndarray,
    *,
    units: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
    flips: int = FLIPS,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Estimate:
    """The mean of `values` [n] with everything that `Estimate` holds; `units` [n]: the group of each value."""
    values = np.asarray(values, dtype=float)
    there = ~np.isnan(values)
    sums, sizes = _by_unit(values, units)
    sums, sizes = sums[sizes > 0], sizes[sizes > 0]
    low, high = _percentiles(sums[:, None], sizes[:, None], resamples=resamples, confidence=confidence, seed=seed)
    n = int(there.sum())
    return Estimate(
        mean=float(values[there].mean()) if n else math.nan,
        ci_low=float(low[0]),
        ci_high=float(high[0]),
        positive_fraction=float((values[there] > 0).mean()) if n else math.nan,
        p_sign_flip=sign_flip(values, units=units, samples=flips, seed=seed),
        n=n,
        n_missing=int((~there).sum()),
        units=len(sums),
    )


def bands(
    table: np.ndarray,
    *,
    units: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(mean, ci_low, ci_high, n) of every column of `table` [n_facts, m], each [m]; each as `estimate` would have it.

    Columns with the same units present are resampled together, with the same draws of units.
    """
    table = np.asarray(table, dtype=float)
    there = ~np.isnan(table)
    n = there.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(there, table, 0.0).sum(axis=0) / np.where(n > 0, n, np.nan)
    sums, sizes = _by_unit(table, units)
    low, high = np.full(table.shape[1], np.nan), np.full(table.shape[1], np.nan)
    for columns in _alike(sizes):
        rows = sizes[:, columns[0]] > 0
        low[columns], high[columns] = _percentiles(
            sums[np.ix_(rows, columns)],
            sizes[np.ix_(rows, columns)],
            resamples=resamples,
            confidence=confidence,
            seed=seed,
        )
    return mean, low, high, n


def ratio_bands(
    table: np.ndarray,
    whole: np.ndarray,
    *,
    least: float,
    units: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ratio, ci_low, ci_high), each [m], of the means: every column of `table` [n_facts, m] ÷ `whole` [n_facts], both
    over the facts that have a value in the column. Rows of both are resampled together, as in `bands`.

    Missing where the mean of `whole` is below `least`; the interval also where that is so in any resample.
    """
    table, whole = np.asarray(table, dtype=float), np.asarray(whole, dtype=float)
    both = ~np.isnan(table) & ~np.isnan(whole)[:, None]
    table = np.where(both, table, np.nan)
    below = np.where(both, whole[:, None], np.nan)
    (sums, sizes), (parts, _) = _by_unit(table, units), _by_unit(below, units)
    ratio = _ratio(sums.sum(0), parts.sum(0), sizes.sum(0), least)
    low, high = np.full(table.shape[1], np.nan), np.full(table.shape[1], np.nan)
    tail = 50 * (1 - confidence)
    for columns in _alike(sizes):
        rows = sizes[:, columns[0]] > 0
        if rows.sum() < 2:
            continue
        some = np.ix_(rows, columns)
        drawn = [
            resampled_means(values[some], sizes[some], resamples=resamples, seed=seed) for values in (sums, parts)
        ]
        low[columns], high[columns] = np.percentile(_ratio(*drawn, 1.0, least), [tail, 100 - tail], axis=0)
    return ratio, low, high


def _ratio(sums: np.ndarray, parts: np.ndarray, sizes: np.ndarray | float, least: float) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        defined = (sizes > 0) & (parts / sizes >= least)
        return np.where(defined, sums / np.where(defined, parts, np.nan), np.nan)


def sign_flip(
    values: Sequence[float] | np.ndarray,
    *,
    units: Sequence[Hashable] | None = None,
    samples: int = FLIPS,
    seed: int = 0,
) -> float:
    """Two-sided p of "the values are symmetric around 0": how often does a mean with random signs lie as far from 0?

    Each unit keeps or changes the sign of all its values together. All 2^units sign patterns are enumerated where
    there are no more than `samples`; otherwise `samples` random ones are drawn and the observed one is counted among
    them, so that p is never 0. NaN without values.
    """
    sums, sizes = _by_unit(np.asarray(values, dtype=float), units)
    sums = sums[sizes > 0]
    u = len(sums)
    if u == 0:
        return math.nan
    # equal means must count as equal although they are summed in another order
    observed = abs(sums.sum()) - 1e-12 * np.abs(sums).sum()
    if u < 63 and 2**u <= samples:
        patterns = np.arange(2**u)[:, None] >> np.arange(u) & 1
        return float((np.abs((1 - 2 * patterns) @ sums) >= observed).mean())
    rng = np.random.default_rng(seed)
    extreme = 0
    for size in _blocks(samples, u):
        signs = 1 - 2 * rng.integers(0, 2, (size, u), dtype=np.int8)
        extreme += int((np.abs(signs @ sums) >= observed).sum())
    return (1 + extreme) / (1 + samples)


def resampled_means(sums: np.ndarray, sizes: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Means [resamples, m] of units drawn with replacement, as many as there are.

    `sums`, `sizes` [u, m]: sum and number of the values of each unit.
    """
    u = len(sums)
    rng = np.random.default_rng(seed)
    out = np.empty((resamples, sums.shape[1]))
    start = 0
    for size in _blocks(resamples, u):
        drawn = rng.integers(0, u, (size, u))
        times = np.bincount((drawn + np.arange(size)[:, None] * u).ravel(), minlength=size * u).reshape(size, u)
        times = times.astype(float)
        out[start : start + size] = (times @ sums) / (times @ sizes)
        start += size
    return out


def _percentiles(
    sums: np.ndarray, sizes: np.ndarray, *, resamples: int, confidence: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    if len(sums) < 2:  # one unit gives the same mean in every resample: no interval, rather than one of width 0
        return np.full(sums.shape[1], np.nan), np.full(sums.shape[1], np.nan)
    tail = 50 * (1 - confidence)
    means = resampled_means(sums, sizes, resamples=resamples, seed=seed)
    low, high = np.percentile(means, [tail, 100 - tail], axis=0)
    return low, high


def _alike(sizes: np.ndarray) -> list[list[int]]:
    """The columns of `sizes` [u, m], grouped by which units they have, in blocks that keep resamples small."""
    patterns: dict[bytes, list[int]] = {}
    for column in range(sizes.shape[1]):
        patterns.setdefault((sizes[:, column] > 0).tobytes(), []).append(column)
    return [group[at : at + _COLUMNS] for group in patterns.values() for at in range(0, len(group), _COLUMNS)]


def _by_unit(values: np.ndarray, units: Sequence[Hashable] | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values of each unit that are there, in the units' order of first appearance."""
    there = ~np.isnan(values)
    filled, counts = np.where(there, values, 0.0), there.astype(float)
    if units is None:
        return filled, counts
    if len(units) != len(values):
        raise ValueError(f"{len(values)} values have {len(units)} units")
    number: dict[Hashable, int] = {}
    index = np.array([number.setdefault(unit, len(number)) for unit in units], dtype=int)
    sums, sizes = np.zeros((len(number), *values.shape[1:])), np.zeros((len(number), *values.shape[1:]))
    np.add.at(sums, index, filled)
    np.add.at(sizes, index, counts)
    return sums, sizes


def _blocks(total: int, width: int) -> list[int]:
    size = max(1, _BLOCK // max(width, 1))
    return [min(size, total - start) for start in range(0, total, size)]
