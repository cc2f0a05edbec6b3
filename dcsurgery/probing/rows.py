"""Rows for a probe, drawn from what finetune would train on: pictures, answers, folds."""

from __future__ import annotations

from functools import partial
from random import Random

from torch import Tensor

from dcsurgery.data.batches import TrainingDataset
from dcsurgery.data.conversations import BadRow
from dcsurgery.data.pictures import RowError
from dcsurgery.data.prompts import IGNORED
from dcsurgery.errors import RequestError
from dcsurgery.evaluation.summary import cluster
from dcsurgery.probing.slopes import ProbeRow
from dcsurgery.training.feeding import ROWS, Feed


def draw_rows(feed: Feed, count: int, folds: int, seed: int) -> list[ProbeRow]:
    """Return up to `count` rows with pictures, drawn by the seed, fold by fold.

    Rows with the same picture share a fold. Rows that fail when they are encoded are counted as
    finetune counts them. Raises RequestError when too many are bad, or too few pictures are left.
    """
    dataset: TrainingDataset = feed.dataset
    draw = Random(seed)
    lengths = zip(dataset.usable, dataset.lengths, strict=True)
    places = [index for index, length in lengths if length > 0]  # negative ones are text alone
    draw.shuffle(places)
    kept: list[int] = []
    bad: list[BadRow] = []
    for index in places:
        if len(kept) == count:
            break
        try:
            labels = dataset.encode(index).values["labels"]
            if not bool((labels[1:] != IGNORED).any()):
                raise RowError("no token of its answer is left")
            kept.append(index)
        except RowError as error:
            bad.append(BadRow.of(dataset.rows.name_of(index), error))
            dataset.bad.add(index, bad[-1])
    dataset.bad.check()
    dataset.bad.check_sample(bad, len(bad) + len(kept))
    pictures = {index: cluster(index, dataset.rows[index]) for index in kept}
    names = list(dict.fromkeys(pictures.values()))
    if len(names) < 2 * folds:
        raise RequestError(
            f"the rows of {dataset.rows.name} show {len(names)} different pictures, too few for "
            f"{folds} folds",
            hint=f"give at least {2 * folds} pictures, better hundreds",
        )
    fold = {name: place % folds for place, name in enumerate(names)}
    rows = [
        ProbeRow(
            dataset.rows.name_of(index),
            fold[pictures[index]],
            pictures[index],
            dataset.rows[index].kind,
            partial(_batch, feed, index),
        )
        for index in kept
    ]
    return sorted(rows, key=lambda row: row.fold)


def _batch(feed: Feed, index: int) -> dict[str, Tensor]:
    """Return finetune's batch of one row."""
    batch = feed.collate([(index, feed.dataset.encode(index).values)])
    del batch[ROWS]
    return batch
