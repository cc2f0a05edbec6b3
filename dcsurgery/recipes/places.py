"""The data paths of a recipe: what is read where, and which of its `needs` they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from dcsurgery.recipes.schema import Eval, Finetune


def parts(name: str, data: Path) -> list[str]:
    """Return the files of a step's data, which may be several with commas between them.

    A later one without a folder lies beside the first.
    """
    first, *more = [name] if (data / name).exists() else [part.strip() for part in name.split(",")]
    beside = PurePosixPath(first).parent
    return [first, *(part if "/" in part else str(beside / part) for part in more)]


def data_place(name: str, data: Path) -> str:
    """Return where a step's data is, below the data folder, as readers of rows are told it."""
    return ",".join(str(data / part) for part in parts(name, data))


def reads(section: Finetune | Eval, data: Path) -> list[str]:
    """Return the data paths that a training or an evaluation reads: its files, its pictures."""
    return [*parts(section.data, data), *([section.images] if section.images else [])]


def needed(place: str, needs: Mapping[str, str]) -> list[str]:
    """Return what is to be fetched for a data path: the entries of `needs` at or below it."""
    return [name for name in needs if within(name, place)] or [place]


def said(name: str, needs: Mapping[str, str]) -> str:
    """Return where a data path comes from: by `needs`, also of a folder that holds it."""
    entry = next((need for need in needs if within(name, need)), None)
    return "the recipe does not say where from" if entry is None else needs[entry]


def within(name: str, folder: str) -> bool:
    """Return whether a data path is a folder or lies below it."""
    return PurePosixPath(name).is_relative_to(PurePosixPath(folder))
