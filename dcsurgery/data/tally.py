"""What is lost of rows on their way to a model, counted: rows left out, cut, or written in part."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dcsurgery.data.conversations import BadRow
from dcsurgery.errors import RequestError
from dcsurgery.fields import percent

NAMED_IN_ERROR = 3
# A sample speaks for all rows when chance would give as many bad ones once in a thousand times.
CHANCE = 1e-3


def checked_percent(value: object, option: str = "--max-bad") -> float:
    """Return percent(value). Raises RequestError, naming the option."""
    try:
        return percent(value)
    except ValueError as error:
        raise RequestError(f"{option} {value} is no share of rows", hint=str(error)) from None


class BadRows:
    """Counts and names rows that cannot be used, up to `max_bad` percent of all rows.

    `total` may grow while rows are still coming in.
    """

    def __init__(self, total: int, max_bad: float | str = 1.0) -> None:
        self.total = total
        self.max_bad = checked_percent(max_bad)
        self._found: dict[int, BadRow] = {}

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[BadRow]:
        return iter(self._found.values())

    def __contains__(self, index: int) -> bool:
        return index in self._found

    def items(self) -> list[tuple[int, BadRow]]:
        """Return the rows with their places in the data."""
        return list(self._found.items())

    def add(self, index: int, bad: BadRow) -> None:
        """Note the row at an index, once."""
        self._found.setdefault(index, bad)

    def check(self) -> None:
        """Raise RequestError, naming the first, when there are more than the percentage allows."""
        # The margin is for products such as 0.07 * 100.
        if 100 * len(self) > self.max_bad * self.total * (1 + 1e-9):
            raise self._too_many(list(self), f"{self.total} rows", self.total)

    def check_sample(self, found: list[BadRow], measured: int) -> None:
        """Raise RequestError when so many bad rows in a sample mean too many in all the data."""
        share = self.max_bad / 100
        terms = (
            math.comb(measured, count) * share**count * (1 - share) ** (measured - count)
            for count in range(len(found), measured + 1)
        )
        if found and sum(terms) < CHANCE:
            raise self._too_many(found, f"{measured} rows that were measured", measured)

    def _too_many(self, found: list[BadRow], of: str, total: int) -> RequestError:
        named = "; ".join(f"{bad.id}: {bad.reason}" for bad in found[:NAMED_IN_ERROR])
        rest = len(found) - NAMED_IN_ERROR
        more = f"; and {rest} more" if rest > 0 else ""
        share = math.ceil(100 * len(found) / total)
        return RequestError(
            f"{len(found)} of {of} cannot be used, more than {self.max_bad:g} %: {named}{more}",
            hint=f"{_remedy(found)}, or allow more with --max-bad {share}%",
        )


def _remedy(found: Iterable[BadRow]) -> str:
    """Name the option that would help most of the rows."""
    names = Counter(bad.option.split()[0] if bad.option else "" for bad in found)
    name = names.most_common(1)[0][0]
    if name == "--max-length":
        needed = max(int(bad.option.split()[1]) for bad in found if bad.option.startswith(name))
        return f"allow longer rows with {name} {needed}"
    if name:
        return f"check {name}, the folder that image paths start from"
    return "repair these rows"


@dataclass
class Tally:
    """Rows that lost something but are used, each counted once by its place in the data.

    `cut` are those that `max_length` shortened, `cut_answers` those of them in which an answer lost
    its end. `dropped` says what the prompt leaves out or changes: "system turn", ...
    """

    cut: set[int] = field(default_factory=set)
    cut_answers: set[int] = field(default_factory=set)
    dropped: dict[str, set[int]] = field(default_factory=dict)

    def drop(self, index: int, kinds: Iterable[str]) -> None:
        """Note what the prompt of a row leaves out."""
        for kind in kinds:
            self.dropped.setdefault(kind, set()).add(index)

    def counts(self) -> Losses:
        """Return how many rows there are of each kind."""
        dropped = {kind: len(rows) for kind, rows in sorted(self.dropped.items())}
        return Losses(len(self.cut), len(self.cut_answers), dropped)

    def add(self, other: Tally) -> None:
        """Take over the rows of another tally."""
        self.cut |= other.cut
        self.cut_answers |= other.cut_answers
        for kind, rows in other.dropped.items():
            self.dropped.setdefault(kind, set()).update(rows)


@dataclass(frozen=True)
class Losses:
    """How many rows lost something; see Tally."""

    cut_rows: int = 0
    cut_answers: int = 0
    dropped: dict[str, int] = field(default_factory=dict)

    def lines(self, max_length: int, *, of: str = "") -> list[str]:
        """Say it in lines, for people; none where nothing was lost. `of` names the rows counted."""
        found = []
        if self.cut_rows:
            found.append(
                f"{_rows(self.cut_rows)}{of} cut to --max-length {max_length}, "
                f"{self.cut_answers} of them inside an answer"
            )
        found += [
            f"{_rows(count)}{of}: the {kind} is left out of the prompt, or changed"
            for kind, count in self.dropped.items()
        ]
        return found


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


def save_tally(file: Path, bad: BadRows, tally: Tally) -> None:
    """Write what was found so far, for a training that goes on later."""
    state = {
        "bad": [[index, *asdict(row).values()] for index, row in bad.items()],
        "cut": sorted(tally.cut),
        "cut_answers": sorted(tally.cut_answers),
        "dropped": {kind: sorted(rows) for kind, rows in tally.dropped.items()},
    }
    file.write_text(json.dumps(state), encoding="utf-8")


def load_tally(file: Path, bad: BadRows, tally: Tally) -> None:
    """Add what save_tally wrote."""
    state = json.loads(file.read_bytes())
    for index, *values in state["bad"]:
        bad.add(index, BadRow(*values))
    dropped = {kind: set(rows) for kind, rows in state["dropped"].items()}
    tally.add(Tally(set(state["cut"]), set(state["cut_answers"]), dropped))
