"""A checkpoint in another format, presented as the Hugging Face one that it means.

Nothing is written or loaded to adopt one: the tensors get other names and other homes, and their
bytes stay where they are until someone reads or copies them. What the format lacks (padded rows,
processor files, a tower that lies in a repository of its own) is made or joined here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dcsurgery.checkpoint import checks
from dcsurgery.checkpoint.contents import CONFIG, Checkpoint, Stamp, WeightFile
from dcsurgery.checkpoint.headers import DTYPE_BITS, Header, TensorEntry, lay_out, render_header
from dcsurgery.checkpoint.weight_files import SINGLE
from dcsurgery.errors import CheckpointNotFoundError

METADATA = {"format": "pt"}


@dataclass(frozen=True)
class Presented:
    """A tensor as it is presented: its bytes are those of `tensor` in `origin`.

    `made()` yields them instead where they are not the origin's as they stand.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    origin: Checkpoint
    tensor: str
    made: Callable[[], Iterable[bytes]] | None = None

    @classmethod
    def renamed(cls, origin: Checkpoint, tensor: str, name: str) -> Presented:
        """Return a tensor of `origin` under another name."""
        entry = origin.tensors[tensor]
        return cls(name, entry.dtype, entry.shape, origin, tensor)


@dataclass(frozen=True)
class TowerRecord:
    """Where a tower was found: a Hub id (at `commit`) or a folder; empty when it was inside."""

    place: str
    commit: str | None = None


@dataclass(frozen=True)
class Template:
    """A chat template: a conversation's name, or "own"; `text` is the template of a file."""

    name: str
    text: str | None = None


@dataclass(frozen=True)
class InstalledConnector:
    """A connector that a checkpoint has already: `blocks` are its hidden states.

    `rows` yields D's bytes [out, G * width] in the presented projector's dtype; None along tokens.
    """

    kind: str
    blocks: tuple[tuple[int, ...], ...]
    rows: Callable[[], Iterable[bytes]] | None


@dataclass(frozen=True)
class Adoption:
    """What the presentation was made from.

    `format` and `class_name` are the original's, `towers` where each named tower was found,
    `template` whose prompts it got, `notes` what a user should know.
    """

    source: Checkpoint
    format: str
    class_name: str
    towers: Mapping[str, TowerRecord] = field(default_factory=dict)
    template: Template | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Adopted(Checkpoint):
    """A presented checkpoint. `made_files` are side files the original does not have as they are.

    `connector` is the one it has been trained with, None for an ordinary model.
    """

    adoption: Adoption | None = None
    presented: Mapping[str, Presented] = field(default_factory=dict, compare=False)
    made_files: Mapping[str, bytes] = field(default_factory=dict)
    connector: InstalledConnector | None = None

    @cached_property
    def origins(self) -> tuple[Checkpoint, ...]:
        """The checkpoints whose bytes are presented, the model itself first."""
        found = {id(item.origin): item.origin for item in self.presented.values()}
        source = self._adoption.source
        return (source, *(item for item in found.values() if item is not source))

    @property
    def _adoption(self) -> Adoption:
        if self.adoption is None:
            raise AssertionError("an adopted checkpoint knows what it was adopted from")
        return self.adoption

    @property
    def is_local(self) -> bool:
        """True when every byte is on this machine."""
        return all(origin.is_local for origin in self.origins)

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders whose files are read."""
        return tuple(folder for origin in self.origins for folder in origin.folders)

    def whole_file(self, name: str) -> Path | None:
        """Return None: no file holds just the bytes of a presented one."""
        return None

    def path(self, name: str) -> Path:
        """Return the local path of a side file that is the original's own."""
        if name in self.made_files or name not in self.side_files:
            raise CheckpointNotFoundError(
                f"{name} of {self.ref.name} is presented, but it is not a file",
                hint="convert the model: the output has it",
            )
        return self._adoption.source.path(name)

    def span(self, tensor: str) -> tuple[Path, int, int] | None:
        """Return file, start and length of a tensor's bytes; None where they are made."""
        item = self.presented[tensor]
        return None if item.made is not None else item.origin.span(item.tensor)

    def tensor_chunks(self, name: str) -> Iterator[bytes]:
        """Yield a tensor's bytes in order."""
        item = self.presented[name]
        yield from item.origin.tensor_chunks(item.tensor) if item.made is None else item.made()

    def read_file(self, name: str) -> bytes:
        """Return a side file's bytes."""
        made = self.made_files.get(name)
        return self._adoption.source.read_file(name) if made is None else made

    def is_made(self, name: str) -> bool:
        """Return whether a side file is made rather than the original's own."""
        return name in self.made_files

    def side_size(self, name: str) -> int:
        """Bytes of a side file, where they are known without asking the Hub."""
        made = self.made_files.get(name)
        return self._adoption.source.side_size(name) if made is None else len(made)

    def stamp(self) -> dict[str, Stamp]:
        """Return the stamps of the original's own files."""
        return self._adoption.source.stamp()

    def require_unchanged(self) -> None:
        """Raise MalformedCheckpointError when a file of any origin is not the one opened."""
        for origin in self.origins:
            origin.require_unchanged()


def present(  # noqa: PLR0913 - what a checkpoint consists of
    adoption: Adoption,
    files: Sequence[Sequence[Presented]],
    config: Mapping[str, Any],
    made_files: Mapping[str, bytes],
    kept_files: Sequence[str],
    connector: InstalledConnector | None = None,
    *,
    indexed: bool = False,
) -> Adopted:
    """Return the checkpoint that `files` (tensors of one weight file each) make up.

    `config` is config.json as presented, `made_files` are side files by name, `kept_files` those of
    the source that travel along as they are. `indexed` gives even a single weight file an index.
    """
    groups = [list(group) for group in files if group]
    indexed = indexed or len(groups) > 1
    weights = tuple(
        _weight_file(
            group, f"model-{at:05d}-of-{len(groups):05d}.safetensors" if indexed else SINGLE
        )
        for at, group in enumerate(groups, start=1)
    )
    source = adoption.source
    names = sorted({*made_files, *kept_files})
    return Adopted(
        ref=source.ref,
        config=dict(config),
        config_text=checks.render_object(config, CONFIG),
        weights=weights,
        index=_index(weights) if indexed else None,
        side_files=tuple(names),
        left_out=tuple(sorted({*source.left_out, *source.side_files} - set(names))),
        set_aside=source.set_aside,
        remote_sizes=source.remote_sizes,
        adoption=adoption,
        presented={item.name: item for group in groups for item in group},
        made_files=dict(made_files),
        connector=connector,
    )


def _weight_file(group: Sequence[Presented], name: str) -> WeightFile:
    # Wider dtypes first, so that every tensor is aligned; else the order of the bytes on disk.
    ordered = sorted(group, key=lambda item: -DTYPE_BITS[item.dtype])
    entries: list[TensorEntry] = lay_out([(i.name, i.dtype, i.shape) for i in ordered])
    start = len(render_header(entries, METADATA))
    header = Header({entry.name: entry for entry in entries}, dict(METADATA), start)
    return WeightFile(name, header.file_size, header)


def _index(weights: Sequence[WeightFile]) -> dict[str, Any]:
    homes = {name: file.name for file in weights for name in file.header.tensors}
    total = sum(file.header.data_size for file in weights)
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(homes.items()))}


def render_json(value: Mapping[str, Any]) -> bytes:
    """Return a made JSON file's bytes."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
