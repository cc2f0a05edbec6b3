"""Rows of training and evaluation data: LLaVA JSON, messages, or plain questions, all read alike.

    {"id", "image", "conversations": [{"from": "human", "value": "<image>\\nWhat?"}, ...]}
    {"messages": [{"role": "user", "content": ...}, ...], "images": [...]}
    {"question", "image", "answer" or "answers", "options"}

Torch-free. Where the rows come from (files, Hugging Face data sets) is rows.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dcsurgery.data.options import answer_text, read_options
from dcsurgery.data.pictures import ImageSource, RowError, image_source
from dcsurgery.errors import RequestError

Role = Literal["system", "user", "assistant"]
PLACEHOLDER = "<image>"
ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}
KINDS = ("type", "question_type", "category")
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
    assistant; `raw_answers` are the same as the data has them. `options` are the choices of a
    multiple-choice question, `right` the places of the right ones, set by Choices.apply. `kind` is
    the question type.
    """

    id: str
    turns: tuple[Turn, ...]
    images: tuple[ImageSource, ...] = ()
    kind: str | None = None
    answers: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    raw_answers: tuple[Any, ...] = ()
    right: tuple[int, ...] = ()


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, and why."""

    id: str
    reason: str


def read_row(raw: Any, number: int, root: Path | None = None, *, trusted: bool = False) -> Row:
    """Return the row that a parsed JSON object (or a data set's record) describes.

    `root` is the folder of the pictures; `number` names a row without an id. Raises RowError.
    """
    if not isinstance(raw, Mapping):
        raise RowError(f"it is {_kind_of(raw)}, not an object")
    inline: list[Any] = []
    if raw.get("conversations") is not None:
        turns = _turns(raw["conversations"], "from", "value", inline)
    elif raw.get("messages") is not None:
        turns = _turns(raw["messages"], "role", "content", inline)
    else:
        turns = _question(raw)
    named = _images(raw) or inline
    sources = [image_source(item, root, trusted=trusted) for item in named]
    if raw.get("conversations") is None:
        turns = _show_first(turns, len(sources))
    shown = sum(turn.pictures for turn in turns)
    if shown != len(sources):
        raise RowError(f"its text shows {shown} images, but it has {len(sources)}")
    listed = _listed_answers(raw) or [turn.text for turn in turns if turn.role == "assistant"][-1:]
    options, answers = raw.get("options") or raw.get("choices"), tuple(listed)
    if options:
        options, answers = read_options(options, answers)
    return Row(
        row_id(raw, number),
        tuple(turns),
        tuple(sources),
        next((str(raw[key]) for key in KINDS if raw.get(key) is not None), None),
        tuple(map(answer_text, answers)),
        tuple(options or ()),
        answers,
    )


def row_id(raw: Any, number: int) -> str:
    """Return a row's own id, else its number."""
    found = None
    if isinstance(raw, Mapping):
        found = next((raw[key] for key in ("id", "question_id") if raw.get(key) is not None), None)
    return f"row {number}" if found is None else str(found)[:100]


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


def _images(raw: Mapping[str, Any]) -> list[Any]:
    for key in ("image", "images"):
        if raw.get(key) is not None:
            found = _list(raw[key])
            return [item for item in found if item is not None]
    return []


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _turns(raw: Any, role_key: str, text_key: str, inline: list[Any]) -> list[Turn]:
    """Return turns; pictures inside content items are appended to `inline`."""
    if not isinstance(raw, list | tuple) or not raw:
        raise RowError(f"its conversation is {_kind_of(raw)}, not a list of turns")
    return [_turn(item, role_key, text_key, inline) for item in raw]


def _show_first(turns: list[Turn], pictures: int) -> list[Turn]:
    """Put pictures that no text shows in front of the first question."""
    first = next((index for index, turn in enumerate(turns) if turn.role == "user"), None)
    if first is not None and not any(turn.pictures for turn in turns):
        turns[first] = Turn("user", (*[None] * pictures, *turns[first].parts))
    return turns


def _turn(raw: Any, role_key: str, text_key: str, inline: list[Any]) -> Turn:
    if not isinstance(raw, Mapping):
        raise RowError(f"a turn is {_kind_of(raw)}, not an object")
    role = raw.get(role_key)
    if not isinstance(role, str) or role not in ROLES:
        known = ", ".join(ROLES)
        raise RowError(f"a turn's {role_key!r} is {str(role)[:40]!r}; known are {known}")
    content = raw.get(text_key)
    if isinstance(content, str):
        return Turn(ROLES[role], split_text(content))
    if isinstance(content, list | tuple):
        return Turn(ROLES[role], tuple(_part(item, inline) for item in content))
    raise RowError(f"a turn's {text_key!r} is {_kind_of(content)}, not text")


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


def _part(item: Any, inline: list[Any]) -> str | None:
    if isinstance(item, str):
        return item
    kind = item.get("type") if isinstance(item, Mapping) else None
    if kind == "text" and isinstance(item.get("text"), str):
        return str(item["text"])
    if kind == "image":
        found = next((item[k] for k in ("image", "path", "url") if item.get(k) is not None), None)
        if found is not None:
            inline.append(found)
        return None
    raise RowError(f"a turn holds {str(kind or _kind_of(item))[:40]!r}; known are text and image")


def _question(raw: Mapping[str, Any]) -> list[Turn]:
    text = next((raw[k] for k in ("question", "text", "prompt") if raw.get(k) is not None), None)
    if not isinstance(text, str):
        raise RowError("it has none of conversations, messages, question")
    turns = [Turn("user", split_text(text))]
    answers = _listed_answers(raw)
    return [*turns, Turn("assistant", (answer_text(answers[0]),))] if answers else turns


def _listed_answers(raw: Mapping[str, Any]) -> list[Any]:
    found = next((raw[k] for k in ("answers", "answer") if raw.get(k) is not None), None)
    values = [item.get("answer") if isinstance(item, Mapping) else item for item in _list(found)]
    return [value for value in values if value is not None]


def _kind_of(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", type(None): "missing"}
    return names.get(type(value), f"a {type(value).__name__}")


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
