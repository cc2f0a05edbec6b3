"""SHA-256 of files and tensors, read in blocks so that memory stays flat."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from dcsurgery.checkpoint.checks import changed
from dcsurgery.checkpoint.headers import Header

BLOCK = 8 * 1024 * 1024


def file_bytes(path: Path, start: int = 0, length: int | None = None) -> Iterator[bytes]:
    """Yield `length` bytes of a file from `start` (all that follow when None) in blocks.

    Raises MalformedCheckpointError when the file goes away or gets shorter.
    """
    try:
        left = path.stat().st_size - start if length is None else length
        with path.open("rb") as file:
            file.seek(start)
            while left > 0:
                chunk = file.read(min(BLOCK, left))
                if not chunk:
                    raise changed(path.name)
                left -= len(chunk)
                yield chunk
    except OSError:
        raise changed(path.name) from None


def digest(chunks: Iterable[bytes]) -> str:
    """Return the SHA-256 of all chunks together, in hex."""
    total = hashlib.sha256()
    for chunk in chunks:
        total.update(chunk)
    return total.hexdigest()


def same_bytes(one: Iterable[bytes], other: Iterable[bytes]) -> bool:
    """Return whether two streams of chunks, cut anyhow, hold the same bytes. Reads no further."""
    left, right = memoryview(b""), memoryview(b"")
    first, second = filter(None, one), filter(None, other)
    while True:
        left = left or memoryview(next(first, b""))
        right = right or memoryview(next(second, b""))
        if not (left and right):
            return not (left or right)
        size = min(len(left), len(right))
        if left[:size] != right[:size]:
            return False
        left, right = left[size:], right[size:]


def tensor_bytes(path: Path, header: Header, name: str) -> Iterator[bytes]:
    """Yield the bytes of one tensor of a file."""
    entry = header.tensors[name]
    return file_bytes(path, header.data_start + entry.begin, entry.nbytes)
