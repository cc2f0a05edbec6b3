"""--columns: which of a data set's own columns are the question, the answer, the picture."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dcsurgery.data.fields import fold, missing
from dcsurgery.data.pictures import RowError
from dcsurgery.errors import RequestError

SHOWN = 40
# Of several columns these get a list; every other word gets their texts, one per line.
LISTS = ("image", "images", "options", "choices", "answers")


def parse_columns(text: str | None) -> dict[str, str]:
    """Return {our word: their column} of "question=prompt,answer=label".

    Raises RequestError where a part has no "=" or a word comes twice.
    """
    found: dict[str, str] = {}
    for part in (text or "").split(",") if text else ():
        word, sign, column = (piece.strip() for piece in part.partition("="))
        if not (word and sign and column) or word in found:
            raise RequestError(
                f"--columns {text!r}: {part!r} is not WORD=COLUMN, each word once",
                hint="--columns question=prompt,answer=label",
            )
        found[word] = column
    return found


class Columns:
    """What the user calls our words.

    A column is a name (`prompt`, or `meta.label` inside an object), several of them (`left+right`),
    or a text with names in it (`COCO_val2014_{image_id:012}.jpg`).
    """

    def __init__(self, names: Mapping[str, str] | None, words: Sequence[str]) -> None:
        """Raises RequestError for a word that is none of `words`, those understood."""
        self.names = {fold(word): column for word, column in (names or {}).items()}
        for word in self.names:
            if word not in words:
                raise RequestError(
                    f"--columns {word}={self.names[word]}: there is no word {word!r}",
                    hint=f"words: {', '.join(words[:SHOWN])}",
                )

    def absent(self, found: Sequence[str]) -> list[tuple[str, str]]:
        """Return the words whose columns are not all among those found, with the first missing."""
        known = {fold(name) for name in found}
        return [
            (word, name)
            for word, column in self.names.items()
            for name in _names(column, known)
            if not {fold(name), fold(name.split(".")[0])} & known
        ]

    def check(self, found: Sequence[str]) -> None:
        """Raise RequestError for a name that is no column of the data."""
        for word, name in self.absent(found):
            raise RequestError(
                f"--columns {word}={self.names[word]}: the data has no column {name!r}",
                hint=f"its columns: {', '.join(found[:SHOWN]) or 'none'}",
            )

    def apply(self, raw: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, bool]]:
        """Return a row's values under our words, and the keys they are made of: True if renamed."""
        folded: dict[str, Any] = {}
        for key, value in raw.items():
            folded.setdefault(fold(key), value)
        given: dict[str, Any] = {}
        used: dict[str, bool] = {}
        for word, column in self.names.items():
            names = list(_names(column, folded))
            for name in names:
                key = name if fold(name) in folded else name.split(".")[0]
                used[key] = used.get(key, False) or (key == name and "{" not in column)
            exact = {fold(name): raw[name] for name in names if name in raw}
            given[word] = _value(word, column, names, {**folded, **exact})
        return given, used


def _names(column: str, known: Any) -> Iterator[str]:
    if fold(column) in known:
        yield column
    elif "{" in column:
        try:
            parts = list(string.Formatter().parse(column))
        except ValueError as error:
            raise RequestError(
                f"--columns: {column!r} is no text with names: {error}",
                hint="--columns image={image_id}.jpg",
            ) from None
        yield from (name for _, name, _, _ in parts if name is not None)
    else:
        yield from (name.strip() for name in column.split("+"))


def _value(word: str, column: str, names: list[str], folded: Mapping[str, Any]) -> Any:
    values = [_at(name, folded) for name in names]
    if len(names) == 1 and names[0] == column:
        return values[0]
    if "{" in column:
        return None if any(map(missing, values)) else _written(column, values)
    values = [value for value in values if not missing(value)]
    return values if word in LISTS else "\n".join(map(str, values))


def _at(name: str, folded: Mapping[str, Any]) -> Any:
    if fold(name) in folded:
        return folded[fold(name)]
    found: Any = folded
    for part in name.split("."):
        found = found.get(part, found.get(fold(part))) if isinstance(found, Mapping) else None
    return found


def _written(column: str, values: list[Any]) -> str:
    text, left = "", iter(values)
    for literal, name, form, _ in string.Formatter().parse(column):
        text += literal
        if name is not None:
            value = next(left)
            # A table of text has its numbers as text.
            number = form and isinstance(value, str) and value.isdigit()
            try:
                text += format(int(value) if number else value, form or "")
            except (ValueError, TypeError) as error:
                raise RowError(f"{column!r} does not fit {str(value)[:40]!r}: {error}") from None
    return text
