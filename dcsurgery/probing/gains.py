"""From slopes to gains: how much of the loss a step is expected to take away, and which to choose.

Along a step of length t the loss of row i changes by t p_i + t^2 p_i^2 / 2: its slope, and the
empirical Fisher matrix as curvature. The length comes from the held-out rows of all other folds, so
that a direction that does not hold gains nothing, or loses. Gains are nats per answer token.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dcsurgery.evaluation.eval_report import Score
from dcsurgery.evaluation.intervals import cluster_sums, score_columns
from dcsurgery.probing.slopes import Array, Slopes

# Added to the curvature of a set of steps, in parts of each one's own.
RIDGE = 0.01
# Of a normal distribution, 95 %.
WIDTH = 1.96
# A length of 1 is where the Kronecker factors see the lowest loss. Without an end, what rounding
# leaves of today's feature would be stretched until it pays.
FARTHEST = 100.0
# More states than this are never put together: each costs columns in the projector.
MOST = 4
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Scored:
    """A gain per answer token with its interval, and that of every question type."""

    gain: Score
    by_type: dict[str, Score]


@dataclass(frozen=True)
class Gains:
    """Gains of steps and of sets of steps, by their places in `slopes`."""

    slopes: Slopes
    pictures: Sequence[Hashable]
    kinds: Sequence[str | None]
    seed: int = 0

    def rows(self, chosen: Sequence[int], among: Mask | None = None) -> Array:
        """Return what every row gains from a set, in nats [N]: zero outside of `among`.

        The lengths of a fold's steps come from the other folds in `among`.
        """
        found = np.zeros(len(self.slopes.tokens))
        inside = np.ones(len(found), bool) if among is None else among
        if not chosen:
            return found
        for fold in np.unique(self.slopes.folds[inside]):
            here = inside & (self.slopes.folds == fold)
            found[here] = self._change(chosen, inside & ~here, here)
        return found

    def _change(self, chosen: Sequence[int], learn: Mask, judge: Mask) -> Array:
        values = self.slopes.values[:, list(chosen)]
        moved = values[judge] @ lengths(values[learn])
        change: Array = -(moved + moved**2 / 2)
        return change

    def choose(self, states: Sequence[int], least: float, among: Mask | None = None) -> list[int]:
        """Return the states that pay, the best first: each adds more than `least`, surely.

        Surely: its 95 % interval over pictures (normal, for speed) lies above.
        """
        chosen: list[int] = []
        now = self.rows(chosen, among)
        while len(chosen) < min(MOST, len(states)):
            tried = [s for s in states if s not in chosen]
            each = [self.rows([*chosen, state], among) for state in tried]
            best = int(np.argmax([rows.sum() for rows in each]))
            if self._bound(each[best] - now, among) <= least:
                break
            chosen.append(tried[best])
            now = each[best]
        return chosen

    def nested(self, states: Sequence[int], least: float) -> Array:
        """Return what rows gain from a set chosen without them, in nats [N].

        Choosing the best of many flatters the chosen one; this is what choosing itself is worth.
        """
        found = np.zeros(len(self.slopes.tokens))
        for fold in np.unique(self.slopes.folds):
            here = self.slopes.folds == fold
            chosen = self.choose(states, least, ~here)
            if chosen:
                found[here] = self._change(chosen, ~here, here)
        return found

    def scores(self, columns: Sequence[Array]) -> list[Scored]:
        """Return the gain per answer token of each column of rows' gains, and by question type."""
        kinds = sorted({kind for kind in self.kinds if kind is not None})
        own = np.array([[kind is None or kind == mine for kind in (None, *kinds)]
                        for mine in self.kinds])  # fmt: skip
        tokens = self.slopes.tokens[:, None]
        values = np.repeat(np.stack(columns, 1) / tokens, 1 + len(kinds), axis=1)
        weights = np.tile(own * tokens, len(columns))
        found = iter(score_columns(values, self.pictures, weights, seed=self.seed))
        return [Scored(next(found), {kind: next(found) for kind in kinds}) for _ in columns]

    @property
    def loss(self) -> float:
        """The mean loss per answer token today."""
        return float(self.slopes.losses.sum() / self.slopes.tokens.sum())

    def mean(self, rows: Array) -> float:
        """Return the gain per answer token."""
        return float(rows.sum() / self.slopes.tokens.sum())

    def surely(self, rows: Array, least: float = 0.0) -> bool:
        """Return whether a gain lies above `least` with its whole interval."""
        return self._bound(rows, None) > least

    def _bound(self, rows: Array, among: Mask | None) -> float:
        places = list(range(len(rows))) if among is None else np.flatnonzero(among).tolist()
        tokens = self.slopes.tokens[places]
        names = [self.pictures[i] for i in places]
        sums = cluster_sums((rows[places] / tokens).tolist(), names, tokens.tolist())
        rest = sums.values - sums.mean * sums.weights
        count = len(rest)
        error = np.sqrt((rest**2).sum() * count / max(count - 1, 1)) / sums.weights.sum()
        return float(sums.mean - WIDTH * error)


def lengths(slopes: Array) -> Array:
    """Return how far to go along each of a set's steps together [K], from rows' slopes [N, K].

    Never backwards along a single one: a step that raises the loss elsewhere is not taken.
    """
    mean, curve = slopes.mean(0), slopes.T @ slopes / len(slopes)
    own = np.diag(curve)
    moving = own > 0
    found = np.zeros(len(mean))
    if moving.any():
        square = (curve + RIDGE * np.diag(own))[np.ix_(moving, moving)]
        found[moving] = -np.linalg.solve(square, mean[moving])
    return np.clip(found, 0 if len(found) == 1 else -FARTHEST, FARTHEST)
