"""What a push does to each file: copy it on the Hub, add it, skip it, delete it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from dcsurgery.checkpoint.checks import is_ignored
from dcsurgery.checkpoint.leftovers import is_leftover
from dcsurgery.errors import PublishError
from dcsurgery.publishing.failures import NOTHING
from dcsurgery.publishing.target import RemoteFile, Target
from dcsurgery.surgery.plan_file import DELTA_FOLDER, PLAN_FILE

Action = Literal["copy", "add", "skip", "delete"]
BLOCK = 8 * 1024 * 1024


@dataclass(frozen=True)
class Content:
    """A file that should be in the repository: on disk, or made here. Digests when asked for."""

    source: Path | bytes

    @cached_property
    def size(self) -> int:
        """Its bytes."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    def _blocks(self) -> Iterator[bytes]:
        if isinstance(self.source, bytes):
            yield self.source
            return
        with self.source.open("rb") as file:
            while block := file.read(BLOCK):
                yield block

    @cached_property
    def sha256(self) -> str:
        """The digest large files are known by."""
        digest = hashlib.sha256()
        for block in self._blocks():
            digest.update(block)
        return digest.hexdigest()

    @cached_property
    def blob(self) -> str:
        """The id git gives it."""
        digest = hashlib.sha1(b"blob %d\0" % self.size)
        for block in self._blocks():
            digest.update(block)
        return digest.hexdigest()

    def equals(self, remote: RemoteFile | None) -> bool:
        """Return whether a file on the Hub has the same bytes; read only where sizes agree."""
        if remote is None or remote.size != self.size:
            return False
        if remote.sha256 is not None:
            return self.sha256 == remote.sha256
        return self.blob == remote.blob


@dataclass(frozen=True)
class Change:
    """One file of a push. `size` is what it has; only "add" sends anything."""

    path: str
    action: Action
    size: int
    content: Content | None = None


def local_files(folder: Path) -> dict[str, Content]:
    """Return the files of a converted folder by their path in the repository.

    Hidden ones and what a training left stay behind, but for .gitattributes; links are followed.
    """
    return {name: Content(path) for name, path in _names(folder) if not _stays(name)}


def left_behind(folder: Path) -> list[str]:
    """Return the files that are not pushed, but for what is the repository's or our own."""
    names = [name for name, _ in _names(folder) if _stays(name)]
    return [name for name in names if not is_ignored(name)]


def _stays(name: str) -> bool:
    return is_leftover(name) or (is_ignored(name) and name.split("/")[0] != ".gitattributes")


def _names(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path


def plan_changes(
    contents: Mapping[str, Content], target: Target, base: Mapping[str, RemoteFile]
) -> list[Change]:
    """Return what to do for every file, by path; `base` are the files of the base's repository.

    What lies in the repository and no longer belongs to the model is deleted where dcsurgery put
    it. Raises PublishError where it did not.
    """
    changes = []
    for path, content in contents.items():
        action: Action = "add"
        if content.equals(target.files.get(path)):
            action = "skip"
        elif path in base and base[path].shared and content.equals(base[path]):
            action = "copy"
        changes.append(Change(path, action, content.size, content))
    stale = _stale(contents, target)
    changes += [Change(path, "delete", target.files[path].size) for path in stale]
    return sorted(changes, key=lambda change: change.path)


def _stale(contents: Mapping[str, Content], target: Target) -> list[str]:
    """Files that would be loaded beside, or instead of, what is pushed."""
    gone = [path for path in target.files if path not in contents]
    model = [path for path in gone if _is_model(path)]
    if model and PLAN_FILE not in target.files:
        raise PublishError(
            f"{target.repo_id} holds another model ({', '.join(model[:3])}); {NOTHING}",
            hint="push to a repository of its own",
        )
    return model + [path for path in gone if path.startswith(f"{DELTA_FOLDER}/")]


def _is_model(path: str) -> bool:
    weights = path.endswith((".safetensors", ".safetensors.index.json"))
    return "/" not in path and (weights or path == "config.json")
