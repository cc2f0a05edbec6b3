"""Weight files put together: tensors to write, and files whose bytes lie in several others."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from dcsurgery.checkpoint import copying
from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.checkpoint.copying import Transfer
from dcsurgery.checkpoint.headers import (
    DTYPE_BITS,
    PAGE,
    Header,
    TensorEntry,
    lay_out,
    render_header,
)


@dataclass
class NewTensor:
    """A tensor to write: `chunks()` yields its bytes in order; `sha256` is known once written."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[bytes]]
    sha256: str | None = field(default=None, compare=False)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        bits = DTYPE_BITS[self.dtype]
        for size in self.shape:
            bits *= size
        return bits // 8

    def stream(self) -> Iterator[bytes]:
        """Yield the bytes, remember their SHA-256. Raises ValueError when the count is wrong."""
        digest, count = hashlib.sha256(), 0
        for chunk in self.chunks():
            digest.update(chunk)
            count += len(chunk)
            yield chunk
        if count != self.nbytes:
            raise ValueError(f"{self.name}: {count} bytes were made, {self.nbytes} are needed")
        self.sha256 = digest.hexdigest()


def arranged(header: Header, replacements: Mapping[str, NewTensor]) -> list[TensorEntry]:
    """Return the new entries in the old order, those the header has not behind them.

    Wider dtypes come first where one lost its alignment.
    """
    items = [replacements.get(name, entry) for name, entry in header.tensors.items()]
    items += [item for name, item in replacements.items() if name not in header.tensors]
    wanted = [(item.name, item.dtype, item.shape) for item in items]
    entries = lay_out(wanted)
    if all(entry.begin % max(1, DTYPE_BITS[entry.dtype] // 8) == 0 for entry in entries):
        return entries
    return lay_out(sorted(wanted, key=lambda item: -DTYPE_BITS[item[1]]))


def compose_file(
    checkpoint: Checkpoint, header: Header, target: Path, replacements: Mapping[str, NewTensor]
) -> Transfer:
    """Write a weight file whose tensors lie in one file or several, some replaced.

    Bytes are moved from where the checkpoint says they are, neighbours together; what is made or
    replaced is streamed. Tensors keep their order unless that would leave one unaligned. The header
    is padded so that most bytes keep their offset modulo the page size: on file systems that share
    blocks, they cost nothing. Raises CheckpointError.
    """
    new = arranged(header, replacements)
    pieces = list(_pieces(checkpoint, new, replacements))
    shifts: Counter[int] = Counter()
    for piece in pieces:
        shift = (piece.start - piece.to) % PAGE
        if piece.source is not None and shift % 8 == 0:
            shifts[shift] += piece.length
    head = render_header(new, header.metadata, max(shifts, key=shifts.__getitem__, default=None))
    opened: dict[Path, int] = {}
    try:
        writing = copying.create(target)
        try:
            written = copying.write_all(writing, head)
            for piece in pieces:
                if piece.source is None:
                    os.lseek(writing, len(head) + piece.to, os.SEEK_SET)
                    written += sum(copying.write_all(writing, chunk) for chunk in piece.chunks())
                    continue
                if piece.source not in opened:
                    opened[piece.source] = copying.open_source(piece.source.resolve())
                reading, at = opened[piece.source], len(head) + piece.to
                written += copying.move_range(reading, writing, piece.start, piece.length, at)
        finally:
            os.close(writing)
    except OSError as error:
        copying.raise_write_error(error, target)
    finally:
        for descriptor in opened.values():
            os.close(descriptor)
    return Transfer(target.name, "rewrite", written)


@dataclass
class _Piece:
    """Bytes of a composed file: a range of `source`, or what `chunks` yields."""

    to: int
    source: Path | None = None
    start: int = 0
    length: int = 0
    chunks: Callable[[], Iterable[bytes]] = tuple


def _pieces(
    checkpoint: Checkpoint, entries: Sequence[TensorEntry], replacements: Mapping[str, NewTensor]
) -> Iterator[_Piece]:
    held: _Piece | None = None
    for entry in entries:
        tensor = replacements.get(entry.name)
        span = None if tensor is not None else checkpoint.span(entry.name)
        if held is not None and span is not None and span[0] == held.source:
            if span[1] == held.start + held.length and entry.begin == held.to + held.length:
                held.length += span[2]
                continue
        if held is not None:
            yield held
        if tensor is not None:
            held = _Piece(entry.begin, chunks=tensor.stream)
        elif span is None:
            held = _Piece(entry.begin, chunks=partial(checkpoint.tensor_chunks, entry.name))
        else:
            held = _Piece(entry.begin, *span)
    if held is not None:
        yield held
