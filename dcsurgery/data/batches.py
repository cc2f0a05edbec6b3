"""Encoded rows as a data set, and as batches that any family's forward pass takes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from dcsurgery.data.census import Census
from dcsurgery.data.conversations import BadRow, Row, for_training
from dcsurgery.data.pictures import RowError
from dcsurgery.data.prompts import IGNORED, TOKEN_FIELDS, Encoded, Prompter
from dcsurgery.data.rows import Rows
from dcsurgery.data.tally import BadRows, Losses, Tally
from dcsurgery.errors import RequestError

Values = dict[str, Tensor]
# What was found of the row at an index when it was encoded.
News = tuple[int, BadRow | Tally]
# Rows of a stream that are read before the share of bad ones means anything.
ENOUGH = 100
# Rows that are encoded before a training begins.
SAMPLE = 64
# The key of a row that says whether it was cut, and whether inside an answer: [2].
CUTS = "dcsurgery_cuts"
LETTERS_PER_TOKEN = 4


class TrainingDataset(Dataset[Values]):
    """Rows encoded when asked for: token fields [T, ...], labels [T], the pictures' inputs.

    All rows are looked at first, pictures without decoding them; bad ones are skipped. A row that
    only fails when it is encoded is counted then, and the next usable one takes its place, so that
    batches keep their size and a seed its order. `bad` holds both kinds, `tally` the rows that lost
    something. `census` counts the usable rows, `first` has the first one of each layout. Raises
    RequestError when more than `max_bad` percent of the rows are bad, or none has a picture.

    `news`, when it is a list, gets what is found of rows instead, for take() where they are used:
    another process may encode them, and before their turn.
    """

    def __init__(
        self,
        rows: Rows,
        prompter: Prompter,
        *,
        max_length: int | None = None,
        max_bad: float | str = 1.0,
    ) -> None:
        self.rows = rows
        self.prompter = prompter
        self.max_length = max_length
        self.bad = BadRows(len(rows), max_bad)
        self.tally = Tally()
        self.measured: Measured | None = None
        self.news: list[News] | None = None
        self._late: dict[int, BadRow] = {}
        self._bad_file: Path | None = None
        self.census = Census()
        self.first: dict[str, int] = {}
        self.usable: list[int] = []
        self.lengths: list[int] = []
        for index, row in enumerate(rows):
            length = self._look(index, row)
            if length is not None:
                self.usable.append(index)
                self.lengths.append(length)
        self.bad.check()
        if not self.usable:
            raise RequestError(f"{rows.name} has no row to train on", hint="see --max-bad")
        self.census.need_pictures(rows.name)

    def __len__(self) -> int:
        return len(self.usable)

    def __getitem__(self, place: int) -> Values:
        for step in range(len(self.usable)):
            index = self.usable[(place + step) % len(self.usable)]
            if index in self.bad:
                continue
            tell = self.take if self.news is None else self.news.extend
            try:
                encoded = self.prompter.encode(self.rows[index], self.max_length)
            except RowError as error:
                tell([(index, BadRow.of(self.rows.name_of(index), error))])
                continue
            lost = Tally()
            _count(lost, index, encoded)
            tell([(index, lost)] if lost.counts() != Losses() else [])
            return _flagged(encoded)
        raise RequestError(f"{self.rows.name} has no row to train on", hint="see the bad rows")

    def take(self, news: Iterable[News]) -> None:
        """Count what was found of rows. Raises RequestError when too many are bad."""
        for index, found in news:
            if isinstance(found, BadRow):
                self._note(index, found)
            else:
                self.tally.add(found)
        self.bad.check()

    def name_of(self, place: int) -> str:
        """Return the id of the row that a place gives, as far as is known by now."""
        order = self.usable[place:] + self.usable[:place]
        return self.rows.name_of(next((row for row in order if row not in self.bad), order[0]))

    def collect_bad(self, file: Path, *, old: bool = True) -> None:
        """Write rows that only fail when they are encoded: a JSON object per line.

        `old`: those found so far too.
        """
        self._bad_file = file
        for index, bad in self._late.items() if old else ():
            self._write(index, bad)

    def encode(self, index: int) -> Encoded:
        """Return the row at an index of the source, encoded. Raises RowError."""
        encoded = self.prompter.encode(self.rows[index], self.max_length)
        _count(self.tally, index, encoded)
        return encoded

    def measure(self, count: int = SAMPLE) -> None:
        """Encode rows drawn from all the data, as training will, and keep what became of them.

        Raises RequestError when more are bad than `max_bad` lets expect.
        """
        sample = Random(0).sample(self.usable, min(count, len(self.usable)))
        tally, found = Tally(), []
        for index in sorted(sample):
            try:
                _count(tally, index, self.prompter.encode(self.rows[index], self.max_length))
            except RowError as error:
                found.append(BadRow.of(self.rows.name_of(index), error))
                self._note(index, found[-1])
        self.bad.check()
        self.bad.check_sample(found, len(sample))
        self.measured = Measured(len(sample), len(found), tally.counts())

    def _look(self, index: int, row: Row | BadRow) -> int | None:
        """Return a row's estimated length; None, noted, for a bad one."""
        if isinstance(row, BadRow):
            self.bad.add(index, row)
            return None
        try:
            for_training(row)
            for image in row.images:
                image.check()
        except RowError as error:
            self.bad.add(index, BadRow.of(row.id, error))
            return None
        self.census.add(row)
        self.first.setdefault(row.layout, index)
        return estimated_length(row)

    def _note(self, index: int, bad: BadRow) -> None:
        self.bad.add(index, bad)
        self._late[index] = bad
        self._write(index, bad)

    def _write(self, index: int, bad: BadRow) -> None:
        if self._bad_file is not None:
            line = json.dumps({"row": index, "id": bad.id, "reason": bad.reason})
            with self._bad_file.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")


class StreamedDataset(IterableDataset[Values]):
    """Rows of a stream, encoded as they come; bad ones are counted and skipped.

    `census` counts the usable ones. Raises RequestError, while iterating, when more than `max_bad`
    percent of the rows so far are bad, or none of them has a picture.
    """

    def __init__(
        self,
        rows: Rows,
        prompter: Prompter,
        *,
        max_length: int | None = None,
        max_bad: float | str = 1.0,
    ) -> None:
        self.rows = rows
        self.prompter = prompter
        self.max_length = max_length
        self.bad = BadRows(0, max_bad)
        self.census = Census()
        self.tally = Tally()

    def __iter__(self) -> Iterator[Values]:
        worker: Any = get_worker_info()
        own, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for index, row in enumerate(self.rows):
            new = index >= self.bad.total
            self.bad.total = max(self.bad.total, index + 1)
            if index % workers == own:
                encoded = self._encode(index, row)
                if encoded is not None:
                    if new and isinstance(row, Row):
                        self.census.add(row)
                    yield _flagged(encoded)
            if self.bad.total >= ENOUGH:
                self.bad.check()
                self.census.need_pictures(self.rows.name)
        self.bad.check()
        self.census.need_pictures(self.rows.name)

    def _encode(self, index: int, row: Row | BadRow) -> Encoded | None:
        if isinstance(row, BadRow):
            self.bad.add(index, row)
            return None
        try:
            encoded = self.prompter.encode(row, self.max_length)
        except RowError as error:
            self.bad.add(index, BadRow.of(row.id, error))
            return None
        _count(self.tally, index, encoded)
        return encoded


@dataclass(frozen=True)
class Measured:
    """What became of a sample: rows encoded, those that could not be used, what others lost."""

    rows: int
    bad: int
    losses: Losses


def _flagged(encoded: Encoded) -> Values:
    cuts = torch.tensor([encoded.truncated, not encoded.ended])
    return {**encoded.values, CUTS: cuts}


def _count(tally: Tally, index: int, encoded: Encoded) -> None:
    if encoded.truncated:
        tally.cut.add(index)
    if not encoded.ended:
        tally.cut_answers.add(index)
    tally.drop(index, encoded.dropped)


def estimated_length(row: Row) -> int:
    """Return about how many text tokens a row has, four letters each; negative without a picture.

    For grouping by length, where rows of text alone keep to themselves.
    """
    length = sum(len(turn.text) for turn in row.turns) // LETTERS_PER_TOKEN + 1
    return length if row.images else -length


class Collator:
    """Joins encoded rows into one batch.

    Token fields are padded to [B, T, ...] on the `side`; pictures are joined along their first
    axis, other axes padded with zeros. Rows without pictures may stand beside rows with some.
    """

    def __init__(self, processor: Any, *, side: Literal["left", "right"] = "right") -> None:
        self.processor = processor
        self.side = side
        tokenizer = processor.tokenizer
        found = tokenizer.pad_token_id
        self.padding = {"input_ids": tokenizer.eos_token_id or 0 if found is None else found}
        self.padding["labels"] = IGNORED

    def __call__(self, rows: Sequence[Mapping[str, Tensor]]) -> Values:
        lengths = [len(row["input_ids"]) for row in rows]
        names = list(dict.fromkeys(name for row in rows for name in row if name != CUTS))
        batch = {}
        for name in names:
            found = [row.get(name) for row in rows]
            if name in TOKEN_FIELDS:
                batch[name] = self._tokens(name, found, lengths)
            else:
                batch[name] = self._pictures(name, found)
        return batch

    def _tokens(self, name: str, found: list[Tensor | None], lengths: list[int]) -> Tensor:
        first = next(value for value in found if value is not None)
        rest = _largest([value.shape[1:] for value in found if value is not None])
        shape = (len(found), max(lengths), *rest)
        batch = first.new_full(shape, self.padding.get(name, 0))
        for row, value, length in zip(batch, found, lengths, strict=True):
            if value is not None:
                start = len(row) - length if self.side == "left" else 0
                _put(row, value, start)
        return batch

    def _pictures(self, name: str, found: list[Tensor | None]) -> Tensor:
        given = [value for value in found if value is not None]
        if self._by_row and len(given) < len(found):
            empty = torch.zeros_like(given[0][:, :1])
            given = [empty if value is None else value for value in found]
        rest = _largest([value.shape[1:] for value in given])
        batch = given[0].new_zeros((sum(map(len, given)), *rest))
        start = 0
        for value in given:
            _put(batch, value, start)
            start += len(value)
        if name == "aspect_ratio_mask":
            batch[..., 0] = 1  # Mllama: a picture of padding shows its first tile
        return batch

    @cached_property
    def _by_row(self) -> bool:
        """Whether the first axis of pictures counts conversations: two pictures of one show it."""
        from PIL import Image

        grey = Image.new("RGB", (64, 64), (128, 128, 128))
        found = self.processor.image_processor(images=[[grey, grey]], return_tensors="pt")
        return next(len(value) for name, value in found.items() if "pixel_values" in name) == 1


def _largest(shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return tuple(max(sizes) for sizes in zip(*shapes, strict=True))


def _put(batch: Tensor, value: Tensor, start: int) -> None:
    """Copy a value into the corner of batch[start:], as large as it is."""
    corner = tuple(slice(0, size) for size in value.shape[1:])
    batch[(slice(start, start + len(value)), *corner)] = value
