"""A checkpoint's files, opened by header only and checked before anyone relies on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
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
from dcsurgery.checkpoint.leftovers import is_leftover
from dcsurgery.checkpoint.model_ref import ModelRef, fetch, fetch_cached, parse_reference
from dcsurgery.checkpoint.pickles import open_reader, read_pickle
from dcsurgery.checkpoint.weight_files import (
    CONFIG,
    INDEX,
    PICKLE_INDEX,
    Layout,
    find_layout,
    never,
    require_config,
)
from dcsurgery.errors import AnatomyError, CheckpointNotFoundError, MalformedCheckpointError

__all__ = ["CONFIG", "INDEX", "Checkpoint", "Stamp", "WeightFile", "open_checkpoint"]

CONNECTIONS = 8
BLOCK = 8 * 1024 * 1024

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
    which no loader of this checkpoint reads; `set_aside` what trainings and editors left there, by
    is_leftover; `remote_sizes` the bytes of every file still on the Hub, `remote_digests` the
    SHA-256 of its large ones; `stamps` of local files were taken before any was read.
    """

    ref: ModelRef
    config: dict[str, Any]
    config_text: str
    weights: tuple[WeightFile, ...]
    index: dict[str, Any] | None
    side_files: tuple[str, ...]
    left_out: tuple[str, ...]
    remote_sizes: Mapping[str, int] = field(default_factory=dict)
    remote_digests: Mapping[str, str] = field(default_factory=dict, compare=False)
    stamps: Mapping[str, Stamp] = field(default_factory=dict, compare=False)
    index_name: str = INDEX
    set_aside: tuple[str, ...] = ()

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

    @property
    def is_local(self) -> bool:
        """True when every byte is on this machine."""
        return self.ref.folder is not None

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders whose files are read."""
        return () if self.ref.folder is None else (self.ref.folder,)

    def whole_file(self, name: str) -> Path | None:
        """Return the local weight file of that name; None where no file holds just these bytes."""
        return self.path(name)

    def span(self, tensor: str) -> tuple[Path, int, int] | None:
        """Return local file, start and length of a tensor's bytes; None where no file has them."""
        file, entry = self.file_of(tensor), self.tensors[tensor]
        return self.path(file.name), file.header.data_start + entry.begin, entry.nbytes

    def is_made(self, name: str) -> bool:
        """Return whether a side file has no file of its own on disk."""
        return False

    def side_size(self, name: str) -> int:
        """Bytes of a side file, where they are known without asking the Hub; else 0."""
        return self.stamps[name][1] if name in self.stamps else 0

    def read_tensor(self, name: str) -> bytes:
        """Return a tensor's bytes, from the file or by a range request."""
        return b"".join(self.tensor_chunks(name))

    def tensor_chunks(self, name: str) -> Iterator[bytes]:
        """Yield a tensor's bytes in order, of a local file in blocks, so that memory stays flat."""
        file, entry = self.file_of(name), self.tensors[name]
        start = file.header.data_start + entry.begin
        if self.ref.folder is None:
            repo_id, commit = str(self.ref.repo_id), str(self.ref.commit)
            yield read_range(repo_id, commit, file.name, start, entry.nbytes)
            return
        left = entry.nbytes
        try:
            with self.path(file.name).open("rb") as opened:
                opened.seek(start)
                while left:
                    raw = opened.read(min(BLOCK, left))
                    if not raw:
                        raise checks.changed(file.name)
                    left -= len(raw)
                    yield raw
        except OSError:
            raise checks.changed(file.name) from None

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
        names = [*(file.name for file in self.weights), *self.side_files]
        if self.config_text:  # a tower on its own may have none
            names.append(CONFIG)
        if self.index is not None:
            names.append(self.index_name)
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
    model: str | Path,
    revision: str | None = None,
    *,
    weights: bool = False,
    pickles: Callable[[dict[str, Any]], bool] = never,
    keep_all: bool = False,
) -> Checkpoint:
    """Open a folder or a Hub model and check all its headers. Raises CheckpointError.

    A Hub model is read by range requests (config, index and header bytes only); `weights` then
    fetches it into huggingface_hub's cache. Where the Hub cannot be reached, a cached snapshot is
    opened instead. `pickles(config)` says whether weights in torch's zip files are accepted where
    there are no others; nothing in them is run. What it raises comes before any weights are
    read. `keep_all` counts leftovers of a training as side files.
    """
    found = _open(model, revision, weights=weights, pickles=pickles)
    if not keep_all:
        return found
    kept = found.set_aside
    stamps = dict(found.stamps)
    if found.ref.folder is not None:
        stamps |= {name: _stamp(checks.safe_path(found.ref.folder, name), name) for name in kept}
    return replace(found, side_files=(*found.side_files, *kept), set_aside=(), stamps=stamps)


def _open(
    model: str | Path,
    revision: str | None,
    *,
    weights: bool,
    pickles: Callable[[dict[str, Any]], bool],
) -> Checkpoint:
    ref = parse_reference(model, revision)
    if ref.folder is None:
        try:
            remote = _open_remote(ref, pickles)
        except HubUnreachableError:
            ref = fetch_cached(ref, weights, pickles is not never)
        else:
            if not weights:
                return remote
            # Not by commit: huggingface_hub would not note the branch, and not find it offline.
            ref = fetch(ref, pickles=remote.index_name == PICKLE_INDEX)
    return _open_folder(ref, Path(ref.folder or ""), pickles)


def _open_folder(
    ref: ModelRef, folder: Path, pickles: Callable[[dict[str, Any]], bool]
) -> Checkpoint:
    files = checks.list_files(folder)
    stamps = {name: _stamp(folder / name, name) for name in files if not is_leftover(name)}
    if ref.in_cache and ref.commit is None:
        ref = replace(ref, commit=folder.resolve().name)

    def read_json(name: str) -> str:
        return checks.read_text(folder / name)

    def open_weights(name: str, pickled: bool) -> WeightFile:
        path = checks.safe_path(folder, name)
        if not pickled:
            header = read_header(path)
            return WeightFile(name, header.file_size, header)
        size = path.stat().st_size
        with open_reader(path) as read:
            return WeightFile(name, size, read_pickle(read, size, name))

    return replace(_assemble(ref, files, read_json, open_weights, pickles), stamps=stamps)


def _open_remote(ref: ModelRef, pickles: Callable[[dict[str, Any]], bool]) -> Checkpoint:
    repo_id = str(ref.repo_id)
    listing = list_repository(repo_id, ref.revision)
    ref = replace(ref, commit=listing.commit)

    def read_json(name: str) -> str:
        size = checks.bounded(listing.sizes[name], name)
        return checks.decode(read_range(repo_id, listing.commit, name, 0, size), name)

    def open_weights(name: str, pickled: bool) -> WeightFile:
        size = listing.sizes[name]
        read = partial(read_range, repo_id, listing.commit, name)
        if pickled:
            return WeightFile(name, size, read_pickle(read, size, name))
        blob = read(0, min(size, 8))
        blob += read(8, header_length(blob, size, name))
        return WeightFile(name, size, parse_header(blob, size, name))

    names = sorted(name for name in listing.sizes if not checks.is_ignored(name))
    found = _assemble(ref, names, read_json, open_weights, pickles)
    return replace(found, remote_sizes=listing.sizes, remote_digests=listing.digests)


def _assemble(
    ref: ModelRef,
    files: list[str],
    read_json: Callable[[str], str],
    open_weights: Callable[[str, bool], WeightFile],
    pickles: Callable[[dict[str, Any]], bool],
) -> Checkpoint:
    require_config(ref, files, read_json)
    config_text = read_json(CONFIG)
    config = checks.parse_object(config_text, CONFIG)
    layout = find_layout(ref, files, read_json, pickles=pickles(config))
    # In parallel for the Hub, where each shard waits for two answers.
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        opened = tuple(pool.map(lambda name: open_weights(name, layout.pickled), layout.names))
    _check_homes(opened, layout)
    known = {CONFIG, layout.index_name, *layout.names}
    rest = [name for name in files if name not in known]
    others = [name for name in rest if not is_leftover(name)]
    return Checkpoint(
        ref=ref,
        config=config,
        config_text=config_text,
        weights=opened,
        index=layout.index,
        side_files=tuple(name for name in others if not checks.is_foreign_weight(name)),
        left_out=tuple(name for name in others if checks.is_foreign_weight(name)),
        index_name=layout.index_name,
        set_aside=tuple(name for name in rest if is_leftover(name)),
    )


def _check_homes(opened: Sequence[WeightFile], layout: Layout) -> None:
    homes: dict[str, str] = {}
    for file in opened:
        for tensor in file.header.tensors:
            if tensor in homes:
                raise MalformedCheckpointError(
                    f"tensor {tensor[:200]!r} is in both {homes[tensor]} and {file.name}",
                    hint="loaders would pick one silently; remove the stale copy and its file",
                )
            homes[tensor] = file.name
    if layout.index is not None:
        checks.compare_index(layout.mapping, homes, layout.index_name)
