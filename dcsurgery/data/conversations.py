"""A row of training or evaluation data: turns of a conversation, its pictures, its references.

How rows are written is layouts.py, where they come from rows.py. Torch-free.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from dcsurgery.data.pictures import ImageSource, RowError

Role = Literal["system", "user", "assistant"]
PLACEHOLDER = "<image>"
REST_SHOWN = 10
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
    the choices of a multiple-choice question, `right` the places of the right ones, set by
    Choices.apply; `kind` is the question type. `layout` and `keys` say how it was read and from
    what; `unread` are keys that were not, although they look like pictures; `rest` all that were
    not.
    """

    id: str
    turns: tuple[Turn, ...]
    images: tuple[ImageSource, ...] = ()
    kind: str | None = None
    answers: tuple[str, ...] = ()
    raw_answers: tuple[Any, ...] = ()
    options: tuple[str, ...] = ()
    right: tuple[int, ...] = ()
    layout: str = ""
    keys: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    rest: tuple[str, ...] = ()


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, why, and the option of the command line that may help."""

    id: str
    reason: str
    option: str = ""

    @classmethod
    def of(cls, name: str, error: RowError) -> BadRow:
        """Return the bad row that an error is about."""
        return cls(name, error.message, error.option)


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
        unread = f"; not read: {', '.join(row.rest[:REST_SHOWN])}" if row.rest else ""
        raise RowError(f"it has no answer{unread}")
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
    check_shown(turns)


def check_shown(turns: Sequence[Turn]) -> None:
    """Raise RowError where anybody but the user shows a picture."""
    for turn in turns:
        if turn.role != "user" and turn.pictures:
            raise RowError(f"the {turn.role} shows an image; only the user can")


def check_text(text: str) -> None:
    """Raise RowError for a lone surrogate: JSON can write it, and nothing can encode it."""
    if not text.isascii() and re.search("[\ud800-\udfff]", text):
        raise RowError("its text holds half a character (a lone surrogate)")


def split_text(text: str) -> tuple[str | None, ...]:
    """Return the parts of a text with `<image>` placeholders; every other character is kept."""
    if "<video>" in text:
        raise RowError("it shows a video, which training does not read")
    check_text(text)
    parts: list[str | None] = []
    for index, piece in enumerate(text.split(PLACEHOLDER)):
        parts += [None] if index else []
        parts += [piece] if piece else []
    return tuple(parts) or ("",)
