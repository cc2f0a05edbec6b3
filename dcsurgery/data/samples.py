"""Encoded rows for people: what a model reads, and which of it carries loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice

from dcsurgery.data.batches import ENOUGH, StreamedDataset, TrainingDataset
from dcsurgery.data.conversations import BadRow, Row, for_training
from dcsurgery.data.pictures import RowError
from dcsurgery.data.prompts import IGNORED, Encoded, Prompter

# A token that stands so often in a row is written once, with its number.
REPEATED = 4
SAMPLES = 3


@dataclass(frozen=True)
class Sample:
    """One encoded row for people: `pieces` are (text, whether it carries loss).

    `question` and `answer` are its last ones as they were read in `layout` from `keys`, with
    <image> for a picture; `rest` are keys that were not read.
    """

    id: str
    pieces: tuple[tuple[str, bool], ...]
    tokens: int
    supervised: int
    truncated: bool
    layout: str
    keys: tuple[str, ...]
    question: str
    answer: str
    images: int
    rest: tuple[str, ...] = ()


def dry_run_samples(dataset: TrainingDataset | StreamedDataset) -> list[Sample]:
    """Return usable rows as the model will read them: the first of each layout, at least three.

    Of a stream its first rows are looked at.
    """
    samples: list[Sample] = []
    for index, row in _candidates(dataset):
        shown = {sample.layout for sample in samples}
        if len(samples) >= SAMPLES and row.layout in shown:
            continue
        try:
            encoded = dataset.prompter.encode(row, dataset.max_length)
        except RowError as error:
            if isinstance(dataset, TrainingDataset):
                dataset.bad.add(index, BadRow.of(row.id, error))
            continue
        samples.append(_sample(row, encoded, dataset.prompter))
    dataset.bad.check()
    return samples


def _candidates(dataset: TrainingDataset | StreamedDataset) -> Iterator[tuple[int, Row]]:
    if isinstance(dataset, StreamedDataset):
        for index, row in enumerate(islice(dataset.rows, ENOUGH)):
            if isinstance(row, Row):
                yield index, row
        return
    places = dict.fromkeys([*dataset.first.values(), *dataset.usable[:ENOUGH]])
    for index in sorted(places):
        yield index, dataset.rows[index]


def _sample(row: Row, encoded: Encoded, prompter: Prompter) -> Sample:
    ids = encoded.values["input_ids"].tolist()
    marked = [label != IGNORED for label in encoded.values["labels"].tolist()]
    pieces = []
    for supervised, group in groupby(zip(marked, ids, strict=True), key=lambda pair: pair[0]):
        tokens = [token for _, token in group]
        pieces.append((_readable(tokens, prompter), supervised))
    question, answer = for_training(row).turns[-2:]
    return Sample(
        row.id,
        tuple(pieces),
        len(ids),
        sum(marked),
        encoded.truncated,
        row.layout,
        row.keys,
        question.written,
        answer.written,
        len(row.images),
        row.rest,
    )


def _readable(tokens: list[int], prompter: Prompter) -> str:
    """Return decoded tokens with long runs of one token written as token(xN)."""
    text, plain = "", []
    for token, group in groupby(tokens):
        count = len(list(group))
        if count < REPEATED:
            plain += [token] * count
            continue
        text += f"{prompter.tokenizer.decode(plain)}{prompter.tokenizer.decode([token])}(x{count})"
        plain = []
    return text + str(prompter.tokenizer.decode(plain))
