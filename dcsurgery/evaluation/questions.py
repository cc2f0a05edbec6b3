"""The rows that an evaluation asks about, checked for what the metric needs. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dcsurgery.data.conversations import BadRow, Row, Turn, for_training
from dcsurgery.data.options import Choices, listed
from dcsurgery.data.picks import alone
from dcsurgery.data.pictures import RowError
from dcsurgery.data.rows import Rows
from dcsurgery.data.tally import BadRows
from dcsurgery.errors import RequestError
from dcsurgery.evaluation.answers import Answer
from dcsurgery.evaluation.metrics import YES_NO, is_yes_no, judge

Batch = list[tuple[int, Row]]


@dataclass(frozen=True)
class Questions:
    """Rows with their places in the data, those that could not be used, and how all are read.

    `yes_no`: every reference of the data is yes or no. `reading` tells that, and how answers name
    options, in words.
    """

    rows: Batch
    bad: BadRows
    yes_no: bool
    reading: dict[str, str]
    metric: str

    def judge(self, model: int, at: int, row: Row, text: str) -> Answer:
        """Return what a model said about the row at a place, with its score."""
        found = judge(self.metric, text, row, yes_no=self.yes_no)
        return Answer(model, at, row.id, found.score, text, 1, found.read, found.clear)


def usable_rows(
    rows: Rows, metric: str, bad: BadRows, *, limit: int | None = None, pictures: bool = True
) -> Questions:
    """Return the first `limit` rows that have what the metric needs; the others are noted as bad.

    Raises RequestError when too many are bad or none is left.
    """
    found: Batch = []
    yes_no = metric == "exact"
    for index, row in enumerate(rows):
        if limit is not None and len(found) == limit:
            # The data decides how answers are read, not the part of it that is asked.
            yes_no = yes_no and (isinstance(row, BadRow) or is_yes_no(row))
            if yes_no:
                continue
            break
        if isinstance(row, BadRow):
            bad.add(index, row)
            continue
        try:
            found.append((index, _checked(row, metric, pictures)))
        except RowError as error:
            bad.add(index, BadRow.of(row.id, error))
            continue
        yes_no = yes_no and is_yes_no(row)
    bad.check()
    if not found:
        raise RequestError(f"{rows.name} has no row to evaluate on", hint="see --max-bad")
    reading = {"yes_no": YES_NO} if yes_no else {}
    if any(row.right for _, row in found) and rows.choices.described:
        reading["options"] = rows.choices.described
    return Questions(found, bad, yes_no, reading, metric)


def _checked(row: Row, metric: str, pictures: bool) -> Row:
    for image in row.images if pictures else ():
        image.check()
    if metric == "loss":
        for_training(row)
        return row
    turns = question_turns(row)
    if not any(answer.strip() for answer in row.answers):
        raise RowError("it has no reference answer")
    if metric != "choice" or row.right:
        return row
    options = tuple(listed(turns[-1].text))
    if options:
        row = replace(row, options=options)
        return Choices([row]).apply(row)
    letters = alone(row.answers[0])
    if not letters:
        raise RowError(f"it has no options, and its answer {row.answers[0][:40]!r} is not a letter")
    return replace(row, right=letters)


def question_turns(row: Row) -> list[Turn]:
    """Return what a model is asked: all before the last answer.

    Raises RowError when there is no question.
    """
    turns = list(row.turns)
    while turns and turns[-1].role == "assistant":
        del turns[-1]
    if not turns or turns[-1].role != "user":
        raise RowError("it has no question")
    return turns
