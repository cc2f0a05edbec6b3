"""An output folder that exists whole or not at all.

`OUT.partial/` holds a lock and `new/`, the folder being filled. The kernel frees the lock of a
killed process, so the next run recognises its remains and clears them. One rename publishes `new/`
as OUT.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dcsurgery.checkpoint.reference import is_cache_path
from dcsurgery.errors import CheckpointError, OutputExistsError, RequestError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = "lock"
NEW = "new"
OLD = "old"
RENAME_EXCHANGE = 2
AT_FDCWD = -100


def check_output(
    output: Path, *, overwrite: bool, sources: Sequence[Path] = (), needed: int = 0
) -> None:
    """Refuse an output that cannot or must not be written; writes nothing.

    Raises OutputExistsError, RequestError or CheckpointError (no room for `needed` bytes).
    """
    _check_place(output, sources)
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise OutputExistsError(
            f"{output} exists and is not a folder", hint="choose another --output"
        )
    if output.is_dir() and any(output.iterdir()):
        if not overwrite:
            raise OutputExistsError(
                f"{output} exists and is not empty",
                hint="choose another --output, or replace it with --overwrite",
            )
        _check_replaceable(output)
    parent = _existing_parent(output)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise RequestError(f"{parent} is not writable", hint="choose another --output")
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise CheckpointError(
            f"{needed / 1e9:.2f} GB are needed at {parent}, {free / 1e9:.2f} GB are free",
            hint="free some space, choose another disk, or use --link or --form delta",
        )


def _check_place(output: Path, sources: Sequence[Path]) -> None:
    resolved = output.resolve()
    for source in (path.resolve() for path in sources):
        if resolved == source or source in resolved.parents or resolved in source.parents:
            raise RequestError(
                f"the output {output} and the model {source} contain each other",
                hint="choose an --output outside the model's folder",
            )
    if is_cache_path(output):
        raise RequestError(f"{output} is inside a Hub cache", hint="choose another --output")


def _check_replaceable(output: Path) -> None:
    resolved = output.resolve()
    here = Path.cwd().resolve()
    precious = {Path(resolved.anchor), Path.home().resolve(), here, *here.parents}
    if resolved in precious or resolved in Path.home().resolve().parents:
        raise RequestError(f"{output} is not a folder to replace", hint="choose another --output")


def _existing_parent(output: Path) -> Path:
    parent = output.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise RequestError(f"{parent} is not a folder", hint="choose another --output")
    return parent


@contextmanager
def staged_output(
    output: Path, *, overwrite: bool = False, sources: Sequence[Path] = (), needed: int = 0
) -> Iterator[Path]:
    """Yield an empty folder; publish it as `output` when the block ends, remove it when it raises.

    Raises what check_output raises, and OutputExistsError when another process is writing `output`.
    """
    check_output(output, overwrite=overwrite, sources=sources, needed=needed)
    output = output.absolute()
    made = _make_parents(output.parent)
    try:
        root, lock = _acquire(output)
    except BaseException:
        _remove_parents(made)
        raise
    published = False
    try:
        # The winner of a race may have published between our check and our lock.
        check_output(output, overwrite=overwrite, sources=sources, needed=needed)
        staging = root / NEW
        staging.mkdir()
        yield staging
        _sync_tree(staging)
        _publish(staging, output, overwrite)
        published = True
    finally:
        _clear(root, lock)
        if not published:
            _remove_parents(made)


def _make_parents(parent: Path) -> list[Path]:
    missing = [path for path in (parent, *parent.parents) if not path.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(
            f"cannot create {parent}: {error.strerror}", hint="choose another --output"
        ) from None
    return missing


def _remove_parents(made: Sequence[Path]) -> None:
    for path in made:
        with suppress(OSError):
            path.rmdir()


def _acquire(output: Path) -> tuple[Path, int]:
    """Return the staging root, cleared, and the descriptor whose lock protects it."""
    root = output.with_name(output.name + ".partial")
    while True:
        try:
            root.mkdir(exist_ok=True)
            if any(root.iterdir()) and not (root / LOCK).is_file():
                raise OutputExistsError(
                    f"{root} is in the way and dcsurgery did not make it",
                    hint="move it away, or choose another --output",
                )
            lock = os.open(root / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            # The other process finished and removed the root in between.
            continue
        except OSError as error:
            raise RequestError(
                f"cannot create {root}: {error.strerror}", hint="choose another --output"
            ) from None
        if _take(lock, root, output):
            break
    if (root / OLD).exists() and not output.exists():
        # Killed between the two renames of a replacement: the old folder is still the only one.
        os.rename(root / OLD, output)
    _empty(root)
    return root, lock


def _empty(root: Path) -> None:
    for leftover in (NEW, OLD):
        shutil.rmtree(root / leftover, ignore_errors=True)


def _clear(root: Path, lock: int) -> None:
    # The lock file goes last: whoever opens it earlier finds it taken, later finds a new folder.
    _empty(root)
    with suppress(OSError):
        os.unlink(root / LOCK)
        root.rmdir()
    os.close(lock)


def _take(lock: int, root: Path, output: Path) -> bool:
    """Lock; False when the root was replaced meanwhile. Raises OutputExistsError if busy."""
    try:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        same = os.fstat(lock).st_ino == (root / LOCK).stat().st_ino
    except BlockingIOError:
        os.close(lock)
        raise OutputExistsError(
            f"another process is writing {output}", hint="wait for it, or choose another --output"
        ) from None
    except FileNotFoundError:
        same = False
    if not same:
        os.close(lock)
    return same


def _sync_tree(folder: Path) -> None:
    # Files are synced by whoever wrote them; names need their folders synced.
    for root, _, _ in os.walk(folder):
        _sync(Path(root))


def _sync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _publish(staging: Path, output: Path, overwrite: bool) -> None:
    try:
        if not (overwrite and output.exists()):
            os.rename(staging, output)
        elif not _exchange(staging, output):
            _replace_in_two_steps(staging, output)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise OutputExistsError(
                f"{output} appeared while it was being written", hint="choose another --output"
            ) from None
        raise CheckpointError(
            f"cannot publish {output}: {error.strerror}", hint="check the folder's permissions"
        ) from None
    _sync(output.parent)


def _exchange(staging: Path, output: Path) -> bool:
    """Swap two folders in one step (Linux renameat2). Returns False where there is no such call."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    names = (os.fsencode(staging), os.fsencode(output))
    return bool(renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0)


def _replace_in_two_steps(staging: Path, output: Path) -> None:
    aside = staging.with_name(OLD)
    os.rename(output, aside)
    try:
        os.rename(staging, output)
    except OSError:
        os.rename(aside, output)
        raise
