"""Shares of right answers by question type, and differences with intervals clustered by tower.

Towers are the independent draws: questions of one tower share its eyes. Every interval is Student's
t over one number per tower, at 95 %.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from math import nan, sqrt

import numpy as np
from numpy.typing import NDArray

from dcsurgery.demo.outcome import Outcome
from dcsurgery.demo.questions import KINDS, LOW_LEVEL

LEVEL = 0.95
HIGH_LEVEL = tuple(kind for kind in KINDS if kind not in LOW_LEVEL)
GROUPS: dict[str, tuple[str, ...]] = {
    **{kind: (kind,) for kind in KINDS},
    "low level": LOW_LEVEL,
    "high level": HIGH_LEVEL,
    "all": tuple(KINDS),
}


@dataclass(frozen=True)
class Difference:
    """A mean over towers with its interval, its p-value (two-sided), and the towers' own values."""

    mean: float
    low: float
    high: float
    p_value: float
    towers: tuple[float, ...]

    @property
    def moved(self) -> bool:
        """True when the interval leaves zero out."""
        return self.low > 0 or self.high < 0


def within(t: float, freedom: int) -> float:
    """Return the probability that Student's |T| stays below t.

    With T = sqrt(n) tan(a) the density becomes cos(a)^(n - 1), over -pi/2..pi/2.
    """
    grid = np.linspace(0, np.pi / 2, 20001)
    density = np.cos(grid) ** (freedom - 1)
    total = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return float(np.interp(np.arctan(t / sqrt(freedom)), grid, total / total[-1]))


@cache
def quantile(level: float, freedom: int) -> float:
    """Return the t that Student's |T| stays below with probability `level`."""
    low, high = 0.0, 1000.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle, freedom) < level else (low, middle)
    return high


def summarise(values: Sequence[float]) -> Difference:
    """Return mean, interval and p-value of one number per tower.

    No interval for a single tower, nor where all are alike: a question more in each of them is no
    certainty, though Student's t would take it for one.
    """
    count, mean = len(values), float(np.mean(values))
    if count < 2 or float(np.ptp(values)) < 1e-12:
        return Difference(mean, nan, nan, nan, tuple(values))
    error = float(np.std(values, ddof=1)) / sqrt(count)
    half = quantile(LEVEL, count - 1) * error
    p_value = 1 - within(abs(mean) / error, count - 1)
    return Difference(mean, mean - half, mean + half, p_value, tuple(values))


def share(outcome: Outcome, group: str) -> float:
    """Return an outcome's share of right answers, every question type of the group alike."""
    kinds, right = np.array(outcome.kinds), np.array(outcome.right)
    return float(np.mean([right[kinds == kind].mean() for kind in GROUPS[group]]))


def shares(outcomes: Iterable[Outcome], arm: str, group: str) -> NDArray[np.float64]:
    """Return the share of an arm in every tower, towers in the order of their names."""
    chosen = sorted((item for item in outcomes if item.arm == arm), key=lambda item: item.tower)
    return np.array([share(item, group) for item in chosen])


def compare(outcomes: Sequence[Outcome], arm: str, other: str, group: str) -> Difference:
    """Return arm minus other, tower by tower, summarised."""
    values = shares(outcomes, arm, group) - shares(outcomes, other, group)
    return summarise([float(value) for value in values])
