"""Move bytes between files by the cheapest means the file system offers.

Shared blocks (reflink) where possible, else copy_file_range, sendfile, read and write. Sources are
only ever opened for reading, targets are always new files. Nothing is synced here: staging does it
for the whole output at once, so that the disk never waits between two files.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from dcsurgery.checkpoint.checks import changed
from dcsurgery.checkpoint.headers import PAGE
from dcsurgery.errors import CheckpointError, MalformedCheckpointError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Mode = Literal["reflink", "hardlink", "copy", "rewrite", "write"]

# linux/fs.h: _IOW(0x94, 9, int) and _IOW(0x94, 13, struct file_clone_range).
FICLONE = 0x40049409
FICLONERANGE = 0x4020940D
CHUNK = 8 * 1024 * 1024
# One call moves at most this much, so that Ctrl-C is answered soon.
STEP = 256 * 1024 * 1024
UNSUPPORTED = {
    errno.EXDEV, errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EPERM,
    errno.ETXTBSY, errno.EBADF,
}  # fmt: skip
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class Transfer:
    """How one file of the output came to be, and how many bytes were physically written for it."""

    file: str
    mode: Mode
    written: int


def raise_write_error(error: OSError, target: Path) -> NoReturn:
    """Raise CheckpointError for a failed write, in words for people."""
    if error.errno in FULL:
        raise CheckpointError(
            f"no room left while writing {target.name} ({error.strerror})",
            hint="free some space, or choose an output on another disk; nothing was kept",
        ) from None
    raise CheckpointError(
        f"cannot write {target}: {error.strerror}", hint="check the folder's permissions"
    ) from None


def clone_range(source: int, target: int, start: int, length: int, to: int) -> bool:
    """Share blocks between two open files. Returns False where the file system cannot."""
    if fcntl is None or length == 0:
        return False
    import struct

    try:
        fcntl.ioctl(target, FICLONERANGE, struct.pack("=qQQQ", source, start, length, to))
    except OSError as error:
        if error.errno in FULL:
            raise
        return False
    return True


def plan_clone(start: int, length: int, to: int) -> tuple[int, int]:
    """Return (head, interior) of a range that can share blocks: bytes to copy, bytes to clone.

    Interior is 0 unless source and target offsets are congruent modulo the page size.
    """
    if (start - to) % PAGE:
        return 0, 0
    head = min(-start % PAGE, length)
    return head, (length - head) // PAGE * PAGE


def move_range(source: int, target: int, start: int, length: int, to: int) -> int:
    """Copy `length` bytes at `start` of one open file to `to` of another; returns bytes written.

    Raises OSError from the target, MalformedCheckpointError when the source ends early.
    """
    head, interior = plan_clone(start, length, to)
    if interior and clone_range(source, target, start + head, interior, to + head):
        tail = head + interior
        copied = _copy(source, target, start, head, to)
        return copied + _copy(source, target, start + tail, length - tail, to + tail)
    return _copy(source, target, start, length, to)


def _copy(source: int, target: int, start: int, length: int, to: int) -> int:
    done = 0
    for way in (_by_copy_file_range, _by_sendfile, _by_read_write):
        try:
            while done < length:
                step = min(STEP, length - done)
                moved = way(source, target, start + done, step, to + done)
                if not moved and way is not _by_read_write:
                    break  # some file systems answer 0 for "cannot"; the next way knows better
                if not moved:
                    raise MalformedCheckpointError(
                        "a file became shorter while it was being read",
                        hint="wait until the model is written, then run again",
                    )
                done += moved
        except (OSError, AttributeError) as error:
            if isinstance(error, OSError) and error.errno not in UNSUPPORTED:
                raise
            if way is _by_read_write:
                raise
            continue
        if done == length:
            break
    return length


def _by_copy_file_range(source: int, target: int, start: int, length: int, to: int) -> int:
    return os.copy_file_range(source, target, length, start, to)


def _by_sendfile(source: int, target: int, start: int, length: int, to: int) -> int:
    os.lseek(target, to, os.SEEK_SET)
    return os.sendfile(target, source, start, length)


def _by_read_write(source: int, target: int, start: int, length: int, to: int) -> int:
    os.lseek(source, start, os.SEEK_SET)
    data = os.read(source, min(CHUNK, length))
    os.lseek(target, to, os.SEEK_SET)
    return os.write(target, data)


def open_source(path: Path) -> int:
    """Return a descriptor for reading. Raises MalformedCheckpointError when the file is gone."""
    try:
        return os.open(path, os.O_RDONLY)
    except OSError:
        raise changed(path.name) from None


def make_folder(folder: Path) -> None:
    """Make a folder and its parents. Raises CheckpointError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise_write_error(error, folder)


def create(target: Path) -> int:
    """Return a descriptor of a new file with the mode the umask allows. Raises OSError."""
    return os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)


def write_all(target: int, data: bytes | memoryview) -> int:
    """Write every byte at the descriptor's position; returns how many."""
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += os.write(target, view[done:])
    return done


def write_file(target: Path, chunks: Iterable[bytes]) -> int:
    """Write a new file; returns its bytes. Raises CheckpointError."""
    try:
        opened = create(target)
        try:
            written = sum(write_all(opened, chunk) for chunk in chunks)
        finally:
            os.close(opened)
    except OSError as error:
        raise_write_error(error, target)
    return written


def replace_text(path: Path, text: str) -> None:
    """Write a small UTF-8 file as replace_bytes does. Raises OSError."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a small file whole or not at all, in place of an older one. Raises OSError."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise


def transfer_file(source: Path, target: Path, *, link: bool = False) -> Transfer:
    """Bring a whole file to a new place: hard link if asked and possible, else reflink, else copy.

    Raises CheckpointError for a full or read-only disk.
    """
    real = source.resolve()
    reading = open_source(real)
    try:
        if link and _hard_link(real, target):
            return Transfer(target.name, "hardlink", 0)
        return _transfer_open(reading, target)
    except OSError as error:
        raise_write_error(error, target)
    finally:
        os.close(reading)


def _transfer_open(reading: int, target: Path) -> Transfer:
    writing = create(target)
    try:
        size = os.fstat(reading).st_size
        if fcntl is not None and size:
            try:
                fcntl.ioctl(writing, FICLONE, reading)
                return Transfer(target.name, "reflink", 0)
            except OSError as error:
                if error.errno in FULL:
                    raise
        written = _copy(reading, writing, 0, size, 0)
        return Transfer(target.name, "copy", written)
    finally:
        os.close(writing)


def _hard_link(real: Path, target: Path) -> bool:
    try:
        os.link(real, target)
    except OSError as error:
        if error.errno in FULL:
            raise
        return False
    return True
