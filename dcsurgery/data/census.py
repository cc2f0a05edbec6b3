"""What the rows of a data set hold, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from dcsurgery.data.conversations import Row
from dcsurgery.errors import RequestError


@dataclass
class Census:
    """Rows with and without pictures, rows by layout, and keys that look like pictures.

    `unread` counts, by key, the rows in which nothing read such a key.
    """

    with_pictures: int = 0
    without_pictures: int = 0
    layouts: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Census:
        """Return the census of some rows."""
        found = cls()
        for row in rows:
            found.add(row)
        return found

    def add(self, row: Row) -> None:
        """Count a row."""
        self.with_pictures += bool(row.images)
        self.without_pictures += not row.images
        self.layouts[row.layout] += 1
        self.unread.update(row.unread)

    def need_pictures(self, name: str) -> None:
        """Raise RequestError where rows of the data called `name` were counted, none with one."""
        if self.rows and not self.with_pictures:
            raise RequestError(
                f"none of the {self.rows:,} rows of {name} has a picture: the connector could "
                "learn nothing",
                hint="name the key that holds pictures, --columns image=KEY, or check the data",
            )

    def warnings(self) -> list[str]:
        """Say why scores on these rows may not be what is meant."""
        if self.with_pictures:
            return []
        return [
            f"none of the {self.rows:,} rows has a picture: no score says what a model sees; "
            "--columns image=KEY names the key that holds pictures"
        ]

    @property
    def rows(self) -> int:
        """How many rows were counted."""
        return self.with_pictures + self.without_pictures

    def facts(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return {
            "rows_with_pictures": self.with_pictures,
            "rows_without_pictures": self.without_pictures,
            "layouts": dict(self.layouts),
            "unread_pictures": dict(self.unread),
        }

    def pictures(self) -> str:
        """Say how many rows have pictures, and which keys nobody read."""
        named = "".join(
            f"\n{name!r} looks like a picture and is not read, in {count:,}: --columns image={name}"
            for name, count in self.unread.items()
        )
        return f"{self.with_pictures:,} rows with, {self.without_pictures:,} without{named}"
