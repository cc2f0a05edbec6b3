"""A row of training or evaluation data: turns of a conversation, its pictures, its references.

How rows are written is layouts.py, where they come from rows.py. Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from dcsurgery.data.pictures import ImageSource, RowError
from dcsurgery.errors import RequestError

Role = Literal["system", "user", "assistant"]
PLACEHOLDER = "<image>"
# In the order in which they speak.
ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
NAMED_IN_ERROR = 3


@dataclass(frozen=True)
class Turn:
    """What one side says. `parts` are texts in order; None stands for the row's next picture."""

    role: Role
    parts: tuple[str | None, ...]

    @property
    def text(self) -> str:
        """The words alone."""
        return "".join(part for part in self.parts if part is not None)

    @property
    def written(self) -> str:
        """The words, with <image> for each picture."""
        return "".join(PLACEHOLDER if part is None else part for part in self.parts)

    @property
    def pictures(self) -> int:
        """How many pictures it shows."""
        return self.parts.count(None)


def ask(question: str, pictures: int = 0) -> Turn:
    """Return a user's turn: the pictures, then the question."""
    return Turn("user", (*[None] * pictures, question))


@dataclass(frozen=True)
class Row:
    """One conversation with its pictures.

    `answers` are reference answers for evaluation: those the row lists, else its last turn by the
    assistant; `raw_answers` are the same as the data has them, numbers as numbers. `options` are
    the choices of a multiple-choice question, `kind` the question type. `layout` and `keys` say how
    it was read and from what; `unread` are keys that were not, although they look like pictures.
    """

    id: str
    turns: tuple[Turn, ...]
    images: tuple[ImageSource, ...] = ()
    kind: str | None = None
    answers: tuple[str, ...] = ()
    raw_answers: tuple[Any, ...] = ()
    options: tuple[str, ...] = ()
    layout: str = ""
    keys: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, and why."""

    id: str
    reason: str


def for_training(row: Row) -> Row:
    """Return the row as it is trained on: it starts with a question and ends with an answer.

    Answers before the first question and questions after the last answer are dropped. Raises
    RowError when roles do not alternate, an answer is empty, shows a picture, or there is none.
    """
    system = row.turns[: sum(1 for turn in row.turns[:1] if turn.role == "system")]
    turns = list(row.turns[len(system) :])
    while turns and turns[0].role == "assistant" and not turns[0].pictures:
        del turns[0]
    while turns and turns[-1].role != "assistant" and not turns[-1].pictures:
        del turns[-1]
    if not any(turn.role == "assistant" for turn in turns):
        raise RowError("it has no answer")
    check_roles([*system, *turns])
    if turns[-1].role != "assistant":
        raise RowError("its last image has no answer")
    for turn in turns:
        if turn.role == "assistant" and not turn.text.strip():
            raise RowError("an answer is empty")
    return replace(row, turns=(*system, *turns))


def check_roles(turns: Sequence[Turn]) -> None:
    """Raise RowError unless user and assistant take turns, the user first, pictures the user's."""
    talk = turns[1:] if turns and turns[0].role == "system" else turns
    for index, turn in enumerate(talk):
        expected = ("user", "assistant")[index % 2]
        if turn.role != expected:
            raise RowError(f"turn {index + 1} is the {turn.role}'s where the {expected} is due")
    for turn in turns:
        if turn.role != "user" and turn.pictures:
            raise RowError(f"the {turn.role} shows an image; only the user can")


def split_text(text: str) -> tuple[str | None, ...]:
    """Return the parts of a text with `<image>` placeholders, without line breaks around them."""
    if "<video>" in text:
        raise RowError("it shows a video, which training does not read")
    pieces = text.split(PLACEHOLDER)
    if len(pieces) == 1:
        return (text,)
    parts: list[str | None] = []
    for index, piece in enumerate(pieces):
        piece = piece.lstrip("\r\n") if index else piece.lstrip()
        piece = piece.rstrip("\r\n") if index < len(pieces) - 1 else piece.rstrip()
        parts += [piece] if piece.strip() else []
        parts += [None] if index < len(pieces) - 1 else []
    return tuple(parts)


class BadRows:
    """Counts and names rows that cannot be used, up to a share of all rows.

    `total` may grow while rows are still coming in.
    """

    def __init__(self, total: int, max_bad: float = 0.01) -> None:
        self.total = total
        self.max_bad = max_bad
        self._found: dict[int, BadRow] = {}

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[BadRow]:
        return iter(self._found.values())

    def __contains__(self, index: int) -> bool:
        return index in self._found

    def add(self, index: int, bad: BadRow) -> None:
        """Note the row at an index, once."""
        self._found.setdefault(index, bad)

    def check(self) -> None:
        """Raise RequestError, naming the first, when there are more than the share allows."""
        if len(self) <= self.max_bad * self.total:
            return
        first = list(self)[:NAMED_IN_ERROR]
        named = "; ".join(f"{bad.id}: {bad.reason}" for bad in first)
        more = f"; and {len(self) - len(first)} more" if len(self) > len(first) else ""
        raise RequestError(
            f"{len(self)} of {self.total} rows cannot be used, more than "
            f"{100 * self.max_bad:g} %: {named}{more}",
            hint="repair these rows, check --images, or allow more with --max-bad",
        )
