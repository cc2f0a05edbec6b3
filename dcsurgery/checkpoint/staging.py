"""An output folder that exists whole or not at all.

`OUT.partial/` holds a lock, whose name marks it as ours, and `new/`, the folder being filled. The
kernel frees the lock of a killed process, so the next run recognises its remains and clears them.
One rename publishes `new/` as OUT; one exchange replaces an older OUT, which is then `new/` until
it is removed. Where there is no exchange, the older one waits as `old/`: beside a `new/`, it was
not replaced and goes back.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dcsurgery.checkpoint.copying import make_folder, raise_write_error
from dcsurgery.checkpoint.destination import (
    ELSEWHERE,
    absolute_output,
    check_content,
    check_output,
    staging_root,
)
from dcsurgery.checkpoint.written import AWAY, record
from dcsurgery.errors import CheckpointError, DcSurgeryError, OutputExistsError, RequestError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = "dcsurgery.lock"
NEW = "new"
OLD = "old"
RENAME_EXCHANGE = 2
AT_FDCWD = -100
OPEN_LOCK = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
# Each try loses to another process that cleans up at the same moment.
TRIES = 1000


@contextmanager
def staged_output(
    output: Path, *, overwrite: bool = False, sources: Sequence[Path] = (), needed: int = 0
) -> Iterator[Path]:
    """Yield an empty folder; publish it as `output` when the block ends, remove it when it raises.

    Raises what check_output raises, and OutputExistsError when another process is writing `output`.
    """
    check_output(output, overwrite=overwrite, sources=sources, needed=needed)
    output = absolute_output(output)
    root = staging_root(output)
    made = [path for path in (output.parent, *output.parent.parents) if not path.exists()]
    published = False
    try:
        lock = _acquire_or_leave_nothing(root, output)
        try:
            _restore(root, output)
            _empty(root)
            # The winner of a race may have published between our check and our lock.
            check_output(output, overwrite=overwrite, sources=sources, needed=needed)
            staging = root / NEW
            make_folder(staging)
            yield staging
            record(staging)
            _sync_tree(staging)
            _publish(staging, output, overwrite)
            published = True
            for path in made:
                _sync(path.parent)
        finally:
            _clear(root, output, lock)
    finally:
        if not published:
            _remove_folders(made)


def _remove_folders(made: Sequence[Path]) -> None:
    for path in made:
        with suppress(OSError):
            path.rmdir()


def _acquire_or_leave_nothing(root: Path, output: Path) -> int:
    try:
        return _acquire(root, output)
    except KeyboardInterrupt:
        with suppress(DcSurgeryError):
            _clear(root, output, _acquire(root, output))
        raise


def _acquire(root: Path, output: Path) -> int:
    """Make the staging root; return the descriptor whose lock protects it."""
    for _ in range(TRIES):
        lock, taken = -1, False
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            _make_root(root)
            lock = os.open(root / LOCK, OPEN_LOCK, 0o666)
            taken = _take(lock, root, output)
            if taken:
                return lock
        except FileNotFoundError:
            # The other process finished and removed the root in between.
            continue
        except OSError as error:
            raise RequestError(f"cannot create {root}: {error.strerror}", hint=ELSEWHERE) from None
        finally:
            if lock >= 0 and not taken:
                os.close(lock)
    raise OutputExistsError(f"other processes keep writing {output}", hint=ELSEWHERE)


def _make_root(root: Path) -> None:
    """Make the staging root or recognise one of ours. Raises OSError or OutputExistsError."""
    with suppress(FileExistsError):
        os.mkdir(root)
    names = set() if root.is_symlink() else set(os.listdir(root))
    # One listing: whoever finishes meanwhile removes the lock last.
    ours = names <= {LOCK, NEW, OLD} and (LOCK in names or not names)
    if root.is_symlink() or not ours:
        raise OutputExistsError(
            f"{root} is in the way and dcsurgery did not make it",
            hint=AWAY,
        )


def _take(lock: int, root: Path, output: Path) -> bool:
    """Lock; False when the root was replaced meanwhile. Raises OutputExistsError if busy."""
    try:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputExistsError(
            f"another process is writing {output}", hint=f"wait for it, or {ELSEWHERE}"
        ) from None
    return os.fstat(lock).st_ino == (root / LOCK).stat().st_ino


def _restore(root: Path, output: Path) -> None:
    """Put back an old output that was set aside for a new one that never took its place."""
    aside = root / OLD
    if not (aside.exists() and (root / NEW).exists()):
        return
    try:
        os.rename(aside, output)  # succeeds where nothing is, or an empty folder
    except OSError:
        raise OutputExistsError(
            f"an interrupted run left the former {output.name} in {aside}, and {output} is taken",
            hint="move one of them away",
        ) from None


def _empty(root: Path) -> None:
    for leftover in (root / NEW, root / OLD):
        with suppress(OSError):
            if not leftover.is_dir() or leftover.is_symlink():
                leftover.unlink()
        shutil.rmtree(leftover, ignore_errors=True)


def _clear(root: Path, output: Path, lock: int) -> None:
    try:
        _clear_once(root, output)
    except KeyboardInterrupt:
        _clear_once(root, output)  # the first Ctrl-C may fall into the cleaning, a second ends it
        raise
    finally:
        os.close(lock)


def _clear_once(root: Path, output: Path) -> None:
    _restore(root, output)
    _empty(root)
    # The lock goes last: whoever opens it earlier finds it taken, later finds a new folder. It
    # stays beside what could not be removed, so that the next run knows it for ours.
    with suppress(OSError):
        if os.listdir(root) in ([LOCK], []):
            with suppress(FileNotFoundError):
                os.unlink(root / LOCK)
            root.rmdir()


def _sync_tree(folder: Path) -> None:
    # Once all is written, not file by file: reads and writes overlap. Bytes before their names.
    for root, _, names in os.walk(folder, topdown=False):
        for name in sorted(names):
            _sync(Path(root) / name)
        _sync(Path(root))


def _sync(path: Path) -> None:
    try:
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
    except OSError as error:
        raise_write_error(error, path)


def _publish(staging: Path, output: Path, overwrite: bool) -> None:
    try:
        if overwrite and output.is_dir():
            check_content(output, overwrite)  # it took a while to write the new one
        if not (overwrite and output.exists()):
            os.rename(staging, output)
        elif not _exchange(staging, output):
            _replace_in_two_steps(staging, output)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise OutputExistsError(
                f"{output} appeared while it was being written", hint=ELSEWHERE
            ) from None
        raise CheckpointError(
            f"cannot publish {output}: {error.strerror}", hint="check the folder's permissions"
        ) from None
    _sync(output.parent)
    _sync(staging.parent)


def _exchange(staging: Path, output: Path) -> bool:
    """Swap two folders in one step (Linux renameat2). Returns False where there is no such call."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    names = (os.fsencode(staging), os.fsencode(output))
    return bool(renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0)


def _replace_in_two_steps(staging: Path, output: Path) -> None:
    # Interrupted in between, _restore puts the old folder back.
    os.rename(output, staging.with_name(OLD))
    os.rename(staging, output)
