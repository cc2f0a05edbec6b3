"""Write checkpoints byte by byte: new headers, new tensors, everything else moved untouched."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcsurgery.checkpoint import copying
from dcsurgery.checkpoint.checks import changed
from dcsurgery.checkpoint.contents import CONFIG, INDEX, Checkpoint
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


def write_tensors(
    target: Path, tensors: Sequence[NewTensor], metadata: Mapping[str, str]
) -> Transfer:
    """Write a new safetensors file, wider dtypes first so that every tensor is aligned."""
    ordered = sorted(tensors, key=lambda item: (-DTYPE_BITS[item.dtype], item.name))
    entries = lay_out([(item.name, item.dtype, item.shape) for item in ordered])

    def chunks() -> Iterator[bytes]:
        yield render_header(entries, metadata)
        for item in ordered:
            yield from item.stream()

    return Transfer(target.name, "write", copying.write_file(target, chunks()))


def rewrite_shard(
    source: Path, header: Header, target: Path, replacements: Mapping[str, NewTensor]
) -> Transfer:
    """Write `source` with some tensors replaced, in the same order, every other byte moved as it
    is.

    The new header is padded so that the data keeps its offset modulo the page size: on file systems
    that share blocks, unchanged data costs nothing. Raises CheckpointError.
    """
    old = list(header.tensors.values())
    new = lay_out(
        [
            (item.name, item.dtype, item.shape)
            for item in (replacements.get(entry.name, entry) for entry in old)
        ]
    )
    head = render_header(new, header.metadata, congruent_to=header.data_start % PAGE)
    try:
        reading = os.open(source.resolve(), os.O_RDONLY)
        try:
            writing = copying.create(target)
            try:
                written = copying.write_all(writing, head)
                for start, length, to, tensor in _steps(old, new, replacements):
                    at = len(head) + to
                    if tensor is not None:
                        os.lseek(writing, at, os.SEEK_SET)
                        written += sum(copying.write_all(writing, c) for c in tensor.stream())
                    else:
                        begin = header.data_start + start
                        written += copying.move_range(reading, writing, begin, length, at)
                os.fsync(writing)
            finally:
                os.close(writing)
        finally:
            os.close(reading)
    except OSError as error:
        copying.raise_write_error(error, target)
    return Transfer(target.name, "rewrite", written)


def _steps(
    old: Sequence[TensorEntry], new: Sequence[TensorEntry], replacements: Mapping[str, NewTensor]
) -> Iterator[tuple[int, int, int, NewTensor | None]]:
    """Yield (source offset, bytes, target offset, replacement); unchanged neighbours join."""
    start = length = to = 0
    for before, after in zip(old, new, strict=True):
        if before.name not in replacements:
            if not length:
                start, to = before.begin, after.begin
            length += before.nbytes
            continue
        if length:
            yield start, length, to, None
            length = 0
        yield before.begin, before.nbytes, after.begin, replacements[before.name]
    if length:
        yield start, length, to, None


def updated_index(checkpoint: Checkpoint, replacements: Mapping[str, NewTensor]) -> str:
    """Return the index with its totals corrected, keys in their order."""
    grown_bytes = grown_values = 0
    for name, tensor in replacements.items():
        entry = checkpoint.tensors[name]
        grown_bytes += tensor.nbytes - entry.nbytes
        grown_values += _count(tensor.shape) - _count(entry.shape)
    index: dict[str, Any] = dict(checkpoint.index or {})
    metadata = dict(index["metadata"])
    total = sum(entry.nbytes for entry in checkpoint.tensors.values())
    metadata["total_size"] = total + grown_bytes
    if isinstance(metadata.get("total_parameters"), int):
        metadata["total_parameters"] += grown_values
    index["metadata"] = metadata
    return json.dumps(index, indent=2, ensure_ascii=False) + "\n"


def _count(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def estimate_bytes(checkpoint: Checkpoint, tensors: Iterable[NewTensor]) -> int:
    """Return an upper bound of the bytes a stock copy writes (no block is shared)."""
    weights = sum(file.size for file in checkpoint.weights)
    side = sum(checkpoint.path(n).stat().st_size for n in checkpoint.side_files)
    added = sum(item.nbytes + PAGE for item in tensors)
    return weights + side + added + 2 * len(checkpoint.config_text)


def write_checkpoint(
    checkpoint: Checkpoint,
    folder: Path,
    replacements: Mapping[str, NewTensor],
    config_text: str,
    *,
    link: bool = False,
) -> tuple[Transfer, ...]:
    """Write a whole checkpoint into an empty folder, only shards with new tensors rewritten.

    config.json comes last, so that nothing takes a half-written folder for a model. `link` hard
    links unchanged weights, never those of a Hub cache. Raises CheckpointError for a full disk and
    for a source that changes underway.
    """
    before = checkpoint.stamp()
    link = link and not checkpoint.ref.in_cache
    done: list[Transfer] = []
    for file in checkpoint.weights:
        target = _place(folder, file.name)
        own = {name: new for name, new in replacements.items() if name in file.header.tensors}
        source = checkpoint.path(file.name)
        if own:
            moved = rewrite_shard(source, file.header, target, own)
        else:
            moved = copying.transfer_file(source, target, link=link)
        done.append(Transfer(file.name, moved.mode, moved.written))
    for name in checkpoint.side_files:
        moved = copying.transfer_file(checkpoint.path(name), _place(folder, name))
        done.append(Transfer(name, moved.mode, moved.written))
    if checkpoint.index is not None:
        text = updated_index(checkpoint, replacements).encode()
        done.append(Transfer(INDEX, "write", copying.write_file(folder / INDEX, [text])))
    if checkpoint.stamp() != before:
        after = checkpoint.stamp()
        raise changed(next(name for name in before if before[name] != after[name]))
    text = config_text.encode()
    done.append(Transfer(CONFIG, "write", copying.write_file(folder / CONFIG, [text])))
    return tuple(done)


def _place(folder: Path, name: str) -> Path:
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    return target
