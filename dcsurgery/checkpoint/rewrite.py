"""Write checkpoints byte by byte: new headers, new tensors, everything else moved untouched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dcsurgery.checkpoint import copying
from dcsurgery.checkpoint.checks import render_object
from dcsurgery.checkpoint.compose import NewTensor, compose_file
from dcsurgery.checkpoint.contents import CONFIG, INDEX, Checkpoint
from dcsurgery.checkpoint.copying import Transfer
from dcsurgery.checkpoint.headers import DTYPE_BITS, PAGE, lay_out, render_header

__all__ = [
    "NewTensor",
    "copy_side_files",
    "estimate_bytes",
    "updated_index",
    "write_checkpoint",
    "write_tensors",
]


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


def updated_index(checkpoint: Checkpoint, replacements: Mapping[str, NewTensor]) -> str:
    """Return the index with its totals corrected, keys in their order."""
    grown_bytes = grown_values = 0
    index: dict[str, Any] = dict(checkpoint.index or {})
    for name, tensor in replacements.items():
        entry = checkpoint.tensors.get(name)
        grown_bytes += tensor.nbytes - (entry.nbytes if entry else 0)
        grown_values += _count(tensor.shape) - (_count(entry.shape) if entry else 0)
        if entry is None:
            home = _home_of_new(checkpoint, replacements)
            index["weight_map"] = {**index["weight_map"], name: home}
    metadata = dict(index["metadata"])
    total = sum(entry.nbytes for entry in checkpoint.tensors.values())
    metadata["total_size"] = total + grown_bytes
    if isinstance(metadata.get("total_parameters"), int):
        metadata["total_parameters"] += grown_values
    index["metadata"] = metadata
    return render_object(index, INDEX)


def _home_of_new(checkpoint: Checkpoint, replacements: Mapping[str, NewTensor]) -> str:
    """Return the file that tensors go to which the checkpoint has not: the first replaced one's."""
    known = next(name for name in replacements if name in checkpoint.tensors)
    return checkpoint.file_of(known).name


def _count(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def estimate_bytes(
    checkpoint: Checkpoint, tensors: Mapping[str, NewTensor], *, linked: bool = False
) -> int:
    """Return an upper bound of the bytes a stock copy writes (no block is shared).

    `linked` leaves out the weight files that would be hard links. Side files of a Hub model that is
    not on this machine are not counted.
    """
    copied = [
        file.size
        for file in checkpoint.weights
        if not linked or not tensors.keys().isdisjoint(file.header.tensors)
    ]
    side = [checkpoint.side_size(name) for name in checkpoint.side_files]
    added = sum(item.nbytes + PAGE for item in tensors.values())
    return sum(copied) + sum(side) + added + 2 * len(checkpoint.config_text)


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
    checkpoint.require_unchanged()
    link = link and not checkpoint.ref.in_cache
    done: list[Transfer] = []
    for file in checkpoint.weights:
        target = _place(folder, file.name)
        own = {name: new for name, new in replacements.items() if name in file.header.tensors}
        if own and file.name == _home_of_new(checkpoint, replacements):
            own |= {n: new for n, new in replacements.items() if n not in checkpoint.tensors}
        source = checkpoint.whole_file(file.name)
        if own or source is None:
            moved = compose_file(checkpoint, file.header, target, own)
        else:
            moved = copying.transfer_file(source, target, link=link)
        done.append(Transfer(file.name, moved.mode, moved.written))
    done += copy_side_files(checkpoint, checkpoint.side_files, folder)
    if checkpoint.index is not None:
        text = updated_index(checkpoint, replacements).encode()
        done.append(Transfer(INDEX, "write", copying.write_file(folder / INDEX, [text])))
    checkpoint.require_unchanged()
    text = config_text.encode()
    done.append(Transfer(CONFIG, "write", copying.write_file(folder / CONFIG, [text])))
    return tuple(done)


def copy_side_files(
    checkpoint: Checkpoint, names: Iterable[str], folder: Path
) -> Iterator[Transfer]:
    """Bring side files to a folder, one by one."""
    for name in names:
        target = _place(folder, name)
        if checkpoint.is_made(name):
            written = copying.write_file(target, [checkpoint.read_file(name)])
            yield Transfer(name, "write", written)
        else:
            moved = copying.transfer_file(checkpoint.path(name), target)
            yield Transfer(name, moved.mode, moved.written)


def _place(folder: Path, name: str) -> Path:
    target = folder / name
    copying.make_folder(target.parent)
    return target
