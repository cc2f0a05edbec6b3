"""The order of rows: a seeded shuffle of every epoch, neighbours of like length if wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, Sampler

from dcsurgery.errors import DcSurgeryError

# Rows are sorted within so many global batches, so that every epoch still mixes them anew.
POOL = 50


class EpochOrder(Sampler[int]):
    """Row numbers of one epoch after the other; the same for the same seed and epoch.

    With `lengths`, rows of like length share a global batch of `batch` rows (text-only rows, given
    as negative lengths, keep to themselves), and the batches are shuffled.
    """

    def __init__(
        self, rows: int, seed: int, lengths: Sequence[int] | None = None, batch: int = 1
    ) -> None:
        self.rows, self.seed, self.lengths, self.batch = rows, seed, lengths, batch
        self.epoch = 0

    def __len__(self) -> int:
        return self.rows

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch the next iteration gives; accelerate calls it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.rows, generator=draw).tolist()
        if self.lengths is None:
            return iter(order)
        lengths, size = self.lengths, self.batch * POOL
        batches: list[list[int]] = []
        for start in range(0, self.rows, size):
            pool = sorted(order[start : start + size], key=lambda row: lengths[row])
            batches += [pool[i : i + self.batch] for i in range(0, len(pool), self.batch)]
        # A shorter last batch stays last, so that all others keep their rows together.
        short = [batches.pop()] if batches and len(batches[-1]) < self.batch else []
        shuffled = torch.randperm(len(batches), generator=draw).tolist()
        return iter([row for batch in [*(batches[i] for i in shuffled), *short] for row in batch])


class Numbered(Dataset[tuple[int, Any]]):
    """A data set that gives (row number, row), so that a batch can be named.

    In the place of a row that cannot be had stands the error.
    """

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        try:
            return index, self.rows[index]
        except DcSurgeryError as error:
            return index, error


class NumberedStream(IterableDataset[tuple[int, Any]]):
    """The same for a data set that is read as a stream, again and again.

    An end would leave an update with too few micro-batches, whose gradients the next one inherits.
    """

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        number = 0
        while number >= 0:
            number = -1  # stays so for an empty stream, or one that can be read once
            for number, row in enumerate(self.rows):
                yield number, row
