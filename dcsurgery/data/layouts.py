"""The layouts that rows come in, as a table. docs/data.md shows one row of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcsurgery.data.answer_keys import ANSWER, answers_in, said, trained_answer
from dcsurgery.data.columns import Columns
from dcsurgery.data.conversations import Row, Turn, check_shown, check_text
from dcsurgery.data.fields import NO_TEXT, Fields, as_list, kind_of
from dcsurgery.data.option_keys import OPTIONS, find_options
from dcsurgery.data.options import answer_text
from dcsurgery.data.picture_keys import (
    FILE_IDS,
    IDS,
    PICTURES,
    Key,
    find_pictures,
    picture_like,
    picture_source,
)
from dcsurgery.data.pictures import RowError, printable
from dcsurgery.data.turns import Reader

QUESTION = ("question", "query", "prompt", "instruction", "text", "problem", "input", "user")
MORE = ("input", "inputs")  # what an instruction is about
CAPTION = ("caption", "captions", "text", "txt", "blip_caption", "description", "sentences")
CONVERSATION, MESSAGES = ("conversations", "conversation"), ("messages",)
BEFORE, SYSTEM, HISTORY = ("hint", "context"), ("system", "system_prompt"), ("history",)
KINDS = ("type", "question_type", "category")
REFUSED = ("video", "videos", "audio", "audios")
# What a caption answers: the data has no question. LLaVA asks its captions about like this.
CAPTION_QUESTION = "Describe the image briefly."
KEYS_SHOWN = 20


@dataclass(frozen=True)
class Layout:
    """One way to write a row.

    A row fits when it has a value of each group of `needs` and of none of `without`, and `listed`
    keys hold lists. `read(fields, reader)` returns its turns; `answers` may hold references.
    `pictured` rows must have a picture.
    """

    name: str
    needs: tuple[tuple[str, ...], ...]
    read: Callable[[Fields, Reader], list[Turn]]
    answers: tuple[str, ...] = ("answers", "answer")
    without: tuple[str, ...] = ()
    listed: tuple[str, ...] = ()
    pictured: bool = False

    def fits(self, fields: Fields) -> bool:
        """Whether a row is written this way."""
        return (
            all(fields.has(names) for names in self.needs)
            and (self.meant(fields) or not fields.has(self.without))
            and all(as_list(value) != [value] for value in map(fields.peek, self.listed))
        )

    def meant(self, fields: Fields) -> bool:
        """Whether the user named one of its keys with --columns."""
        return any(key in fields.given for names in self.needs for key in names)


def read_row(
    raw: Any,
    number: int,
    root: Path | None = None,
    *,
    trusted: bool = False,
    columns: Columns | None = None,
) -> Row:
    """Return the row that a parsed JSON object (or a data set's record) describes.

    `root` is the folder of the pictures; `number` names a row without an id. Raises RowError.
    """
    fields = _fields(raw, columns)
    for key in REFUSED:
        if fields.has([key]) and not isinstance(fields.peek(key), bool | int):
            raise RowError(f"it has {key}, which training and evaluation do not read")
    layout = _layout(fields)
    if layout.needs[0] in (CONVERSATION, MESSAGES) and fields.peek("label") is False:
        raise RowError("its 'label' false says that its answer is not wanted (KTO)")
    reader = Reader()
    turns = [*_system(fields), *layout.read(fields, reader)]
    found = find_pictures(fields, root)
    values = [
        fields.get(value.name) if isinstance(value, Key) else value
        for value in reader.resolve(found)
    ]
    sources = [picture_source(value, root, trusted=trusted) for value in values]
    if not reader.strict:
        turns = _show_first(turns, len(sources))
    check_shown(turns)
    shown = sum(turn.pictures for turn in turns)
    if shown != len(sources):
        raise RowError(f"its text shows {shown} images, but it has {len(sources)}")
    raw_answers = tuple(answers_in(fields, layout.answers)) if layout.answers else ()
    raw_answers = raw_answers or tuple(turn.text for turn in turns if turn.role == "assistant")[-1:]
    options, raw_answers = find_options(fields, raw_answers)
    check_text("".join((*options, *map(str, raw_answers), *(turn.text for turn in turns))))
    kind = fields.get(*KINDS)
    keys = fields.read
    unread = picture_like(fields, ids=not sources)
    if unread and not sources:
        raise RowError(
            f"it has no picture, but {', '.join(map(repr, unread))} looks like one; name it: "
            f"--columns image={'+'.join(unread)}"
        )
    if layout.pictured and not sources:
        raise RowError(f"it is a {layout.name} without a picture")
    return Row(
        _name(fields.get(*IDS), number),
        tuple(turns),
        tuple(sources),
        kind=None if kind is None else str(kind),
        answers=tuple(map(answer_text, raw_answers)),
        raw_answers=raw_answers,
        options=options,
        layout=layout.name,
        keys=keys,
        unread=tuple(unread),
        rest=tuple(name for name, _ in fields.unread()),
    )


def row_id(raw: Any, number: int, columns: Columns | None = None) -> str:
    """Return a row's own id, else its number."""
    return _name(_fields(raw, columns).get(*IDS) if isinstance(raw, Mapping) else None, number)


def _name(identity: Any, number: int) -> str:
    return f"row {number}" if identity is None else printable(str(identity))[:100]


def _fields(raw: Any, columns: Columns | None) -> Fields:
    if not isinstance(raw, Mapping):
        raise RowError(f"it is {kind_of(raw)}, not an object")
    return Fields(raw) if columns is None else Fields(raw, *columns.apply(raw))


def _layout(fields: Fields) -> Layout:
    meant = [layout for layout in LAYOUTS if layout.meant(fields)] if fields.given else []
    for layout in (*meant, *LAYOUTS):
        if layout.fits(fields):
            return layout
    keys = ", ".join(fields.keys[:KEYS_SHOWN]) or "none"
    known = ", ".join(dict.fromkeys(layout.needs[0][0] for layout in LAYOUTS))
    raise RowError(
        f"no layout fits its keys {keys}; understood are {known}, and others like them "
        "(docs/data.md); --columns question=KEY,answer=KEY names yours"
    )


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _system(fields: Fields) -> list[Turn]:
    found = fields.get(*SYSTEM)
    return [] if found is None else [Turn("system", (_text(found, "system"),))]


def _show_first(turns: list[Turn], pictures: int) -> list[Turn]:
    """Put pictures that no text shows in front of the first question."""
    first = next((index for index, turn in enumerate(turns) if turn.role == "user"), None)
    if first is not None and not any(turn.pictures for turn in turns):
        turns[first] = Turn("user", (*[None] * pictures, *turns[first].parts))
    return turns


def _answered(turns: list[Turn], answer: Any, reader: Reader) -> list[Turn]:
    """Append an answer; one that mentions a picture is refused where turns are checked."""
    return turns if answer is None else [*turns, Turn("assistant", reader.text(str(answer)))]


def _text(value: Any, what: str) -> str:
    """Return a text, the English one where there are several by language."""
    if isinstance(value, Mapping):
        texts = {key: text for key, text in value.items() if isinstance(text, str)}
        if "en" not in texts and len(texts) != 1:
            raise RowError(f"its {what} is an object with the keys {', '.join(map(str, value))}")
        return texts.get("en") or next(iter(texts.values()))
    if _is_list(value):
        raise RowError(f"its {what} is a list, not text")
    return str(value)


def _question_text(fields: Fields) -> str:
    before = fields.get(*BEFORE)
    none = before is None or str(before).strip().lower() in NO_TEXT
    lines = [] if none else [_text(before, "hint")]
    lines.append(_text(fields.get(*QUESTION), "question"))
    if fields.has(["instruction"]) and fields.has(MORE):
        lines.append(_text(fields.get(*MORE), "input"))
    return "\n".join(lines)


def _conversation(fields: Fields, reader: Reader) -> list[Turn]:
    return reader.turns(fields.get(*CONVERSATION))


def _messages(fields: Fields, reader: Reader) -> list[Turn]:
    return reader.turns(fields.get(*MESSAGES))


def _pairs(fields: Fields, reader: Reader) -> list[Turn]:
    return reader.turns(fields.get("texts"))


def _prompt(fields: Fields, reader: Reader) -> list[Turn]:
    turns = reader.turns(fields.get("prompt"))
    answer = fields.get("completion", "response", "answer")
    if isinstance(answer, list | tuple | Mapping):
        return [*turns, *reader.turns(answer)]
    return _answered(turns, answer, reader)


def _history(fields: Fields, reader: Reader) -> list[Turn]:
    turns = []
    for pair in as_list(fields.get(*HISTORY)):
        if not (_is_list(pair) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise RowError("its history is not a list of [question, answer]")
        turns += [Turn("user", reader.text(pair[0])), Turn("assistant", reader.text(pair[1]))]
    return [*turns, *_question(fields, reader)]


def _question(fields: Fields, reader: Reader) -> list[Turn]:
    turn = Turn("user", reader.text(_question_text(fields)))
    return _answered([turn], trained_answer(fields), reader)


def _several(fields: Fields, reader: Reader) -> list[Turn]:
    asked, told = as_list(fields.get("questions")), as_list(fields.get("answers"))
    if len(asked) != len(told):
        raise RowError(f"it has {len(asked)} questions and {len(told)} answers")
    turns = []
    for question, answer in zip(asked, told, strict=True):
        turns.append(Turn("user", reader.text(_text(question, "question"))))
        turns.append(Turn("assistant", reader.text(_text(answer, "answer"))))
    return turns


def _caption(fields: Fields, reader: Reader) -> list[Turn]:
    captions = said(fields.get(*CAPTION))
    question = Turn("user", (CAPTION_QUESTION,))
    return _answered([question], captions[0] if captions else None, reader)


LAYOUTS = (
    Layout("conversations", (CONVERSATION,), _conversation),
    Layout("messages", (MESSAGES,), _messages),
    Layout("texts", (("texts",),), _pairs),
    Layout("prompt and completion messages", (("prompt",),), _prompt, listed=("prompt",)),
    Layout("question with history", (QUESTION, HISTORY), _history, ANSWER),
    Layout("questions", (("questions",), ("answers",)), _several, (), listed=("questions",)),
    Layout("question and answer", (QUESTION, ANSWER), _question, ANSWER),
    Layout(
        "caption",
        (CAPTION, (*PICTURES, *FILE_IDS, "image_1")),
        _caption,
        CAPTION,
        without=(*(key for key in QUESTION if key != "text"), *ANSWER, "question_id"),
        pictured=True,
    ),
    Layout("question", (QUESTION,), _question),
)
UNDERSTOOD: Sequence[str] = tuple(
    dict.fromkeys(
        (
            "question", "answer", "image", "options", "hint", "system", "id", "type",
            "conversations", "messages", "caption", "history", "completion", *QUESTION, *ANSWER,
            *PICTURES, *OPTIONS, *BEFORE, *SYSTEM, *CAPTION, *CONVERSATION, *KINDS, *IDS,
            *MORE, "texts", "questions",
        )
    )
)  # fmt: skip
