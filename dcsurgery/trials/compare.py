"""From answers to gains: arms against each other, over all rows and by question type.

Every row's scores are averaged over an arm's seeds first: rows are the draws, pictures the units of
interval and test. Between seeds there is no interval; each seed's own gain is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcsurgery.data.conversations import Row
from dcsurgery.evaluation.answers import Answer
from dcsurgery.evaluation.eval_report import Score
from dcsurgery.evaluation.intervals import cluster_sums, compare_rows, score_rows
from dcsurgery.evaluation.summary import cluster
from dcsurgery.evaluation.trial_report import Gain, Versus

LEVEL = 0.05
Array = NDArray[np.float64]
# By place of the row.
Answers = Mapping[int, Answer]


@dataclass(frozen=True)
class Results:
    """The answers of every arm, seed by seed and metric by metric, and the rows they are to."""

    rows: Mapping[int, Row]
    answers: Mapping[str, Mapping[str, Sequence[Answers]]]
    metric: str
    seed: int = 0

    @cached_property
    def places(self) -> list[int]:
        """The rows that every arm answered with every seed."""
        everyone = [
            set(found) for arm in self.answers.values() for of in arm.values() for found in of
        ]
        return sorted(set.intersection(*everyone))

    @cached_property
    def kinds(self) -> list[str]:
        """The question types."""
        return sorted({kind for at in self.places if (kind := self.rows[at].kind) is not None})

    @cached_property
    def clusters(self) -> list[str]:
        """What rows with the same picture share."""
        return [cluster(at, self.rows[at]) for at in self.places]

    def values(self, arm: str, metric: str) -> Array:
        """Return the scores [seeds, rows] of an arm."""
        found = self.answers[arm][metric]
        return np.array([[of[at].score for at in self.places] for of in found])

    def tokens(self, metric: str) -> Array:
        """Return the weights of rows [rows]: answer tokens for a loss, else ones."""
        first = next(iter(self.answers.values()))[metric][0]
        return np.array([first[at].tokens for at in self.places], np.float64)

    def inside(self, kind: str | None) -> list[int]:
        """Return which of the places are of a question type; None for all."""
        return [i for i, at in enumerate(self.places) if kind in (None, self.rows[at].kind)]

    def score(self, arm: str, metric: str, kind: str | None = None) -> Score:
        """Return the score of an arm, averaged over its seeds."""
        chosen = self.inside(kind)
        values = self.values(arm, metric).mean(0)[chosen].tolist()
        names = [self.clusters[i] for i in chosen]
        return score_rows(values, names, self.tokens(metric)[chosen].tolist(), seed=self.seed)

    def gain(self, arm: str, against: str, metric: str, kind: str | None = None) -> Gain:
        """Return how much better an arm is: of a loss, what is taken off."""
        better, other = (arm, against) if metric != "loss" else (against, arm)
        chosen = self.inside(kind)
        names = [self.clusters[i] for i in chosen]
        weights = self.tokens(metric)[chosen].tolist()
        ours, theirs = (self.values(name, metric)[:, chosen] for name in (better, other))
        found = compare_rows(
            ours.mean(0).tolist(), theirs.mean(0).tolist(), names, weights, seed=self.seed
        )
        # The base has no seeds: every seed is compared with the same.
        count = max(len(ours), len(theirs))
        pairs = np.broadcast_to(ours, (count, len(chosen))) - np.broadcast_to(
            theirs, (count, len(chosen))
        )
        own = [cluster_sums(row.tolist(), names, weights).mean for row in pairs]
        return Gain(
            mean=found.difference,
            low=found.low,
            high=found.high,
            p_value=found.p_value,
            rows=len(chosen),
            seeds=own,
        )

    def versus(self, arm: str, against: str) -> Versus:
        """Return the comparison of two arms."""
        metric, kinds = self.metric, self.kinds
        gain = self.gain(arm, against, metric)
        by_type = {kind: self.gain(arm, against, metric, kind) for kind in kinds}
        lost, doubtful = fallen(by_type)
        return Versus(
            arm=arm,
            against=against,
            gain=gain,
            by_type=by_type,
            loss=self.gain(arm, against, "loss"),
            loss_by_type={kind: self.gain(arm, against, "loss", kind) for kind in kinds},
            lost=lost,
            doubtful=doubtful,
            beats=gain.low > 0 and min(gain.seeds) > 0 and not lost,
        )

    def scores(self, arm: str) -> dict[str, Any]:
        """Return the fields of an arm's scores."""
        metric = self.metric
        return {
            "score": self.score(arm, metric),
            "by_type": {kind: self.score(arm, metric, kind) for kind in self.kinds},
            "loss": self.score(arm, "loss"),
            "loss_by_type": {kind: self.score(arm, "loss", kind) for kind in self.kinds},
        }


def fallen(by_type: Mapping[str, Gain]) -> tuple[list[str], list[str]]:
    """Return the question types that surely lost, and those of which it is doubtful.

    Holm's step-down: the smallest p is multiplied by the number of types, the next by one less, and
    the first that fails ends it. Types that rose are among those that are counted.
    """
    lost: list[str] = []
    ordered = sorted(by_type, key=lambda kind: by_type[kind].p_value)
    for at, kind in enumerate(ordered):
        if by_type[kind].p_value * (len(ordered) - at) >= LEVEL:
            break
        lost += [kind] if by_type[kind].high < 0 else []
    doubtful = [kind for kind, gain in by_type.items() if gain.high < 0 and kind not in lost]
    return sorted(lost), sorted(doubtful)
