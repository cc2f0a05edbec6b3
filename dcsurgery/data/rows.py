"""Where rows come from: files, folders of them, saved data sets, data sets of the Hub."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from dcsurgery.data.columns import Columns
from dcsurgery.data.conversations import BadRow, Row
from dcsurgery.data.layouts import UNDERSTOOD, read_row, row_id
from dcsurgery.data.options import Choices
from dcsurgery.data.pictures import ImageSource, RowError
from dcsurgery.data.records import from_columns, from_hub, from_saved
from dcsurgery.data.text_files import HINT, READERS, read_text_files
from dcsurgery.errors import RequestError

__all__ = ["Rows", "data_digest", "data_files", "read_rows"]

CHUNK = 1 << 20
COLUMNAR = (".parquet", ".arrow")
METADATA = (".csv", ".jsonl", ".parquet")
NO_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev"}
# Rows that nearly always have all columns, and that show how a stream's answers name options.
LOOKED_AT = 1000


class Rows:
    """The rows of one source, read one at a time.

    `name` is what the user called it. A streamed source has no length and is only iterated.
    """

    def __init__(
        self,
        name: str,
        items: Any,
        *,
        root: Path | None,
        trusted: bool = False,
        columns: Columns | None = None,
    ) -> None:
        self.name = name
        self._items = items
        self._root = root
        self._trusted = trusted
        self._columns = columns

    @property
    def root(self) -> Path | None:
        """The folder that image paths start from."""
        return self._root

    @property
    def streamed(self) -> bool:
        """True for rows that arrive one after the other, without a known number."""
        return not hasattr(self._items, "__len__")

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Row:
        """Return one row. Raises RowError when it cannot be read."""
        return self._read(self._items[index], index)

    def name_of(self, index: int) -> str:
        """Return a row's id, also of one that cannot be read."""
        try:
            return self._id(self._items[index], index + 1)
        except RowError:
            return f"row {index + 1}"

    def __iter__(self) -> Iterator[Row | BadRow]:
        """Yield every row in order, a BadRow in place of one that cannot be read."""
        for index, item in enumerate(self.records()):
            try:
                yield self._read(item, index)
            except RowError as error:
                yield BadRow.of(self._id(item, index + 1), error)

    def column_names(self, limit: int | None = None) -> list[str]:
        """Return the keys of the rows, of `limit` rows at most, in order."""
        named = getattr(self._items, "column_names", None)
        if named is not None:
            return list(named)
        first = (item for item in islice(self.records(), limit) if isinstance(item, Mapping))
        return [str(key) for key in dict.fromkeys(key for item in first for key in item)]

    def _id(self, item: Any, number: int) -> str:
        try:
            return row_id(item, number, self._columns)
        except RowError:
            return f"row {number}"

    def records(self) -> Iterator[Any]:
        """Yield the data's own records, a RowError in place of one that cannot be parsed."""
        if self.streamed:
            yield from self._items
            return
        for index in range(len(self._items)):
            try:
                yield self._items[index]
            except RowError as error:
                yield error

    def _read(self, item: Any, index: int) -> Row:
        row = self._plain(item, index)
        if not self.streamed and any(map(_points, row.images)):
            row = replace(row, images=tuple(self._meant(image) for image in row.images))
        return self.choices.apply(row) if row.options else row

    def _plain(self, item: Any, index: int) -> Row:
        if isinstance(item, RowError):
            raise item
        return read_row(item, index + 1, self._root, trusted=self._trusted, columns=self._columns)

    def _meant(self, image: ImageSource) -> ImageSource:
        """Return the picture in the row whose id an image names, as VLMEvalKit's tables do."""
        at = self._places.get(image.name) if _points(image) else None
        found = () if at is None else self._plain(self._items[at], at).images
        return found[0] if len(found) == 1 and found[0].data is not None else image

    @cached_property
    def _places(self) -> dict[str, int]:
        return {self._id(item, index + 1): index for index, item in enumerate(self.records())}

    @cached_property
    def choices(self) -> Choices:
        """How the answers of multiple-choice rows name options: read once, from all rows."""
        return Choices(row for row in self._unread() if row.options)

    def _unread(self) -> Iterator[Row]:
        items = islice(self.records(), LOOKED_AT) if self.streamed else self.records()
        for index, item in enumerate(items):
            with suppress(RowError):
                yield self._plain(item, index)


def _points(image: ImageSource) -> bool:
    return image.path is not None and image.name.isdigit() and not image.path.is_file()


def read_rows(
    data: str | Path,
    *,
    images: Path | None = None,
    split: str = "train",
    revision: str | None = None,
    streaming: bool = False,
    columns: Mapping[str, str] | None = None,
) -> Rows:
    """Open training or evaluation data; nothing is downloaded or decoded for a local file.

    `images` is the folder that image paths start from (default: the data file's own); `split`,
    `revision` and `streaming` are for Hugging Face data sets; `columns` is {our word: the data's
    own}. Raises RequestError for data that is missing, empty, or cannot be read, with line and
    column for JSON, and for columns that it does not have.
    """
    if images is not None and not images.is_dir():
        raise RequestError(f"--images {images} is not a folder", hint="name the pictures' folder")
    renamed = Columns(columns, UNDERSTOOD) if columns else None
    items, folder, trusted = _opened(str(data), split, revision, streaming)
    rows = Rows(str(data), items, root=images or folder, trusted=trusted, columns=renamed)
    if not rows.streamed and not len(rows):
        raise RequestError(f"{rows.name} has no rows", hint=HINT)
    if renamed is not None and renamed.absent(rows.column_names(LOOKED_AT)):
        renamed.check(rows.column_names())
    return rows


def _opened(
    name: str, split: str, revision: str | None, streaming: bool
) -> tuple[Any, Path | None, bool]:
    """Return the rows, the folder their pictures start from, and whether their paths are trusted.

    Trusted paths may be absolute: a data set's own files.
    """
    paths, folder = data_files(name), Path(os.path.expanduser(name))
    if streaming and (paths or folder.is_dir()):
        raise RequestError(
            f"{name} is on this machine: --streaming is for data sets of the Hub",
            hint="leave it out; parquet, arrow and saved data sets are never in memory as a whole",
        )
    if paths:
        columnar = {path.suffix.lower() in COLUMNAR for path in paths}
        if columnar == {True}:
            return from_columns(paths), paths[0].parent, True
        if True in columnar:
            raise RequestError(
                f"{name} mixes tables of columns with text files", hint="name files of one kind"
            )
        return read_text_files(paths, split), paths[0].parent, False
    if folder.is_dir():
        return _from_folder(folder, split)
    if folder.suffix or name.count("/") > 1 or not name.strip():
        raise RequestError(f"there is no data file {name[:200]}", hint=HINT)
    return from_hub(name, split, revision, streaming), None, True


def data_files(data: str | Path) -> list[Path]:
    """Return the files that --data names: one, or several with commas between them.

    Later ones without a folder lie beside the first. Empty for anything else: a folder, the id of a
    data set. Raises RequestError when one of several is not there.
    """
    whole = Path(os.path.expanduser(str(data)))
    if whole.is_file():
        return [whole]
    names = [name.strip() for name in str(data).split(",")]
    if len(names) == 1 or whole.exists():
        return []
    first = Path(os.path.expanduser(names[0]))
    found = [first]
    for name in names[1:]:
        path = Path(os.path.expanduser(name))
        found.append(first.parent / path if path.name == name else path)
    for path in found:
        if not path.is_file():
            raise RequestError(f"there is no data file {path}", hint="FILE,FILE names several")
    return found


def _from_folder(folder: Path, split: str) -> tuple[Any, Path | None, bool]:
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        return from_saved(folder, split), folder, True
    for place in (folder, folder / split):
        for kind in METADATA:
            if (table := place / f"metadata{kind}").is_file():  # pictures beside their table
                rows, _, trusted = _opened(str(table), split, None, False)
                return rows, place, trusted
    kinds = (*COLUMNAR, *READERS)
    found = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in kinds]
    for kind in COLUMNAR:
        if paths := [path for path in found if path.suffix.lower() == kind]:
            return from_columns(_of_split(paths, folder, split)), folder, True
    paths = [path for path in found if path.name not in NO_DATA]
    if not paths:
        raise RequestError(f"{folder} holds no data set", hint=HINT)
    return read_text_files(_of_split(paths, folder, split), split), folder, False


def _of_split(paths: list[Path], folder: Path, split: str) -> list[Path]:
    """Return the files of a split by the words in their names; all where none names a split."""
    words = {
        path: set(re.split(r"[^a-z]+", path.relative_to(folder).as_posix().lower()))
        for path in paths
    }
    chosen = [path for path in paths if split.lower() in words[path]]
    others = sorted(path.name for path in paths if words[path] & SPLITS)
    if not chosen and others:
        raise RequestError(
            f"{folder} has no file of the split {split!r}",
            hint=f"--split names another; it has {', '.join(others[:5])}",
        )
    return chosen or paths


def data_digest(data: str | Path) -> str:
    """Return a SHA-256 that names the data: of a file its bytes.

    Of several files: their bytes one after the other. Of a folder: names, sizes and both ends of
    its files, so that terabytes stay quick. Of a Hub data set: its id alone.
    """
    path = Path(os.path.expanduser(str(data)))
    digest = hashlib.sha256()
    files = data_files(data)
    for name in files:
        with name.open("rb") as file:
            while block := file.read(CHUNK):
                digest.update(block)
    if files:
        return digest.hexdigest()
    if path.is_dir():
        for item in sorted(path.rglob("*")):
            if item.is_file():
                digest.update(
                    f"{item.relative_to(path).as_posix()}\0{item.stat().st_size}\0".encode()
                )
                with item.open("rb") as file:
                    digest.update(file.read(CHUNK // 16))
                    file.seek(max(0, item.stat().st_size - CHUNK // 16))
                    digest.update(file.read(CHUNK // 16))
    else:
        digest.update(str(data).encode())
    return digest.hexdigest()
