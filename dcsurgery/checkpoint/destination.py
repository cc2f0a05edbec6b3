"""Whether a folder may be written where the user wants it: every refusal before the first byte."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from dcsurgery.checkpoint.model_ref import is_cache_path
from dcsurgery.checkpoint.written import AWAY, listed, require_ours, strangers
from dcsurgery.errors import CheckpointError, OutputExistsError, RequestError
from dcsurgery.printing.units import size

ELSEWHERE = "choose another output folder"


def absolute_output(output: Path) -> Path:
    """Return the output's absolute path; its last part is a real name, never `..`."""
    return output.absolute() if output.name not in ("", "..") else output.resolve()


def staging_root(output: Path) -> Path:
    """Return the folder beside an absolute output in which it is prepared."""
    return output.with_name(output.name + ".partial")


def check_output(
    output: Path, *, overwrite: bool, sources: Sequence[Path] = (), needed: int = 0
) -> None:
    """Refuse an output that cannot or must not be written; writes nothing.

    `overwrite` replaces a folder in which all is as dcsurgery wrote it, nothing else. Raises
    OutputExistsError, RequestError or CheckpointError (no room for `needed` bytes).
    """
    try:
        output = absolute_output(output)
        _check_place(output, sources)
        _check_existing(output, overwrite)
        parent = _existing_parent(output)
        writable = os.access(parent, os.W_OK | os.X_OK)
        free = shutil.disk_usage(parent).free
    except (OSError, ValueError, RuntimeError) as error:
        # Too long, NUL inside, a loop of links, a folder that may not be entered.
        reason = getattr(error, "strerror", None) or error
        raise RequestError(
            f"{str(output)[:200]!r} cannot be written: {reason}", hint=ELSEWHERE
        ) from None
    if not writable:
        raise RequestError(f"{parent} is not writable", hint=ELSEWHERE)
    if needed > free:
        wanted, room = size(needed), size(free)
        if wanted == room:
            wanted, room = f"{needed:,} B", f"{free:,} B"
        raise CheckpointError(
            f"{wanted} are needed at {parent}, {room} are free",
            hint="free some space, choose another disk, or use --link or --form delta",
        )


def _check_place(output: Path, sources: Sequence[Path]) -> None:
    resolved = output.resolve()
    root = staging_root(resolved)
    for source in (path.resolve() for path in sources):
        if _inside(resolved, source) or _inside(source, resolved):
            raise RequestError(
                f"the output {output} and the model {source} contain each other",
                hint="choose an output outside the model's folder",
            )
        if _inside(source, root):
            raise RequestError(
                f"the model {source} lies where {output} is prepared, and would be cleared",
                hint="move the model, or choose another output folder",
            )
    if is_cache_path(output):
        raise RequestError(f"{output} is inside a Hub cache", hint=ELSEWHERE)


def _inside(path: Path, folder: Path) -> bool:
    """Return whether a path is a folder or below it; names may differ where a disk ignores case."""
    return any(place == folder or _same(place, folder) for place in (path, *path.parents))


def _same(place: Path, folder: Path) -> bool:
    try:
        return place.samefile(folder)
    except (FileNotFoundError, NotADirectoryError):  # another run may remove it at this moment
        return False


def _check_existing(output: Path, overwrite: bool) -> None:
    if output.is_symlink():
        raise OutputExistsError(f"{output} is a link to {os.readlink(output)}", hint=ELSEWHERE)
    if not output.exists():
        return
    if not output.is_dir():
        raise OutputExistsError(f"{output} exists and is not a folder", hint=ELSEWHERE)
    # Also for an empty folder: it is replaced by another one, not filled.
    resolved = output.resolve()
    here, home = Path.cwd().resolve(), Path(os.path.expanduser("~")).resolve()
    if resolved in {here, *here.parents, home, *home.parents} or os.path.ismount(resolved):
        raise RequestError(
            f"{output} is not a folder to replace", hint="choose an output folder inside it"
        )
    try:
        check_content(output, overwrite)
    except FileNotFoundError:
        raise OutputExistsError(
            f"{output} changed while it was looked at: another run replaces it",
            hint="wait for that run, or choose another output folder",
        ) from None


def check_content(output: Path, overwrite: bool) -> None:
    """Refuse a folder that may not be replaced for what is in it, or because it is read-only.

    Raises OutputExistsError, OSError for one that cannot be read.
    """
    inside = [entry.name for entry in os.scandir(output)]
    if inside and not overwrite:
        found = strangers(output)
        replace = "" if found else ", or replace it with --overwrite"
        raise OutputExistsError(
            f"{output} is not empty: it holds {listed(found or sorted(inside))}",
            hint=ELSEWHERE + replace,
        )
    require_ours(output, strangers(output) if inside else [])
    for root, _, _ in os.walk(output):
        if not (os.access(root, os.W_OK | os.X_OK) and os.stat(root).st_mode & 0o222):
            raise OutputExistsError(f"{root} is read-only", hint=AWAY)


def on_same_disk(source: Path, output: Path) -> bool:
    """Return whether files of a folder could be hard links below the output."""
    try:
        parent = _existing_parent(absolute_output(output))
        return os.stat(source).st_dev == os.stat(parent).st_dev
    except (OSError, ValueError, RuntimeError):
        return False


def _existing_parent(output: Path) -> Path:
    parent = output.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise RequestError(f"{parent} is not a folder", hint=ELSEWHERE)
    return parent
