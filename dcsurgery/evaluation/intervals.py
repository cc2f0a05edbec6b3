"""Intervals and tests for means over rows that may share a picture.

Rows with the same picture are not independent draws: whole clusters are resampled and flipped.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcsurgery.evaluation.eval_report import Comparison, Score

SAMPLES = 2000
FLIPS = 9999
# Up to this many clusters that differ, every pattern of signs is tried.
EXACT = 14
BLOCK = 1 << 22
TEST = (
    "two-sided sign-flip permutation test on the paired differences, whole pictures flipped; exact "
    f"for up to {EXACT} pictures that differ (for single 0/1 rows that is McNemar's exact test), "
    f"else {FLIPS} random flips"
)
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Sums:
    """Per cluster: the weighted sum of values, and the weights. Both [C]."""

    values: Array
    weights: Array

    @property
    def mean(self) -> float:
        """The weighted mean over all rows."""
        return float(self.values.sum() / self.weights.sum())


def cluster_sums(
    values: Sequence[float], clusters: Sequence[Hashable], weights: Sequence[float] | None = None
) -> Sums:
    """Return the sums of values per cluster; weights default to one per row."""
    places: dict[Hashable, int] = {}
    index = np.array([places.setdefault(name, len(places)) for name in clusters])
    given = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    weighted = np.asarray(values, np.float64) * given
    count = len(places)
    sums = (np.bincount(index, each, minlength=count) for each in (weighted, given))
    return Sums(*(each.astype(np.float64) for each in sums))


def score_rows(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    weights: Sequence[float] | None = None,
    *,
    seed: int = 0,
) -> Score:
    """Return the mean with its 95 % percentile interval over bootstrap samples of clusters."""
    sums = cluster_sums(values, clusters, weights)
    low, high = _interval(sums, seed)
    return Score(mean=sums.mean, low=low, high=high, rows=len(values))


def score_columns(
    values: Array, clusters: Sequence[Hashable], weights: Array, *, seed: int = 0
) -> list[Score]:
    """Return score_rows of every column of values [N, K], all from the same bootstrap samples.

    `weights` [N, K] are zero where a row does not belong to a column; a sample leaves out
    the columns of which it has no row.
    """
    places: dict[Hashable, int] = {}
    index = np.array([places.setdefault(name, len(places)) for name in clusters])
    totals, sizes = np.zeros((2, len(places), values.shape[1]))
    np.add.at(totals, index, values * weights)
    np.add.at(sizes, index, weights)
    count, draw = len(places), np.random.default_rng(seed)
    means: list[Array] = []
    for size in _blocks(SAMPLES, count):
        times = draw.multinomial(count, np.full(count, 1 / count), size=size).astype(np.float64)
        with np.errstate(invalid="ignore"):
            means.append((times @ totals) / (times @ sizes))
    low, high = np.nanquantile(np.concatenate(means), [0.025, 0.975], axis=0)
    own = totals.sum(0) / sizes.sum(0)
    rows = (weights > 0).sum(0)
    return [
        Score(mean=float(own[k]), low=float(low[k]), high=float(high[k]), rows=int(rows[k]))
        for k in range(values.shape[1])
    ]


def compare_rows(
    values: Sequence[float],
    base: Sequence[float],
    clusters: Sequence[Hashable],
    weights: Sequence[float] | None = None,
    *,
    seed: int = 0,
) -> Comparison:
    """Return values minus base on the same rows: mean, 95 % interval, p-value (see TEST)."""
    differences = [value - other for value, other in zip(values, base, strict=True)]
    sums = cluster_sums(differences, clusters, weights)
    low, high = _interval(sums, seed)
    return Comparison(
        difference=sums.mean, low=low, high=high, p_value=sign_flip(sums.values, seed=seed)
    )


def sign_flip(sums: Array, *, seed: int = 0) -> float:
    """Return the p-value of a total at least as far from zero under random signs of its parts."""
    parts = sums[np.abs(sums) > 1e-12]
    if not len(parts):
        return 1.0
    seen = abs(parts.sum()) - 1e-9 * np.abs(parts).sum()
    if len(parts) <= EXACT:
        patterns = np.arange(2 ** len(parts))[:, None] >> np.arange(len(parts)) & 1
        totals = np.abs((1 - 2 * patterns) @ parts)
        return float((totals >= seen).mean())
    draw, hits = np.random.default_rng(seed), 0
    for size in _blocks(FLIPS, len(parts)):
        signs = 1 - 2 * draw.integers(0, 2, (size, len(parts)), dtype=np.int8)
        hits += int((np.abs(signs @ parts) >= seen).sum())
    return (hits + 1) / (FLIPS + 1)


def _interval(sums: Sums, seed: int) -> tuple[float, float]:
    count = len(sums.values)
    draw = np.random.default_rng(seed)
    means: list[Any] = []
    for size in _blocks(SAMPLES, count):
        times = draw.multinomial(count, np.full(count, 1 / count), size=size)
        means.append((times @ sums.values) / (times @ sums.weights))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def _blocks(total: int, width: int) -> list[int]:
    """Split `total` draws of `width` numbers so that one block fits in memory."""
    size = max(1, min(total, BLOCK // max(width, 1)))
    return [min(size, total - start) for start in range(0, total, size)]
