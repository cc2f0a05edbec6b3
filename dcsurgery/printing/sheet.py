"""A sheet of text for people, and the plans that print themselves on one."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

from dcsurgery.printing import tables

# What long jobs report: how much of how much is done, and words about it.
Progress = Callable[[int, int, str], None]


def clean(text: str) -> str:
    """Show control characters instead of obeying them: names come out of other people's files."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


class Sheet:
    """Text, line by line; str() of it is plain, and 80 columns wide."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __str__(self) -> str:
        return "\n".join(self.lines)

    @property
    def width(self) -> int:
        """Columns to fill."""
        return 80

    def show(self, text: str = "", style: str = "") -> None:
        """Add a line; `style` is for those who see colours."""
        self.lines.append(clean(text))

    def heading(self, text: str) -> None:
        """Add a bold line, after an empty one."""
        self.show("\n" + text, "bold")

    def facts(self, rows: Iterable[tuple[str, str]]) -> None:
        """Add "name  value" lines; values wrap under themselves, words are never broken.

        A name that repeats the one above is left out.
        """
        rows = list(rows)
        offset = max(len(key) for key, _ in rows) + 4
        for (above, _), (key, value) in pairwise([("", ""), *rows]):
            lines = tables.wrap(value, self.width - offset)
            for index, line in enumerate(lines):
                name = "" if index or key == above else key
                self.show(f"  {name:<{offset - 2}}{line}".rstrip())

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]], kinds: str) -> None:
        """Add a table under dim titles; `kinds` as in tables.lay_out."""
        lines = tables.lay_out([columns, *rows], kinds, self.width - 2)
        for index, line in enumerate(lines):
            self.show("  " + line, "" if index else "dim")

    def passage(self, pieces: Iterable[tuple[str, bool]]) -> None:
        """Add a text of pieces (text, marked): marked ones in [[ ]]."""
        self.show("".join(f"[[{text}]]" if marked else text for text, marked in pieces))


class Printed(ABC):
    """What prints itself: print(it) shows what its command shows, to_json() what --json does."""

    @abstractmethod
    def show(self, out: Sheet) -> None:
        """Put it on a sheet."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; keys only ever get added."""

    def to_json(self) -> str:
        """Return to_dict as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        sheet = Sheet()
        self.show(sheet)
        return str(sheet)
