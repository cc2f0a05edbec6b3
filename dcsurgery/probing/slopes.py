"""Two passes over the rows: sums first, then the slope of every held-out row along every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcsurgery.anatomy import Anatomy
from dcsurgery.connectors.module import Arrange
from dcsurgery.errors import TrainingError
from dcsurgery.features import FeatureBlock
from dcsurgery.printing.sheet import Progress
from dcsurgery.probing.listen import Blocks, Listener, Reader, RowReading, listening
from dcsurgery.probing.moments import SiteModel, SiteStep, SiteSums, bytes_for

Array = NDArray[np.float64]
# What the sums of the states that are probed together may take.
BUDGET = 4 << 30


@dataclass(frozen=True)
class Candidate:
    """A block of hidden states that a connector could add; `shuffled`: another picture's."""

    block: FeatureBlock
    shuffled: bool = False


@dataclass(frozen=True)
class ProbeRow:
    """A row's name, fold, picture and question type, and what makes finetune's batch of it."""

    name: str
    fold: int
    picture: Hashable
    kind: str | None
    batch: Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Slopes:
    """What the passes found: `values` [N, K], the derivative of each row's summed loss along the
    step that the other folds ask for, in nats; `losses` and `tokens` [N] of the rows as they are.
    """

    values: Array
    losses: Array
    tokens: Array
    folds: NDArray[np.int64]


@dataclass(frozen=True)
class Subject:
    """The model that is probed. `installed` are the blocks of a connector it has already."""

    model: Any
    anatomy: Anatomy
    arrange: Arrange | None = None
    installed: Blocks = ()
    precision: str = "fp32"


def measure_slopes(
    subject: Subject,
    rows: Sequence[ProbeRow],
    candidates: Sequence[Candidate],
    *,
    budget: int = BUDGET,
    progress: Progress | None = None,
) -> Slopes:
    """Return the slopes of all candidates on all rows, which come fold by fold.

    Candidates whose sums do not fit into `budget` bytes together are taken in turns, two passes
    over the rows each. Raises TrainingError for a loss that is no number.
    """
    folds = np.array([row.fold for row in rows])
    parts = split(subject.anatomy, candidates, int(folds.max()) + 1, budget)
    found = np.zeros((len(rows), len(candidates)))
    losses, tokens = np.zeros(len(rows)), np.zeros(len(rows))
    done, total, column = 0, 2 * len(parts) * len(rows), 0
    for part in parts:
        for index, reading, values in _passes(subject, rows, part):
            losses[index], tokens[index] = reading.loss, reading.tokens
            if values is not None:
                found[index, column : column + len(part)] = values
            done += 1
            if progress is not None:
                progress(done, total, "rows")
        column += len(part)
    return Slopes(found, losses, tokens, folds)


def split(
    anatomy: Anatomy, candidates: Sequence[Candidate], folds: int, budget: int
) -> list[Sequence[Candidate]]:
    """Return the candidates in turns whose sums fit into `budget` bytes, one at least."""
    width = anatomy.feature_width
    sizes = [(width, s.in_features, s.out_features, folds) for s in anatomy.projector.sites]
    count = max(1, budget // sum(bytes_for(*size) for size in sizes))
    return [candidates[at : at + count] for at in range(0, len(candidates), count)]


Found = tuple[int, RowReading, Array | None]


def _passes(
    subject: Subject, rows: Sequence[ProbeRow], candidates: Sequence[Candidate]
) -> Iterator[Found]:
    """Yield every row twice: while sums grow, then with its slopes."""
    blocks = tuple(dict.fromkeys(candidate.block for candidate in candidates))
    listener = Listener(subject.anatomy, blocks, subject.arrange, subject.installed)
    folds = 1 + max(row.fold for row in rows)
    sums = [SiteSums(folds) for _ in subject.anatomy.projector.sites]
    places = [(blocks.index(item.block), item.shuffled) for item in candidates]
    with listening(subject.model, listener, subject.precision) as reader:
        for index, reading, states in _read(reader, rows, places):
            for site, heard, each in zip(sums, reading.sites, states, strict=True):
                site.add(rows[index].fold, heard.read, each, heard.error)
            yield index, reading, None
        models = [SiteModel(site) for site in sums]
        fold, steps = -1, list[SiteStep]()
        for index, reading, states in _read(reader, rows, places):
            if rows[index].fold != fold:
                steps = []  # freed before the next ones are made
                fold = rows[index].fold
                steps = [model.step(fold) for model in models]
            found = zip(steps, reading.sites, states, strict=True)
            values = sum(step.slopes(heard, each).double().cpu() for step, heard, each in found)
            assert isinstance(values, Tensor)
            yield index, reading, values.numpy()


def _read(
    reader: Reader, rows: Sequence[ProbeRow], places: Sequence[tuple[int, bool]]
) -> Iterator[tuple[int, RowReading, list[Tensor]]]:
    """Yield every row's reading, and the candidates' states [K, T, C] of each site.

    A shuffled candidate has those of the row before with another picture, the last for the first.
    """
    last = next(row for row in reversed(rows) if row.picture != rows[0].picture)
    own, other = _states(reader.read(last.batch())), []
    for index, row in enumerate(rows):
        if row.picture != last.picture:
            other = own
        reading, last = reader.read(row.batch()), row
        finite = all(bool(torch.isfinite(site.error).all()) for site in reading.sites)
        if not (finite and math.isfinite(reading.loss)):
            raise TrainingError(
                f"the loss of {row.name}, {reading.loss:g}, or its gradient is no number",
                hint="look at this row; else use --precision bf16 or fp32 instead of fp16",
            )
        own = _states(reading)
        yield index, reading, [_gather(*pair, places) for pair in zip(own, other, strict=True)]


def _gather(ours: Tensor, theirs: Tensor, places: Sequence[tuple[int, bool]]) -> Tensor:
    """Return the candidates' states [K, T, C] of the blocks' [T, blocks, C], ours or another's."""
    borrowed = theirs[torch.arange(len(ours), device=theirs.device) % len(theirs)]
    return torch.stack([(borrowed if shuffled else ours)[:, at] for at, shuffled in places])


def _states(reading: RowReading) -> list[Tensor]:
    return [site.states for site in reading.sites]
