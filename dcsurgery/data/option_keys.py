"""Which of a row's keys hold the options of a multiple-choice question."""

from __future__ import annotations

import re
from typing import Any

from dcsurgery.data.fields import NO_TEXT, Fields, as_list, missing
from dcsurgery.data.options import read_options
from dcsurgery.data.pictures import RowError
from dcsurgery.data.turns import MENTION

OPTIONS = ("options", "choices", "candidates", "multiple_choices")
# A, B (MMBench) · choice_a (SEED-Bench) · Choice A (PMC-VQA) · option_1.
LETTER = re.compile(r"(?:choice|option|opt)?_?([a-j])")
NUMBER = re.compile(r"(?:choice|option|opt)_?(\d)")


def option_values(fields: Fields) -> Any:
    """Return a row's options as the data has them, a list of those with a key each; else None.

    Raises RowError for keys with a gap.
    """
    found = fields.get(*OPTIONS)
    if found is None:
        return _by_key(fields, LETTER) or _by_key(fields, NUMBER) or None
    return found


def find_options(
    fields: Fields, answers: tuple[Any, ...]
) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """Return the texts of the options in order, none where a row has none, and its answers.

    Answers that are names of options become letters. Raises RowError for options that are
    pictures, or a text that is no list.
    """
    found = option_values(fields)
    if found is None:
        return (), answers
    if isinstance(found, str):
        if found.strip().lower() in NO_TEXT:
            return (), answers
        written = as_list(found, numbers=True)
        found = found if written == [found] else written
    options, answers = read_options(found, answers)
    if any(MENTION.search(option) for option in options):
        raise RowError("its options show pictures, which are not read")
    return options, answers


def _empty(value: Any) -> bool:
    return missing(value) or (isinstance(value, str) and value.strip().lower() == "nan")


def _by_key(fields: Fields, pattern: re.Pattern[str]) -> list[Any]:
    """Return the values of keys that a pattern numbers from its first letter or digit on."""
    found = {match[1]: key for key, _ in fields.items() if (match := pattern.fullmatch(key))}
    names = sorted(found)
    if len(names) < 2 or names[0] not in "a01":
        return []
    values = [fields.get(found[name]) for name in names]
    while values and _empty(values[-1]):
        del values[-1], names[-1]
    if any(map(_empty, values)) or ord(names[-1]) - ord(names[0]) != len(names) - 1:
        raise RowError(f"its options {', '.join(names)} have a gap")
    return values
