"""A checkpoint's files, opened by header only and checked before anyone relies on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dcsurgery.checkpoint import checks
from dcsurgery.checkpoint.headers import (
    Header,
    TensorEntry,
    header_length,
    parse_header,
    read_header,
)
from dcsurgery.checkpoint.hub import HubUnreachableError, list_repository, read_range
from dcsurgery.checkpoint.reference import ModelRef, fetch, parse_reference
from dcsurgery.errors import AnatomyError, CheckpointNotFoundError, MalformedCheckpointError

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONNECTIONS = 8

# Inode, bytes, modification time in ns.
Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class WeightFile:
    """One safetensors file: its name in the folder, its bytes, its header."""

    name: str
    size: int
    header: Header


@dataclass(frozen=True)
class Checkpoint:
    """A model's files. Nothing but JSON and headers has been read.

    `side_files` are all files that travel with the weights (tokenizer, processor, code, ...), as
    posix paths; `left_out` are weights in other formats and safetensors files outside the index,
    which no loader of this checkpoint reads; `remote_sizes` the bytes of every file still on the
    Hub; `stamps` of local files were taken before any was read.
    """

    ref: ModelRef
    config: dict[str, Any]
    config_text: str
    weights: tuple[WeightFile, ...]
    index: dict[str, Any] | None
    side_files: tuple[str, ...]
    left_out: tuple[str, ...]
    remote_sizes: Mapping[str, int] = field(default_factory=dict)
    stamps: Mapping[str, Stamp] = field(default_factory=dict, compare=False)

    @cached_property
    def tensors(self) -> dict[str, TensorEntry]:
        """Every tensor of every weight file by name."""
        return {name: entry for file in self.weights for name, entry in file.header.tensors.items()}

    @cached_property
    def _homes(self) -> dict[str, WeightFile]:
        return {name: file for file in self.weights for name in file.header.tensors}

    def file_of(self, tensor: str) -> WeightFile:
        """Return the file that holds a tensor. Raises KeyError for an unknown name."""
        return self._homes[tensor]

    def find(self, suffix: str) -> str:
        """Return the one tensor name that ends with a dotted suffix. Raises AnatomyError."""
        found = [name for name in self.tensors if name == suffix or name.endswith("." + suffix)]
        if len(found) != 1:
            what = "no tensor is" if not found else f"{len(found)} tensors are"
            raise AnatomyError(
                f"{what} named ...{suffix} in {self.ref.name}",
                hint="run `dcsurgery inspect MODEL` to see what the checkpoint holds",
            )
        return found[0]

    def path(self, name: str) -> Path:
        """Return the local path of a file of this checkpoint."""
        if self.ref.folder is None:
            raise CheckpointNotFoundError(
                f"the files of {self.ref.name} are not on this machine",
                hint="fetch them first (open_checkpoint(..., weights=True))",
            )
        return self.ref.folder / name

    def read_tensor(self, name: str) -> bytes:
        """Return a tensor's bytes, from the file or by a range request."""
        file, entry = self.file_of(name), self.tensors[name]
        start = file.header.data_start + entry.begin
        if self.ref.folder is None:
            return read_range(
                str(self.ref.repo_id), str(self.ref.commit), file.name, start, entry.nbytes
            )
        try:
            with self.path(file.name).open("rb") as opened:
                opened.seek(start)
                raw = opened.read(entry.nbytes)
        except OSError:
            raise checks.changed(file.name) from None
        if len(raw) != entry.nbytes:
            raise checks.changed(file.name)
        return raw

    def read_file(self, name: str) -> bytes:
        """Return a side file's bytes, from the folder or by a range request."""
        if self.ref.folder is None:
            size = checks.bounded(self.remote_sizes[name], name)
            return read_range(str(self.ref.repo_id), str(self.ref.commit), name, 0, size)
        try:
            return checks.safe_path(self.ref.folder, name).read_bytes()
        except OSError:
            raise checks.changed(name) from None

    def stamp(self) -> dict[str, Stamp]:
        """Return the stamp of every local file that is copied, as it is now."""
        names = [CONFIG, *(file.name for file in self.weights), *self.side_files]
        if self.index is not None:
            names.append(INDEX)
        return {name: _stamp(self.path(name), name) for name in names}

    def require_unchanged(self) -> None:
        """Raise MalformedCheckpointError when a local file is not the one that was opened."""
        if self.ref.folder is None:
            return
        for name, found in self.stamp().items():
            if self.stamps[name] != found:
                raise checks.changed(name)


def _stamp(path: Path, name: str) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        raise checks.changed(name) from None
    return found.st_ino, found.st_size, found.st_mtime_ns


def open_checkpoint(
    model: str | Path, revision: str | None = None, *, weights: bool = False
) -> Checkpoint:
    """Open a folder or a Hub model and check all its headers.

    A Hub model is read by range requests (config, index and header bytes only); `weights` then
    fetches it into huggingface_hub's cache. Where the Hub cannot be reached, a cached snapshot is
    opened instead. Raises CheckpointError of the fitting kind.
    """
    ref = parse_reference(model, revision)
    if ref.folder is None:
        try:
            remote = _open_remote(ref)
        except HubUnreachableError:
            ref = fetch(ref, cached_only=not weights)
        else:
            if not weights:
                return remote
            # Not by commit: huggingface_hub would not note the branch, and not find it offline.
            ref = fetch(ref)
    return _open_folder(ref, Path(ref.folder or ""))


def _open_folder(ref: ModelRef, folder: Path) -> Checkpoint:
    files = checks.list_files(folder)
    stamps = {name: _stamp(folder / name, name) for name in files}
    if ref.in_cache and ref.commit is None:
        ref = replace(ref, commit=folder.resolve().name)

    def read_json(name: str) -> str:
        return checks.read_text(folder / name)

    def open_weights(name: str) -> WeightFile:
        header = read_header(checks.safe_path(folder, name))
        return WeightFile(name, header.file_size, header)

    return replace(_assemble(ref, files, read_json, open_weights), stamps=stamps)


def _open_remote(ref: ModelRef) -> Checkpoint:
    repo_id = str(ref.repo_id)
    listing = list_repository(repo_id, ref.revision)
    ref = replace(ref, commit=listing.commit)

    def read_json(name: str) -> str:
        size = checks.bounded(listing.sizes[name], name)
        return checks.decode(read_range(repo_id, listing.commit, name, 0, size), name)

    def open_weights(name: str) -> WeightFile:
        size = listing.sizes[name]
        blob = read_range(repo_id, listing.commit, name, 0, min(size, 8))
        blob += read_range(repo_id, listing.commit, name, 8, header_length(blob, size, name))
        return WeightFile(name, size, parse_header(blob, size, name))

    found = _assemble(ref, sorted(listing.sizes), read_json, open_weights)
    return replace(found, remote_sizes=listing.sizes)


def _assemble(
    ref: ModelRef,
    files: list[str],
    read_json: Callable[[str], str],
    open_weights: Callable[[str], WeightFile],
) -> Checkpoint:
    checks.require_checkpoint(ref, files, read_json)
    config_text = read_json(CONFIG)
    config = checks.parse_object(config_text, CONFIG)
    index = checks.parse_object(read_json(INDEX), INDEX) if INDEX in files else None
    mapping = checks.read_weight_map(index, INDEX) if index is not None else None
    names = sorted(set(mapping.values())) if mapping is not None else [SINGLE]
    for name in names:
        if name not in files:
            raise CheckpointNotFoundError(
                f"{ref.name} lacks {name}" + (f", which {INDEX} names" if mapping else ""),
                hint="the download may be incomplete: fetch the model again",
            )
    # In parallel for the Hub, where each shard waits for two answers.
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        opened = tuple(pool.map(open_weights, names))
    homes: dict[str, str] = {}
    for file in opened:
        for tensor in file.header.tensors:
            if tensor in homes:
                raise MalformedCheckpointError(
                    f"tensor {tensor[:200]!r} is in both {homes[tensor]} and {file.name}",
                    hint="loaders would pick one silently; remove the stale copy and its file",
                )
            homes[tensor] = file.name
    if mapping is not None:
        checks.compare_index(mapping, homes, INDEX)
    known = {CONFIG, INDEX, *names}
    others = [name for name in files if name not in known]
    return Checkpoint(
        ref=ref,
        config=config,
        config_text=config_text,
        weights=opened,
        index=index,
        side_files=tuple(name for name in others if not checks.is_foreign_weight(name)),
        left_out=tuple(name for name in others if checks.is_foreign_weight(name)),
    )
