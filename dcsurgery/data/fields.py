"""One row's values by key, and which of its keys were read."""

from __future__ import annotations

import ast
import io
import json
import math
import tokenize
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from typing import Any

from dcsurgery.data.pictures import RowError

# Text tables write a value that is missing like this.
NO_TEXT = ("nan", "none", "null", "n/a")


@lru_cache(maxsize=4096)
def fold(key: object) -> str:
    """Return a key without case; blanks and hyphens count as underscores."""
    return str(key).strip().lower().replace(" ", "_").replace("-", "_")


def missing(value: Any) -> bool:
    """Whether a value says nothing: None, NaN, blank text, an empty list or object."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    if isinstance(value, str):
        return not value.strip()
    return isinstance(value, list | tuple | Mapping) and not value


class Fields:
    """The values of a row by folded key, noting what is read.

    `given` are values that the user put under our words with --columns; they come first. `used`
    are the row's own keys that those were made of: keys that were renamed (True) mean nothing else.
    """

    def __init__(
        self,
        raw: Mapping[str, Any],
        given: Mapping[str, Any] | None = None,
        used: Mapping[str, bool] | None = None,
    ) -> None:
        self.given = dict(given or {})
        self._names: dict[str, str] = {}
        self._own: dict[str, Any] = {}
        self._twins: dict[str, str] = {}
        for key, value in raw.items():
            name = fold(key)
            if name in self._own and not missing(value) and value != self._own[name]:
                self._twins[name] = str(key)
            if name not in self._own:
                self._names[name] = str(key)
                if not missing(value):
                    self._own[name] = value
        self._read = dict.fromkeys(map(fold, used or ()))
        self._renamed = {fold(key) for key, renamed in (used or {}).items() if renamed}
        # Every row of a data set is asked for many keys: what has a value is found out once.
        self._values = {k: v for k, v in self._own.items() if k not in self._renamed}
        for word, value in self.given.items():
            self._values.pop(word, None)
            if not missing(value):
                self._values[word] = value

    def peek(self, name: str) -> Any:
        """Return a key's value without reading it, a given one first; None without one."""
        return self._values.get(name)

    def has(self, names: Collection[str]) -> bool:
        """Whether one of the keys has a value."""
        return not self._values.keys().isdisjoint(names)

    def get(self, *names: str) -> Any:
        """Return the value of the first key that has one, given ones first; None without one.

        Raises RowError where another value is under a key that only differs in case or blanks.
        """
        found = [name for name in names if name in self._values]
        name = next((name for name in found if name in self.given), found[0] if found else None)
        if name is None:
            return None
        if name not in self.given:
            self._read[name] = None
            if name in self._twins:
                raise RowError(
                    f"its keys {self._names[name]!r} and {self._twins[name]!r} differ only in case "
                    f"or blanks; say which is meant: --columns {name}={self._twins[name]}"
                )
        return self._values[name]

    def items(self) -> Iterator[tuple[str, Any]]:
        """Yield the row's own folded keys that have a value, with it; not those with a new name."""
        return ((k, v) for k, v in self._own.items() if k not in self._renamed)

    def unread(self) -> Iterator[tuple[str, Any]]:
        """Yield keys as they are written, with their values, that nothing read so far."""
        return ((self._names[k], v) for k, v in self.items() if k not in self._read)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that have a value, as they are written."""
        return tuple(self._names[key] for key in self._own)

    @property
    def read(self) -> tuple[str, ...]:
        """The keys that were read, as they are written."""
        return tuple(self._names[key] for key in self._read if key in self._names)


def as_list(value: Any, *, numbers: bool = False) -> list[Any]:
    """Return a value's items: of a list, of a list written as text, of an object of lists.

    Anything else is one item, also a written list of plain numbers unless `numbers`. Raises
    RowError for a list that is written without commas.
    """
    if isinstance(value, str):
        found = _written_list(value, (str, Mapping, *((int, float) if numbers else ())))
        return [value] if found is None else found
    if isinstance(value, Mapping):
        columns = [column for column in value.values() if isinstance(column, list)]
        if value and len(columns) == len(value) and len(set(map(len, columns))) == 1:
            return [dict(zip(value, each, strict=True)) for each in zip(*columns, strict=True)]
        return [value]
    return list(value) if isinstance(value, list | tuple) else [value]


def _written_list(text: str, kinds: tuple[type, ...]) -> list[Any] | None:
    """Return the list that a text writes as JSON or Python; None for any other text.

    Raises RowError for texts without commas between them, as numpy prints them.
    """
    stripped = text.strip()
    if not (stripped.startswith("[") and stripped.endswith("]")):
        return None
    try:
        found = json.loads(stripped)
    except (ValueError, RecursionError):
        found = _python_list(stripped)
    whole = isinstance(found, list) and all(isinstance(item, kinds) for item in found)
    return found if whole else None


def _python_list(text: str) -> Any:
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if isinstance(found, list) and all(isinstance(item, str) for item in found):
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        if sum(token.type == tokenize.STRING for token in tokens) != len(found):
            raise RowError(f"a list is written without commas: {text[:60]}")
    return found


def kind_of(value: Any) -> str:
    """Return what a value is, for people."""
    names = {dict: "an object", list: "a list", str: "text", type(None): "missing"}
    return names.get(type(value), f"a {type(value).__name__}")
