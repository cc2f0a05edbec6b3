"""Whether a recipe's data is there: rows and pictures are counted before any GPU is used."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

from dcsurgery.data.census import Census
from dcsurgery.data.conversations import BadRow, Row, for_training
from dcsurgery.data.pictures import ImageSource, RowError
from dcsurgery.data.rows import Rows, read_rows
from dcsurgery.data.tally import BadRows
from dcsurgery.errors import RequestError
from dcsurgery.printing.sheet import Printed, Sheet
from dcsurgery.recipes.places import data_place, needed, reads, said, within
from dcsurgery.recipes.schema import Eval, Finetune, Recipe

# Rows of each file that the start of a run looks at, drawn at random.
QUICK = 1000
# More folders than this below one `images` are counted together: LCS-558K has 660.
FOLDERS = 20
EXAMPLES = 3

Section = Finetune | Eval


@dataclass(frozen=True)
class Folder:
    """A folder as `needs` name it: how many of its pictures rows name, how many are missing."""

    name: str
    pictures: int
    missing: int


@dataclass(frozen=True)
class Source:
    """What one step reads: its rows, of which `unusable` ones, and where its pictures are.

    `looked_at` rows were read. `problem` says why the step cannot run with it; None when it can.
    """

    step: str
    data: str
    images: str | None
    rows: int = 0
    looked_at: int = 0
    unusable: int = 0
    examples: tuple[str, ...] = ()
    folders: tuple[Folder, ...] = ()
    problem: str | None = None


@dataclass(frozen=True)
class DataCheck(Printed):
    """The data of a recipe's steps; `fetch` is what is not there: path, and where it comes from."""

    recipe: str
    data_dir: Path
    sources: tuple[Source, ...]
    fetch: dict[str, str]

    @property
    def problems(self) -> dict[str, str]:
        """Return the steps that could not run, each with the reason."""
        return {item.step: item.problem for item in self.sources if item.problem is not None}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; keys only ever get added."""
        values: dict[str, Any] = {"recipe": self.recipe, "data_dir": str(self.data_dir)}
        values |= {"ready": not self.problems, "sources": [asdict(item) for item in self.sources]}
        return {"schema_version": 1, **values, "fetch": self.fetch}

    def show(self, out: Sheet) -> None:
        """Put it on a sheet: rows, pictures, what is to be fetched, what cannot run."""
        out.show(f"{self.recipe}, data in {self.data_dir}", "bold")
        read = [item for item in self.sources if item.looked_at]
        if read:
            rows = [(s.step, s.data, f"{s.rows:,}", f"{s.unusable:,}") for s in read]
            out.table(("step", "data", "rows", "unusable"), rows, "wlrr")
            out.show()
            folders = _together(read).values()
            cells = [(f.name, f"{f.pictures:,}", f"{f.missing:,}") for f in folders]
            out.table(("pictures in", "named", "missing"), cells, "lrr")
        for title, told in (("to fetch", self.fetch), ("cannot run", self.problems)):
            if told:
                out.heading(title)
                out.facts(list(told.items()))
        if not self.problems:
            none = "no step reads data that has to be fetched"
            out.show("every step has its data" if self.sources else none, "bold green")


def check_data(
    recipe: Recipe, data: Path, *, steps: Collection[str] | None = None, sample: int | None = None
) -> DataCheck:
    """Return what is there of a recipe's data below a folder; nothing is downloaded or decoded.

    `steps` are those that count (all when None); with a `sample`, that many rows of each file
    speak for the rest.
    """
    found, needs = recipe.sections(), recipe.needs
    chosen = {name: found[name] for name in found if steps is None or name in steps}
    _names.cache_clear()
    sources = tuple(_source(name, chosen[name], needs, data, sample=sample) for name in chosen)
    return DataCheck(recipe.name, data, sources, _to_fetch(chosen.values(), sources, needs, data))


def _source(
    name: str, section: Section, needs: Mapping[str, str], data: Path, *, sample: int | None
) -> Source:
    found = Source(name, section.data, section.images)
    gone = [place for place in reads(section, data) if not (data / place).exists()]
    if gone:
        verb = "is" if len(gone) == 1 else "are"
        return replace(found, problem=f"{', '.join(gone)} {verb} not there")
    root = None if section.images is None else data / section.images
    options: dict[str, Any] = {"split": section.split, "columns": section.columns}
    try:
        rows = read_rows(data_place(section.data, data), images=root, **options)
    except RequestError as error:
        return replace(found, problem=error.message)
    count = _Count(needs, data, root or rows.root or data)
    bad, census, number = BadRows(len(rows), section.max_bad), Census(), 0
    for index, row in _drawn(rows, sample):
        number += 1
        try:
            census.add(_checked(row, count, trains=isinstance(section, Finetune)))
        except RowError as error:
            bad.add(index, BadRow.of(row.id, error))
    return replace(
        found,
        rows=len(rows),
        looked_at=number,
        unusable=len(bad),
        examples=tuple(f"{item.id}: {item.reason}" for item in list(bad)[:EXAMPLES]),
        folders=count.folders(),
        problem=_problem(section, bad, census, number),
    )


def _problem(section: Section, bad: BadRows, census: Census, number: int) -> str | None:
    """Return why a step would refuse its rows, as it would say it itself; None when it would not.

    Where only `number` of the rows were looked at, what chance explains is no reason.
    """
    try:
        if number == bad.total:
            bad.check()
        else:
            bad.check_sample(list(bad), number)
        if not census.rows:
            raise RequestError(f"{section.data} has no row that can be used", hint="repair it")
        if isinstance(section, Finetune):
            census.need_pictures(section.data)
    except RequestError as error:
        return error.message
    return None


def _drawn(rows: Rows, sample: int | None) -> Iterator[tuple[int, Row | BadRow]]:
    if sample is None or sample >= len(rows):
        yield from enumerate(rows)
        return
    for index in sorted(Random(0).sample(range(len(rows)), sample)):
        try:
            yield index, rows[index]
        except RowError as error:
            yield index, BadRow.of(rows.name_of(index), error)


def _checked(row: Row | BadRow, count: _Count, *, trains: bool) -> Row:
    """Return a row whose pictures are there, counted. Raises RowError for one that is no use."""
    if isinstance(row, BadRow):
        raise RowError(row.reason, row.option)
    # All are counted, whatever else is wrong with the row.
    gone = [image for image in row.images if not count.has(image)]
    if gone:
        raise RowError(f"image {gone[0].name} does not exist", "--images")
    if trains:
        for_training(row)
    elif not row.answers:
        raise RowError("it has no answer")
    return row


class _Count:
    """Counts pictures by folder: that of `needs` in which one lies, else the first below `root`."""

    def __init__(self, needs: Iterable[str], data: Path, root: Path) -> None:
        self._data, self._root = os.path.abspath(data), os.path.abspath(root)
        self._needs = sorted(needs, key=len, reverse=True)
        self._groups: dict[str, str] = {}
        self._found: dict[str, tuple[int, int]] = {}

    def has(self, image: ImageSource) -> bool:
        """Count a picture and return whether it is there; one inside its row always is."""
        if image.path is None:
            return True
        folder, name = os.path.split(os.path.abspath(image.path))
        there = name in _names(folder)
        group = self._groups.get(folder) or self._groups.setdefault(folder, self._group(folder))
        named, gone = self._found.get(group, (0, 0))
        self._found[group] = named + 1, gone + (not there)
        return there

    def _group(self, folder: str) -> str:
        place = Path(os.path.relpath(folder, self._data)).as_posix()
        need = next((need for need in self._needs if within(place, need)), None)
        inside = Path(os.path.relpath(folder, self._root)).parts
        return need or Path(os.path.relpath(self._root, self._data), *inside[:1]).as_posix()

    def folders(self) -> tuple[Folder, ...]:
        """Return the counts, those of many folders that `needs` do not name as one."""
        found = [Folder(name, *tally) for name, tally in self._found.items()]
        others = [item for item in found if item.name not in self._needs]
        if len(others) <= FOLDERS:
            return tuple(found)
        whole = Path(os.path.relpath(self._root, self._data)).as_posix()
        sums = sum(item.pictures for item in others), sum(item.missing for item in others)
        return (*(item for item in found if item not in others), Folder(whole, *sums))


@lru_cache(maxsize=4096)
def _names(folder: str) -> frozenset[str]:
    """Return the files of a folder: one look at it is quicker than one at each of its files."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except OSError:
        return frozenset()


def _together(sources: Iterable[Source]) -> dict[str, Folder]:
    """Return the folders by name; what several steps count in one is added up."""
    found: dict[str, Folder] = {}
    for folder in (folder for source in sources for folder in source.folders):
        old = found.get(folder.name, Folder(folder.name, 0, 0))
        sums = old.pictures + folder.pictures, old.missing + folder.missing
        found[folder.name] = Folder(folder.name, *sums)
    return found


def _to_fetch(
    chosen: Iterable[Section],
    sources: Sequence[Source],
    needs: Mapping[str, str],
    data: Path,
) -> dict[str, str]:
    """Return what of the chosen steps' data is not there, whole or in part, and where it is."""
    counted = _together(sources)
    read = [item.images for item in sources if item.looked_at and item.images is not None]
    found: dict[str, str] = {}
    for place in (place for section in chosen for place in reads(section, data)):
        for name in needed(place, needs):
            folder = counted.get(name)
            if (data / name).exists():
                if folder is not None and folder.missing:
                    gone = f"{folder.missing:,} of {folder.pictures:,} pictures are not there"
                    found[name] = f"{gone}: {said(name, needs)}"
            # A folder of pictures that no row names is not needed.
            elif folder is not None or not any(within(name, images) for images in read):
                found[name] = said(name, needs)
    return found
