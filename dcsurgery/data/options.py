"""Multiple choice: a row's options, which of them is right, and the question that shows them.

Training and evaluation read the same row: its question lists the options by letter, its answer is
the right one's letter. An answer in the data may be a number, a letter or an option's text. Where
one can be read in several ways, the other rows of the data set tell; where they do not, the row is
refused by name.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dcsurgery.data.fields import as_list
from dcsurgery.data.picks import Pick, alone, index_of, label, pick, plain, run_together
from dcsurgery.data.pictures import RowError

if TYPE_CHECKING:
    from dcsurgery.data.conversations import Row, Turn

ONE = "Answer with the option's letter from the given choices directly."
SEVERAL = "Answer with the letters of all right options from the given choices directly."
# What nearly all rows do is what the data set does; the rest is mistakes.
THROUGHOUT = 0.99
# Numbers count options from 0 or from 1.
BASES = ("from 0", "from 1")
WAYS = ("letter", "text", "number", "said", *BASES)
TRUTH = {True: {"true", "yes"}, False: {"false", "no"}}
KEYS, TEXTS = ("label", "key", "letter", "id"), ("text", "value", "content", "option")
MARK = re.compile(r"(?:^|(?<=[\s,;]))(?:\(\s*(\w{1,2})\s*\)\s*|(\w{1,2})(?:[.:]\s+|\)\s*))")


class Key(str):
    """A letter that stands for the name by which the data calls an option: no text to compare."""

    name = ""

    @classmethod
    def of(cls, index: int, name: str) -> Key:
        """Return the letter of the option at an index, which an answer calls `name`."""
        found = cls(label(index))
        found.name = name
        return found


def read_options(value: Any, answers: Sequence[Any]) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """Return a row's options in order, and its answers.

    Options are a list, a table of names and texts ({"A": "cat"}, {"label": [], "text": []} or a
    list of such), or one text ("(a) cat (b) dog", "['cat', 'dog']", a line each, or parted by | ;
    or a comma). Answers that are names become letters. Raises RowError.
    """
    names: list[Any] = []
    if value != value:  # an empty cell
        return (), tuple(answers)
    if isinstance(value, str):
        value = _from_text(value)
    if isinstance(value, list | tuple) and value and all(isinstance(v, Mapping) for v in value):
        text = next((key for key in TEXTS if all(key in item for item in value)), None)
        if text is None:
            raise RowError(f"its options have the keys {', '.join(value[0])}, no text")
        name = next((key for key in KEYS if all(key in item for item in value)), None)
        names = [item[name] for item in value] if name else []
        value = [item[text] for item in value]
    elif isinstance(value, Mapping):
        columns = next((value[key] for key in TEXTS if isinstance(value.get(key), list)), None)
        if columns is None:
            value = {key: text for key, text in value.items() if text is not None}
            # A, B, ...: their order is meant; that of other names is the data's.
            names = sorted(value, key=lambda name: str(name) if len(str(name)) == 1 else "")
            value = [value[name] for name in names]
        else:
            names, value = next((value[key] for key in KEYS if key in value), []), columns
    if not isinstance(value, list | tuple):
        raise RowError(f"its options are a {type(value).__name__}, not a list")
    texts = list(map(_option, value))
    while texts and not texts[-1]:
        del texts[-1]
    if len(texts) == 1:
        raise RowError(f"it has one option, {texts[0][:60]!r}")
    known = {plain(str(name)): index for index, name in enumerate(names)}
    found = tuple(
        answer if isinstance(answer, bool) or at is None else Key.of(at, str(answer))
        for answer in answers
        for at in [known.get(plain(str(answer)))]
    )
    return _unlabelled(texts), found


def _option(item: Any) -> str:
    if isinstance(item, list | tuple | Mapping):
        raise RowError(f"an option is a list or an object: {str(item)[:60]}")
    return "" if item is None or item != item else str(item).strip()


def _from_text(text: str) -> Any:
    """Return the options that one text holds."""
    text = text.strip()
    if text[:1] in "[{":
        for read in (json.loads, ast.literal_eval):
            try:
                return read(text)
            except (ValueError, SyntaxError):
                continue
        raise RowError(f"its options are one text, {text[:60]!r}")
    found = listed(text) or listed(text, "1")
    if found:
        return found
    for mark in ("\n", "|", ";", ","):
        if mark in text:
            return [part for part in text.split(mark) if part.strip()]
    raise RowError(f"its options are one text, {text[:60]!r}")


def listed(text: str, first: str = "A") -> list[str]:
    """Return the options that a text lists by "A." or "(a)", else []; `first` "1" by number."""
    marks: list[re.Match[str]] = []
    for at in MARK.finditer(text):
        name = (at[1] or at[2]).upper()
        if name == first and len(marks) == 1:
            marks = []
        if name == (label(len(marks)) if first == "A" else str(len(marks) + 1)):
            marks.append(at)
    if len(marks) < 2:
        return []
    ends = [at.start() for at in marks[1:]] + [len(text)]
    found = [text[at.end() : end].strip().rstrip(",;") for at, end in zip(marks, ends, strict=True)]
    if text[: marks[1].start()].endswith("\n"):
        found[-1] = found[-1].splitlines()[0] if found[-1] else ""
    return found


def _unlabelled(texts: Sequence[str]) -> tuple[str, ...]:
    """Return options without letters of their own, where all have them in order."""
    marks = [MARK.match(text) for text in texts]
    own = [(at[1] or at[2]).upper() if at else "" for at in marks]
    if own != [label(index) for index in range(len(texts))]:
        return tuple(texts)
    return tuple(text[at.end() :] if at else text for text, at in zip(texts, marks, strict=True))


def list_options(turn: Turn, options: Sequence[str], *, several: bool = False) -> Turn:
    """Return a question with its options below its last words, pictures where they are.

    Nothing is added to a question that shows them by letter already.
    """
    shown, wanted = ([plain(text) for text in each] for each in (listed(turn.text), options))
    last = f"{re.escape(wanted[-1])}(?!\\w)"
    if shown and shown[:-1] == wanted[:-1] and re.match(last, shown[-1]):
        return turn
    lines = [f"{label(index)}. {text}" for index, text in enumerate(options) if text]
    listing = "\n".join([*lines, SEVERAL if several else ONE])
    parts = list(turn.parts)
    words = max((at for at, part in enumerate(parts) if (part or "").strip()), default=None)
    if words is None:
        return replace(turn, parts=(*parts, listing))
    text = parts[words] or ""
    # What parts the words from a picture below them parts the listing from it.
    after = text[len(text.rstrip()) :] if words < len(parts) - 1 else ""
    parts[words] = f"{text.rstrip()}\n{listing}{after}"
    return replace(turn, parts=tuple(parts))


def answer_text(value: Any) -> str:
    """Return an answer as words: JSON's true and false are yes and no."""
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


class Choices:
    """How a data set names its right options, learnt from its rows.

    `rows` are those with options: all of them, or the first of a stream.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        # (the type of an answer, the one way to read it) -> rows.
        self._told: Counter[tuple[str, str]] = Counter()
        for row in rows:
            for value in _values(row):
                found = _readings(value, row.options)
                kinds = {_kind(way) for way in found}
                if len(kinds) == 1:
                    self._told[_type(value), kinds.pop()] += 1
                bases = found.keys() & set(BASES)
                if len(bases) == 1:
                    self._told[_type(value), bases.pop()] += 1

    def apply(self, row: Row) -> Row:
        """Return a row as it is asked and trained, with `right` and `answers` set.

        Raises RowError for an answer that names no option, or that can be read in two ways.
        """
        right = self.right(row)
        turns = list(row.turns)
        asked = max((at for at, turn in enumerate(turns) if turn.role == "user"), default=None)
        if asked is not None:
            turns[asked] = list_options(turns[asked], row.options, several=len(right) > 1)
        letters = ", ".join(map(label, right))
        texts = ", ".join(row.options[index] for index in right)
        if turns and turns[-1].role == "assistant" and right:
            said = turns[-1].text
            ways = _readings(said, row.options).keys()
            own = said in {getattr(value, "name", answer_text(value)) for value in _values(row)}
            if ways != {"said"} and (ways or own):  # words that explain a choice stay
                turns[-1] = replace(turns[-1], parts=(letters,))
        answers = (letters, texts) if right else ()
        return replace(row, turns=tuple(turns), right=right, answers=answers)

    def right(self, row: Row) -> Pick:
        """Return the right options of a row, () for one without answers. Raises RowError."""
        values = _values(row)
        found: Counter[Pick] = Counter()
        for value in values:
            picked = self._read(value, row.options)
            if picked:
                found[picked] += 1
        if not found:
            if values:
                raise RowError(
                    f"its answer {_shown(values[0])} names none of its options, or several"
                )
            return ()
        (first, count), *rest = found.most_common()
        if rest and count > 1:
            if rest[0][1] == count:
                raise RowError("its answers are divided evenly between options")
            return first
        if rest and sum(found.values()) < len(values):
            raise RowError("its answers name several options, and some name none")
        return tuple(sorted({index for picked in found for index in picked}))

    def _read(self, value: Any, options: Sequence[str]) -> Pick:
        """Return what a value picks in the way of the data set; () for nothing."""
        found, kind = _readings(value, options), _type(value)
        kinds = {_kind(way) for way in found}
        told = any(self._told[kind, each] for each in kinds)
        if len(kinds) > 1:
            number = "number" if kind == "number" and not told else None
            chosen = self._settled(kind, *kinds) or number
            found = {way: each for way, each in found.items() if chosen in (None, _kind(way))}
        if any(way in found for way in BASES):
            found = self._counted(value, found, len(options))
        if len(set(found.values())) > 1:
            why = "other rows do both" if told else "no other row tells which"
            raise _unclear(value, found, why)
        return next(iter(found.values()), ())

    def _counted(self, value: Any, found: dict[str, Pick], count: int) -> dict[str, Pick]:
        """Return the readings without the one that counts from where the data set does not."""
        kind = _type(value)
        base = self._settled(kind, *BASES)
        if base is None and any(self._told[kind, each] for each in BASES):
            raise _unclear(value, found, "some rows count from 0, and others from 1")
        base = base or next(each for each in BASES if each in found)
        kept = {way: picked for way, picked in found.items() if way not in BASES or way == base}
        if not kept:
            raise RowError(
                f"its answer {_shown(value)} names none of its {count} options: the data set "
                f"counts them {base}"
            )
        return kept

    def _settled(self, kind: str, *ways: str) -> str | None:
        """Return the way that nearly all rows that tell have; None where none does."""
        counts = {way: self._told[kind, way] for way in ways}
        best = max(counts, key=counts.__getitem__)
        return best if counts[best] > THROUGHOUT * sum(counts.values()) else None

    @property
    def described(self) -> str:
        """In words: how the answers name options, and in how many rows that is plain."""
        counts = {way: sum(n for (_, w), n in self._told.items() if w == way) for way in WAYS}
        base = next((way for way in BASES if counts[way] == max(counts[w] for w in BASES)), "")
        names = {way: way for way in WAYS} | {"number": f"number {base}", "said": "words"}
        told = [f"{names[way]} ({counts[way]} rows)" for way in WAYS[:4] if counts[way]]
        return f"answers name options by {', '.join(told)}" if told else ""


def _values(row: Row) -> list[Any]:
    """Return a row's answers one by one, also of a list that was written as a text."""
    found: list[Any] = []
    for value in row.raw_answers:
        found += as_list(value, numbers=True)
    return [value for value in found if value is not None and str(value).strip()]


def _type(value: Any) -> str:
    """Return what an answer is in the data: what is true of one type tells nothing of another."""
    if isinstance(value, bool | Key):
        return type(value).__name__
    return "number" if isinstance(value, int | float) else "text"


def _kind(way: str) -> str:
    return "number" if way.startswith("from") else way


def _readings(value: Any, options: Sequence[str]) -> dict[str, Pick]:
    """Return every way to read an answer, with the options it picks."""
    texts = [plain(option) for option in options]
    if isinstance(value, bool):
        same = [index for index, text in enumerate(texts) if text in TRUTH[value]]
        return {"text": (same[0],)} if len(same) == 1 else {}
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    said = str(value).strip()
    number = int(said) if re.fullmatch(r"\d{1,4}", said) else -1
    found: dict[str, Pick] = {
        way: (number - first,)
        for first, way in enumerate(BASES)
        if 0 <= number - first < len(options)
    }
    same = [index for index, text in enumerate(texts) if text == plain(said)]
    if len(same) == 1 and not isinstance(value, Key):
        found["text"] = (same[0],)
    mark = MARK.match(said)
    own = index_of(mark[1] or mark[2]) if mark and (mark[1] or mark[2]).isalpha() else -1
    if letters := alone(said, len(options)) or run_together(said, len(options)):
        found["letter"] = letters
    elif mark and 0 <= own < len(texts) and texts[own] == plain(said[mark.end() :]):
        found["letter"] = (own,)
    if not found and _type(value) == "text" and len(picked := pick(said, options)) == 1:
        found["said"] = picked
    return found


def _unclear(value: Any, found: Mapping[str, Pick], why: str) -> RowError:
    ways = " or ".join(
        f"option {label(picked[0])} as its {way if way in ('text', 'letter') else f'number {way}'}"
        for way, picked in found.items()
    )
    return RowError(f"its answer {_shown(value)} may be {ways}; {why}")


def _shown(value: Any) -> str:
    return repr(str(value)[:60]) if isinstance(value, str) else str(value)
