"""Which of a row's keys hold its answer, and which of several answers is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from dcsurgery.data.fields import Fields, as_list, missing
from dcsurgery.data.options import answer_text
from dcsurgery.data.pictures import RowError

ANSWER = (
    "answers", "answer", "label", "labels", "correct_choice_idx", "response", "completion",
    "output", "outputs", "target", "multiple_choice_answer", "correct_answer", "ground_truth",
    "gt_answer", "answer_label", "direct_answers", "solution", "assistant",
)  # fmt: skip
# One text each, also where that looks like a list: JSON is what some models are to write.
WRITTEN = ("response", "completion", "output", "outputs", "target", "solution", "assistant")
# What one of several humans said, where an answer is an object.
SAID = ("answer", "text", "caption", "raw", "value")


def answers_in(fields: Fields, names: tuple[str, ...]) -> list[Any]:
    """Return the answers under the first of the keys that has some. Raises RowError."""
    value = fields.get(*names)
    one = isinstance(value, str) and value in map(fields.peek, WRITTEN)
    return [value] if one else said(value)


def said(value: Any) -> list[Any]:
    """Return answers as the data has them, out of the objects that hold them. Raises RowError."""
    found = []
    for item in as_list(value):
        if isinstance(item, Mapping):
            key = next((key for key in SAID if not missing(item.get(key))), None)
            if key is None and not all(map(missing, item.values())):
                raise RowError(f"an answer is an object with the keys {', '.join(map(str, item))}")
            found += said(item[key]) if key else []
        elif isinstance(item, list | tuple) and len(item) > 1:
            raise RowError(f"an answer is a list in a list: {str(item)[:60]}")
        elif not missing(item):
            found += [item] if not isinstance(item, list | tuple) else said(item)
    return found


def trained_answer(fields: Fields) -> str | None:
    """Return the answer that is trained; None without one.

    The one that the data set agreed on (`multiple_choice_answer`, or `answer` beside a list of
    them), else what most say; ties go to the first.
    """
    listed = answers_in(fields, ANSWER)
    agreed = None if fields.given.keys() & set(ANSWER) else fields.get("multiple_choice_answer")
    if agreed is None and len(listed) > 1 and not isinstance(fields.peek("answer"), list | tuple):
        agreed = fields.get("answer")
    if agreed is not None:
        listed = said(agreed)
    plain = [str(item).strip().casefold() for item in listed]
    counts = Counter(plain)
    # max() takes the first of equals.
    best = max(range(len(listed)), key=lambda place: counts[plain[place]], default=None)
    return None if best is None else answer_text(listed[best])
