"""Hugging Face data sets as plain rows: parquet, arrow, saved ones, those of the Hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dcsurgery.data.text_files import HINT
from dcsurgery.errors import RequestError

Namer = Callable[[Any], Any]


class Records(Sequence[Any]):
    """A data set's rows as plain values: pictures stay bytes or paths until a row is used.

    Numbers of classes (ClassLabel) are their names, also inside lists and objects.
    """

    def __init__(self, found: Any) -> None:
        self._found = found.with_format("arrow")
        self._named = class_names(found.features)
        self.column_names = list(found.column_names)

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, index: Any) -> Any:
        return self._named(self._found[[index]].to_pylist()[0])


class Stream:
    """The rows of a streamed data set, classes by name. The library decodes the pictures."""

    def __init__(self, found: Any) -> None:
        self._found = found

    @property
    def column_names(self) -> list[str]:
        """The columns, by its first row where the data set does not tell them."""
        return list(self._found.column_names or next(iter(self._found), {}))

    def __iter__(self) -> Iterator[Any]:
        named = class_names(self._found.features)
        return map(named, iter(self._found))


def class_names(features: Any) -> Namer:
    """Return what puts names in the place of class numbers; -1, no class, becomes None."""
    namer = _namer(features) if features is not None else None
    return namer or (lambda row: row)


def _namer(feature: Any) -> Namer | None:
    """Return what names the classes in a value of a feature; None where it has none."""
    if isinstance(feature, Mapping):
        parts = {key: namer for key, part in feature.items() if (namer := _namer(part))}
        return (lambda row: _each(row, parts)) if parts else None
    if type(feature).__name__ == "ClassLabel":
        names = feature.names or []
        return lambda value: (
            (names[value] if 0 <= value < len(names) else None) if isinstance(value, int) else value
        )
    inner = (
        feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", None)
    )
    namer = None if inner is None else _namer(inner)
    if namer is None:
        return None
    return lambda values: None if values is None else [namer(value) for value in values]


def _each(row: Any, parts: Mapping[str, Namer]) -> Any:
    if not isinstance(row, Mapping):
        return row
    return {key: parts[key](value) if key in parts else value for key, value in row.items()}


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise RequestError(
            "Hugging Face data sets need the package datasets, which is not installed",
            hint="pip install 'dcsurgery[data]', or pass JSON, JSONL, CSV or TSV",
        ) from None
    return datasets


def from_columns(paths: Sequence[Path]) -> Records:
    """Return the rows of parquet or arrow files, all of one kind. Raises RequestError."""
    datasets = _datasets()
    try:
        if paths[0].suffix == ".arrow":
            parts = [datasets.Dataset.from_file(str(path)) for path in paths]
            return Records(datasets.concatenate_datasets(parts))
        return Records(datasets.Dataset.from_parquet([str(path) for path in paths]))
    # Arrow's own errors are no common class of ours.
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise _unreadable(paths[0], error) from None


def from_saved(folder: Path, split: str) -> Records:
    """Return the rows of a saved data set. Raises RequestError."""
    datasets = _datasets()
    try:
        found = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(folder, error) from None
    if hasattr(found, "keys"):
        if split not in found:
            raise RequestError(
                f"{folder} has no split {split!r}", hint=f"it has {', '.join(map(str, found))}"
            )
        found = found[split]
    return Records(found)


def from_hub(name: str, split: str, revision: str | None, streaming: bool) -> Records | Stream:
    """Return the rows of a Hub data set. Raises RequestError."""
    datasets = _datasets()
    try:
        found = datasets.load_dataset(name, split=split, revision=revision, streaming=streaming)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise RequestError(
            f"there is no file {name}, and as a Hub data set it cannot be read: "
            + " ".join(str(error).split())[:160],
            hint=HINT,
        ) from None
    return Stream(found) if streaming else Records(found)


def _unreadable(path: Path, error: Exception) -> RequestError:
    why = " ".join(str(error).split())[:160]
    return RequestError(f"{path} cannot be read as a data set: {why}", hint=HINT)
