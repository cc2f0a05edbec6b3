"""What makes a folder trustworthy: every refusal that needs no header."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from dcsurgery.checkpoint.leftovers import is_leftover
from dcsurgery.checkpoint.model_ref import FOREIGN_PREFIXES, FOREIGN_SUFFIXES
from dcsurgery.errors import (
    CheckpointNotFoundError,
    MalformedCheckpointError,
    UnsafeFormatError,
)

MAX_JSON = 64 * 1024 * 1024
MAX_CONFIG = 10 * 1024 * 1024
WRITTEN = ".dcsurgery.json"
IGNORED = {".git", ".cache", ".gitattributes", ".gitignore", WRITTEN}
FOREIGN = (*FOREIGN_SUFFIXES, ".safetensors", ".safetensors.index.json", ".bin.index.json")


def is_foreign_weight(name: str) -> bool:
    """Return whether a file holds (or indexes) weights that this checkpoint's loader never reads.

    Safetensors files outside the index count: some engines read every one they find in a folder, so
    a copy of a stray file could replace tensors of the converted model.
    """
    return name.endswith(FOREIGN) or name.startswith(FOREIGN_PREFIXES)


def is_ignored(name: str) -> bool:
    """Return whether a file of a folder or repository is git's, a cache's or our own mark."""
    return name.split("/")[0] in IGNORED


def changed(name: str) -> MalformedCheckpointError:
    """Return the error for a source that moved under our feet."""
    return MalformedCheckpointError(
        f"{name} changed while it was being read",
        hint="wait until the model is written, then run again",
    )


def list_files(folder: Path) -> list[str]:
    """Return every regular file below a folder as sorted posix paths; links must stay inside it,
    but for leftovers of a training.

    Raises UnsafeFormatError for links that leave the folder (or the same Hub cache) and for
    anything that is neither file nor folder.
    """
    found: list[str] = []

    def fail(error: OSError) -> None:
        raise MalformedCheckpointError(
            f"{error.filename} cannot be read: {error.strerror}", hint="check its permissions"
        ) from None

    for root, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if name not in IGNORED)
        for name in [*names, *(item for item in folders if (Path(root) / item).is_symlink())]:
            relative = (Path(root) / name).relative_to(folder).as_posix()
            if is_leftover(relative):
                found.append(relative)  # looked at no further: trackers link whatever they like
            elif name not in IGNORED:
                path = safe_path(folder, relative)
                _require_usable(path, relative)
                if name in names:
                    found.append(relative)
    return sorted(found)


def _require_usable(path: Path, name: str) -> None:
    if not name.isprintable():
        raise MalformedCheckpointError(
            f"the file name {name!r} is not printable text", hint="rename or remove the file"
        )
    if not os.access(path, os.R_OK):
        raise MalformedCheckpointError(f"{name} cannot be read", hint="check its permissions")


def safe_path(folder: Path, name: str) -> Path:
    """Return folder / name after checking that it is a regular file that stays inside.

    Inside means the folder, or the same Hub cache when the folder is a snapshot of one.
    """
    path = folder / name
    try:
        real = path.resolve(strict=True)
        mode = real.stat().st_mode
    except (OSError, RuntimeError):
        raise CheckpointNotFoundError(
            f"{name!r} in {folder} is a link to nothing or cannot be opened",
            hint="the download may be incomplete: fetch the model again",
        ) from None
    home = folder.resolve()
    if not any(real.is_relative_to(root) for root in (home, *_blob_folders(home))):
        raise UnsafeFormatError(
            f"{name!r} in {folder} leads out of the folder, to {real}",
            hint="replace the link by the file itself (`cp -rL` does) if you trust it",
        )
    if not stat.S_ISREG(mode) and not (stat.S_ISDIR(mode) and not path.is_symlink()):
        raise UnsafeFormatError(
            f"{name!r} in {folder} is not a regular file", hint="remove it from the model folder"
        )
    return path


def _blob_folders(home: Path) -> tuple[Path, ...]:
    """Where a snapshot's files may live: not all of the cache, a hostile folder could fake one."""
    for snapshot in (home, *home.parents):
        model = snapshot.parent.parent
        if snapshot.parent.name == "snapshots" and model.name.startswith("models--"):
            return model / "blobs", model.parent / "blobs"
    return ()


def read_text(path: Path) -> str:
    """Return a JSON file's text. Raises MalformedCheckpointError when it cannot be read."""
    try:
        bounded(path.stat().st_size, path.name)
        return decode(path.read_bytes(), path.name)
    except OSError as error:
        raise MalformedCheckpointError(
            f"{path} cannot be read: {error.strerror}", hint="check its permissions"
        ) from None


def bounded(size: int, name: str) -> int:
    """Return `size`, or raise MalformedCheckpointError when no JSON file is that large."""
    if size > (MAX_CONFIG if name == "config.json" else MAX_JSON):
        raise MalformedCheckpointError(
            f"{name} has {size} bytes, far more than such a file needs", hint="fetch it again"
        )
    return size


def decode(raw: bytes, name: str) -> str:
    """Return UTF-8 text. Raises MalformedCheckpointError."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise MalformedCheckpointError(
            f"{name} is not UTF-8 text", hint="fetch the file again"
        ) from None


def parse_object(text: str, name: str) -> dict[str, Any]:
    """Parse a JSON object without duplicate keys. Raises MalformedCheckpointError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise ValueError(f"the key {key[:80]!r} appears twice")
            result[key] = value
        return result

    try:
        value = json.loads(text, object_pairs_hook=unique)
        if "\\ud" in text.lower():
            # Half of a surrogate pair is not Unicode: it could not be written back.
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise MalformedCheckpointError(
            f"{name} is not valid JSON: {str(error)[:100]}", hint="fetch the file again"
        ) from None
    if not isinstance(value, dict):
        raise MalformedCheckpointError(f"{name} is not a JSON object", hint="fetch it again")
    return value


def render_object(value: Mapping[str, Any], name: str) -> str:
    """Return an object as JSON text, keys in their order. Raises MalformedCheckpointError."""
    try:
        return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    except RecursionError:
        raise MalformedCheckpointError(
            f"{name} is nested too deeply", hint="fetch the file again"
        ) from None


def read_weight_map(
    index: Mapping[str, Any], name: str, suffix: str = ".safetensors"
) -> dict[str, str]:
    """Return the index's tensor -> file mapping, every file name checked."""
    mapping = index.get("weight_map")
    if not isinstance(mapping, dict) or not mapping or not isinstance(index.get("metadata"), dict):
        raise MalformedCheckpointError(
            f"{name} lacks its weight_map or its metadata object", hint="fetch the file again"
        )
    for value in mapping.values():
        _check_file_name(value, name, suffix)
    return mapping


def _check_file_name(value: Any, index: str, suffix: str) -> None:
    bad = (
        not isinstance(value, str)
        or "\\" in value
        or "\0" in value
        or PurePosixPath(value).is_absolute()
        or ".." in PurePosixPath(value).parts
        or str(PurePosixPath(value)) != value
    )
    if bad:
        raise UnsafeFormatError(
            f"{index} names {value!r}, which is not a file inside the folder",
            hint="do not load this checkpoint with other tools either: they would follow the path",
        )
    if not value.endswith(suffix):
        raise UnsafeFormatError(
            f"{index} names {value!r}, which is not a {suffix.removeprefix('.')} file",
            hint="re-save the model as safetensors",
        )


def compare_index(mapping: Mapping[str, str], homes: Mapping[str, str], name: str) -> None:
    """Raise MalformedCheckpointError unless index and headers place every tensor alike."""
    for tensor in sorted({*mapping, *homes}):
        stated, found = mapping.get(tensor), homes.get(tensor)
        if stated != found:
            places = (
                f"{name} places tensor {tensor[:200]!r} in {stated or 'no file'}, "
                f"it is in {found or 'no file'}"
            )
            raise MalformedCheckpointError(
                places, hint="the index belongs to other shards: fetch the model again"
            )
