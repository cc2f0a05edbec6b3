"""Where rows come from: JSON, JSONL, parquet, arrow, a saved data set, a Hub data set."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from dcsurgery.data.conversations import BadRow, Row, read_row, row_id
from dcsurgery.data.options import Choices
from dcsurgery.data.pictures import RowError
from dcsurgery.errors import RequestError

__all__ = ["Rows", "data_digest", "read_rows"]

CHUNK = 1 << 20
# Rows of a stream that show how its answers name options.
SAMPLE = 1000
HINT = "pass a .json, .jsonl, .parquet or .arrow file, a saved data set, or a Hub data set's id"


class Rows:
    """The rows of one source, read one at a time.

    `name` is what the user called it. A streamed source has no length and is only iterated.
    """

    def __init__(self, name: str, items: Any, *, root: Path | None, trusted: bool = False) -> None:
        self.name = name
        self._items = items
        self._root = root
        self._trusted = trusted

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
            return row_id(self._items[index], index + 1)
        except RowError:
            return f"row {index + 1}"

    def __iter__(self) -> Iterator[Row | BadRow]:
        """Yield every row in order, a BadRow in place of one that cannot be read."""
        for index, item in enumerate(self.records()):
            try:
                yield self._read(item, index)
            except RowError as error:
                yield BadRow(row_id(item, index + 1), error.message)

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
        return self.choices.apply(row) if row.options else row

    def _plain(self, item: Any, index: int) -> Row:
        if isinstance(item, RowError):
            raise item
        return read_row(item, index + 1, self._root, trusted=self._trusted)

    @cached_property
    def choices(self) -> Choices:
        """How the answers of multiple-choice rows name options: read once, from all rows."""
        return Choices(row for row in self._unread() if row.options)

    def _unread(self) -> Iterator[Row]:
        items = islice(self.records(), SAMPLE) if self.streamed else self.records()
        for index, item in enumerate(items):
            with suppress(RowError):
                yield self._plain(item, index)


def read_rows(
    data: str | Path,
    *,
    images: Path | None = None,
    split: str = "train",
    revision: str | None = None,
    streaming: bool = False,
) -> Rows:
    """Open training or evaluation data; nothing is downloaded or decoded for a local file.

    `images` is the folder that image paths start from (default: the data file's own); `split`,
    `revision` and `streaming` are for Hugging Face data sets. Raises RequestError for data that is
    missing, empty, or cannot be read, with line and column for JSON.
    """
    name = str(data)
    path = Path(os.path.expanduser(name))
    if images is not None and not images.is_dir():
        raise RequestError(f"--images {images} is not a folder", hint="name the pictures' folder")
    if os.path.isfile(path):
        root = images or path.parent
        if path.suffix in (".parquet", ".arrow"):
            return Rows(name, _from_columns([path]), root=root, trusted=True)
        items = _from_lines(path) if path.suffix in (".jsonl", ".ndjson") else _from_json(path)
        return _filled(Rows(name, items, root=root))
    if os.path.isdir(path):
        return _filled(Rows(name, _from_folder(path, split), root=images or path, trusted=True))
    if path.suffix or name.count("/") > 1 or not name.strip():
        raise RequestError(f"there is no data file {name[:200]}", hint=HINT)
    found = _from_hub(name, split, revision, streaming)
    return Rows(name, found, root=images, trusted=True)


def _filled(rows: Rows) -> Rows:
    if not rows.streamed and not len(rows):
        raise RequestError(f"{rows.name} has no rows", hint=HINT)
    return rows


def _from_json(path: Path) -> Sequence[Any]:
    text = _decoded(path.read_bytes(), path)
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip()[:1] == "{":
            return _from_lines(path)
        raise RequestError(
            f"{path} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}",
            hint="a list of rows is expected: [{...}, ...]; one row per line is .jsonl",
        ) from None
    except RecursionError:
        raise RequestError(f"{path} is nested too deeply to be data", hint=HINT) from None
    if isinstance(found, dict) and isinstance(found.get("data"), list):
        found = found["data"]
    if not isinstance(found, list):
        raise RequestError(
            f"{path} holds one {type(found).__name__}, not a list of rows",
            hint="write [{...}, ...], or one row per line into a .jsonl file",
        )
    return found


def _decoded(raw: bytes, path: Path) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise RequestError(
            f"{path} is not UTF-8 text: byte {error.start} in line {line}", hint=HINT
        ) from None


class _Lines(Sequence[Any]):
    """The lines of a JSONL file, parsed when asked for: only their places are kept."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._spans: list[tuple[int, int, int]] = []
        with path.open("rb") as file:
            start = 0
            for number, line in enumerate(file, 1):
                if line.strip():
                    self._spans.append((start, len(line), number))
                start += len(line)

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: Any) -> Any:
        start, length, number = self._spans[index]
        with self._path.open("rb") as file:
            file.seek(start)
            raw = file.read(length)
        try:
            return json.loads(raw.decode("utf-8-sig"))
        except json.JSONDecodeError as error:
            raise RowError(
                f"line {number} is not valid JSON: {error.msg} at column {error.colno}"
            ) from None
        except (UnicodeDecodeError, RecursionError) as error:
            raise RowError(f"line {number} is not JSON text: {type(error).__name__}") from None


def _from_lines(path: Path) -> Sequence[Any]:
    return _Lines(path)


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise RequestError(
            "Hugging Face data sets need the package datasets, which is not installed",
            hint="pip install 'dcsurgery[data]', or pass LLaVA JSON or JSONL",
        ) from None
    return datasets


def _from_columns(paths: list[Path]) -> Any:
    datasets = _datasets()
    kind = paths[0].suffix
    try:
        if kind == ".arrow":
            parts = [datasets.Dataset.from_file(str(path)) for path in paths]
            return _Records(datasets.concatenate_datasets(parts))
        return _Records(datasets.Dataset.from_parquet([str(path) for path in paths]))
    # Arrow's own errors are no common class of ours.
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise _unreadable(paths[0], error) from None


def _from_folder(folder: Path, split: str) -> Any:
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        datasets = _datasets()
        try:
            found = datasets.load_from_disk(str(folder))
        except (OSError, ValueError, KeyError) as error:
            raise _unreadable(folder, error) from None
        return _Records(_split(found, split, str(folder)))
    for kind in ("parquet", "arrow"):
        paths = sorted(folder.rglob(f"*.{kind}"))
        named = [path for path in paths if split in path.name]
        if paths:
            return _from_columns(named or paths)
    raise RequestError(f"{folder} holds no data set", hint=HINT)


def _split(found: Any, split: str, name: str) -> Any:
    if not hasattr(found, "keys"):
        return found
    if split not in found:
        raise RequestError(
            f"{name} has no split {split!r}", hint=f"it has {', '.join(map(str, found))}"
        )
    return found[split]


def _from_hub(name: str, split: str, revision: str | None, streaming: bool) -> Any:
    datasets = _datasets()
    try:
        found = datasets.load_dataset(name, split=split, revision=revision, streaming=streaming)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise RequestError(
            f"there is no file {name}, and as a Hub data set it cannot be read: "
            + " ".join(str(error).split())[:160],
            hint=HINT,
        ) from None
    # A streamed picture may have no file of its own: the library decodes it.
    return found if streaming else _Records(found)


class _Records(Sequence[Any]):
    """A data set's rows as plain values: pictures stay bytes or paths until a row is used."""

    def __init__(self, found: Any) -> None:
        self._found = found.with_format("arrow")

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, index: Any) -> Any:
        return self._found[[index]].to_pylist()[0]


def _unreadable(path: Path, error: Exception) -> RequestError:
    why = " ".join(str(error).split())[:160]
    return RequestError(f"{path} cannot be read as a data set: {why}", hint=HINT)


def data_digest(data: str | Path) -> str:
    """Return a SHA-256 that names the data: of a file its bytes.

    Of a folder: names, sizes and both ends of its files, so that terabytes stay quick. Of a Hub
    data set: its id alone.
    """
    path = Path(os.path.expanduser(str(data)))
    digest = hashlib.sha256()
    if path.is_file():
        with path.open("rb") as file:
            while block := file.read(CHUNK):
                digest.update(block)
    elif path.is_dir():
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
