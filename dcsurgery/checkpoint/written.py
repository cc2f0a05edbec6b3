"""Which files of a folder dcsurgery wrote, so that nothing else is ever replaced or removed.

A finished output carries `.dcsurgery.json`: every file with its size and a digest. What is not in
there, or is no longer what it says, belongs to somebody else.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dcsurgery.checkpoint.checks import WRITTEN
from dcsurgery.checkpoint.copying import raise_write_error
from dcsurgery.errors import OutputExistsError

# Larger files are known by their size and their two ends: a training in place changes both.
WHOLE = 64 * 1024 * 1024
EDGE = 1024 * 1024
# What file managers leave behind wherever somebody looks.
NOBODYS = {".DS_Store", "Thumbs.db", "desktop.ini"}
NAMED = 4
AWAY = "move it away, or choose another output folder"
# (name in the folder, path of a file or None for a folder) -> None where it is dcsurgery's, else
# what to add to its name.
Ours = Callable[[str, Path | None], str | None]


def record(folder: Path) -> None:
    """Write down that all files of a folder are dcsurgery's. Raises CheckpointError."""
    path = folder / WRITTEN
    try:
        found = (item for item in sorted(folder.rglob("*")) if stat.S_ISREG(item.lstat().st_mode))
        names = ((item.relative_to(folder).as_posix(), item) for item in found)
        files = {name: _mark(item) for name, item in names if name != WRITTEN}
        path.write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise_write_error(error, path)


def strangers(folder: Path) -> list[str]:
    """Return what dcsurgery did not write in a folder, or what was changed since.

    Without a record that is all of it, by the names on top. Raises OSError for a folder that
    cannot be read.
    """
    files = _recorded(folder)
    folders = {str(parent) for name in files for parent in Path(name).parents}

    def ours(name: str, path: Path | None) -> str | None:
        if path is None:
            return None if name in folders else ""
        if name not in files:
            return None if files and name == WRITTEN else ""
        return None if files[name] == _mark(path) else " (changed)"

    return foreign(folder, ours)


def _recorded(folder: Path) -> dict[str, Any]:
    path = folder / WRITTEN
    try:
        return {} if path.is_symlink() else dict(json.loads(path.read_bytes())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def foreign(folder: Path, ours: Ours) -> list[str]:
    """Return what in a folder is not dcsurgery's, at every level; links and mounts never are.

    A folder that is not ours is named alone.
    """
    return [name + why for name, _, why in _walk(folder, ours) if why is not None]


def clear(folder: Path, ours: Ours) -> None:
    """Remove what is dcsurgery's in a folder, and the folder when nothing else is in it."""
    for _, path, why in [*_walk(folder, ours)]:
        if why is None:
            with suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
    with suppress(OSError):
        folder.rmdir()


def require_ours(folder: Path, found: Sequence[str], hint: str = AWAY) -> None:
    """Raise OutputExistsError, naming what is `found` in a folder that would be replaced."""
    if found:
        raise OutputExistsError(
            f"{folder} holds what dcsurgery did not write: {listed(found)}", hint=hint
        )


def listed(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _walk(folder: Path, ours: Ours, prefix: str = "") -> Iterator[tuple[str, Path, str | None]]:
    """Yield name, path and whose it is, a folder behind its content; links are not followed."""
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        name, path = prefix + entry.name, Path(entry.path)
        if entry.is_symlink():
            yield name, path, " (a link)"
        elif entry.is_dir(follow_symlinks=False):
            why = " (a mounted disk)" if os.path.ismount(path) else ours(name, None)
            if why is None:
                yield from _walk(path, ours, f"{name}/")
            yield f"{name}/", path, why
        elif not entry.is_file(follow_symlinks=False):
            yield name, path, " (no regular file)"
        else:
            yield name, path, None if entry.name in NOBODYS else ours(name, path)


def _mark(path: Path) -> list[Any]:
    """Return size and digest of a file."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if size > WHOLE:
            digest.update(file.read(EDGE))
            file.seek(-EDGE, os.SEEK_END)
        while block := file.read(EDGE):
            digest.update(block)
    return [size, digest.hexdigest()]
