"""From a data set to numbered micro-batches: how many, in which order, under which names."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset

from dcsurgery.data.batches import CUTS
from dcsurgery.data.tally import load_tally, save_tally
from dcsurgery.errors import DcSurgeryError, RequestError, TrainingError
from dcsurgery.training.loss import IGNORED
from dcsurgery.training.order import EpochOrder, Numbered, NumberedStream
from dcsurgery.training.settings import TrainingSettings

Collate = Callable[[list[Any]], Mapping[str, Any]]
# The key of a batch [B, 3]: of each row its number, whether it was cut, and inside an answer.
ROWS = "dcsurgery_rows"
# What comes along with a batch from where it was made: news of its rows, an error in its place.
NEWS, FAILED = "dcsurgery_news", "dcsurgery_failed"
# Rows looked at in search of one with an image.
TRIES = 1000


@dataclass(frozen=True)
class Feed:
    """A data set of encoded rows and what makes a batch of some of them."""

    dataset: Any
    collator: Collate

    @property
    def streamed(self) -> bool:
        """True for a data set without a length."""
        return isinstance(self.dataset, IterableDataset)

    @property
    def numbered(self) -> Numbered | NumberedStream:
        """The data set as (row number, row)."""
        return NumberedStream(self.dataset) if self.streamed else Numbered(self.dataset)

    def collate(self, rows: list[tuple[int, Any]]) -> dict[str, Any]:
        """Return a batch that knows its row numbers, and which rows were cut."""
        batch = self.collator([row for _, row in rows])
        cuts = [row.get(CUTS, ()) if isinstance(row, Mapping) else () for _, row in rows]
        marks = torch.zeros(len(rows), 3, dtype=torch.long)
        for mark, (number, _), cut in zip(marks, rows, cuts, strict=True):
            mark[0] = number
            mark[1:] = cut if len(cut) else 0
        return {**batch, ROWS: marks}

    def pictured(self, rows: list[tuple[int, Any]]) -> dict[str, Any]:
        """Return a batch in which a picture is read: to rows of text alone comes one to not learn.

        Where parameters are split over processes, all of these must use the same ones in the same
        order: ZeRO-2 would add up gradients of different ones, ZeRO-3 wait for ever.
        """
        if any(_has_picture(row) for _, row in rows):
            return self.collate(rows)
        labels = torch.full_like(self.example["labels"], IGNORED)
        batch = self.collate([*rows, (-1, {**self.example, "labels": labels})])
        batch[ROWS] = batch[ROWS][:-1]
        return batch

    def send(self, rows: list[tuple[int, Any]], *, pictured: bool = False) -> dict[str, Any]:
        """Return a batch for receive(), which may be in another process and later."""
        try:
            for _, row in rows:
                if isinstance(row, DcSurgeryError):
                    raise row
            batch = self.pictured(rows) if pictured else self.collate(rows)
        except DcSurgeryError as error:
            batch = {FAILED: error}
        news = getattr(self.dataset, "news", None)
        if news:
            batch[NEWS] = tuple(news)
            news.clear()
        return batch

    def put_off(self, wanted: bool) -> None:
        """Let what is found of rows come with their batches, or be counted at once."""
        if hasattr(self.dataset, "news"):
            self.dataset.news = [] if wanted else None

    def receive(self, batch: dict[str, Any]) -> None:
        """Count what send() found. Raises RequestError at too many bad rows, or what send() met."""
        news = batch.pop(NEWS, None)
        if news:
            self.dataset.take(news)
        if FAILED in batch:
            raise batch[FAILED]

    def save_tally(self, folder: Path) -> None:
        """Write what this process has counted into a checkpoint."""
        if hasattr(self.dataset, "tally"):
            save_tally(folder / f"rows-{rank()}.json", self.dataset.bad, self.dataset.tally)

    def load_tally(self, folder: Path) -> None:
        """Count what any process had counted when a checkpoint was written."""
        for file in folder.glob("rows-*.json") if hasattr(self.dataset, "tally") else ():
            load_tally(file, self.dataset.bad, self.dataset.tally)

    def share_tally(self) -> None:
        """Let every process count what any of them has counted."""
        if processes() == 1 or not torch.distributed.is_initialized():
            return
        found: list[Any] = [None] * processes()
        bad = self.dataset.bad
        torch.distributed.all_gather_object(found, (bad.total, bad.items(), self.dataset.tally))
        for total, rows, tally in found:
            bad.total = max(total, bad.total)
            self.dataset.tally.add(tally)
            for index, row in rows:
                bad.add(index, row)

    def name_of(self, number: int) -> str:
        """Return what people call a row: its id, else its number."""
        named = getattr(self.dataset, "name_of", None)
        if named is not None:
            return str(named(number))
        row = {} if self.streamed else self.dataset[number]
        return str(row.get("id", number)) if isinstance(row, Mapping) else str(number)

    @cached_property
    def example(self) -> Mapping[str, Any]:
        """The first row that has an image. Raises TrainingError."""
        rows = iter(self.dataset) if self.streamed else map(self.dataset.__getitem__, self._first())
        for row in islice(rows, TRIES):
            if _has_picture(row):
                return dict(row)
        raise TrainingError(
            "no row with an image was found", hint="check --images, or the first rows of the data"
        )

    def _first(self) -> range:
        return range(min(TRIES, len(self.dataset)))

    def order(self, settings: TrainingSettings) -> EpochOrder | None:
        """Return the order of rows in every epoch; None for a stream, which has its own.

        Raises RequestError when rows cannot be grouped by length.
        """
        if self.streamed:
            return None
        lengths: Sequence[int] | None = None
        if settings.group_by_length:
            lengths = getattr(self.dataset, "lengths", None)
            if lengths is None:
                lengths = [len(self.dataset[i]["input_ids"]) for i in range(len(self.dataset))]
        return EpochOrder(len(self.dataset), settings.seed, lengths, settings.batch_size or 1)

    def first(self, settings: TrainingSettings, count: int) -> list[tuple[int, Any]]:
        """Return the first rows in the order of training, numbered."""
        order = self.order(settings)
        if order is None:
            return list(islice(enumerate(self.dataset), count))
        return [(number, self.dataset[number]) for number in islice(order, count)]

    def steps(self, settings: TrainingSettings) -> int:
        """Return how many updates a training makes. Raises RequestError or TrainingError."""
        if settings.max_steps is not None:
            return settings.max_steps
        if self.streamed:
            raise RequestError(
                "streamed data has no length", hint="say how long to train: --max-steps N"
            )
        if len(self.dataset) == 0:
            raise TrainingError("there are no rows to train on", hint="check the data file")
        size, count = micro_batches(settings)
        batches = math.ceil(len(self.dataset) / (size * processes()))
        return math.ceil(settings.epochs * math.ceil(batches / count))


def _has_picture(row: Mapping[str, Any]) -> bool:
    return any(key.startswith(("pixel", "image")) for key in row)


def processes() -> int:
    """Return how many processes train together, as torchrun and accelerate launch say."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return which of them this is; the first one writes."""
    return int(os.environ.get("RANK", "0"))


def micro_batches(settings: TrainingSettings) -> tuple[int, int]:
    """Return rows per micro-batch and micro-batches per update of one process.

    The micro-batch is the largest divisor of its share that is not above `micro_batch`. Raises
    RequestError when the processes cannot share the global batch evenly.
    """
    total, workers = settings.batch_size or 1, processes()
    if total % workers:
        raise RequestError(
            f"a global batch of {total} rows cannot be shared by {workers} processes",
            hint=f"use a --batch-size that is a multiple of {workers}",
        )
    share = total // workers
    size = next(n for n in range(min(settings.micro_batch, share), 0, -1) if share % n == 0)
    return size, share // size
