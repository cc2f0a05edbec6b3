"""What makes a folder trustworthy: every refusal that needs no header."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from dcsurgery.checkpoint.reference import ModelRef, is_cache_path
from dcsurgery.errors import (
    CheckpointNotFoundError,
    MalformedCheckpointError,
    RequestError,
    UnsafeFormatError,
)

MAX_JSON = 64 * 1024 * 1024
IGNORED = {".git", ".cache", ".gitattributes", ".gitignore", "__pycache__", ".DS_Store"}
FOREIGN = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5", ".msgpack", ".ot",
    ".safetensors.index.json", ".bin.index.json",
)  # fmt: skip
DELTA_PLAN = "dense_connector/plan.json"


def is_foreign_weight(name: str) -> bool:
    """Return whether a file holds (or indexes) weights that this checkpoint's loader never reads."""
    return name.endswith(FOREIGN)


def changed(name: str) -> MalformedCheckpointError:
    """Return the error for a source that moved under our feet."""
    return MalformedCheckpointError(
        f"{name} changed while it was being read", hint="wait until the model is written, run again"
    )


def list_files(folder: Path, ref: ModelRef) -> list[str]:
    """Return every regular file below a folder as sorted posix paths; links must stay inside it.

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
            if name not in IGNORED:
                safe_path(folder, relative, ref)
                if name in names:
                    found.append(relative)
    return sorted(found)


def safe_path(folder: Path, name: str, ref: ModelRef) -> Path:
    """Return folder / name after checking that it is a regular file that stays inside.

    Inside means the folder, or the same Hub cache when the folder is a snapshot of one.
    """
    path = folder / name
    try:
        real = path.resolve(strict=True)
        mode = real.stat().st_mode
    except (OSError, RuntimeError):
        raise CheckpointNotFoundError(
            f"{name} in {folder} is a link to nothing or cannot be opened",
            hint="the download may be incomplete: fetch the model again",
        ) from None
    inside = real.is_relative_to(folder.resolve())
    in_same_cache = is_cache_path(folder) and _cache_root(folder) in real.parents
    if not inside and not in_same_cache:
        raise UnsafeFormatError(
            f"{name} in {folder} leads out of the folder, to {real}",
            hint="replace the link by the file itself if you trust it",
        )
    if not stat.S_ISREG(mode) and not (stat.S_ISDIR(mode) and not path.is_symlink()):
        raise UnsafeFormatError(
            f"{name} in {folder} is not a regular file", hint="remove it from the model folder"
        )
    return path


def _cache_root(folder: Path) -> Path:
    resolved = folder.resolve()
    return next(
        parent.parent for parent in (resolved, *resolved.parents) if parent.name[:8] == "models--"
    )


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
    if size > MAX_JSON:
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
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a key appears twice")
        return result

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise MalformedCheckpointError(
            f"{name} is not valid JSON: {str(error)[:100]}", hint="fetch the file again"
        ) from None
    if not isinstance(value, dict):
        raise MalformedCheckpointError(f"{name} is not a JSON object", hint="fetch it again")
    return value


def require_checkpoint(ref: ModelRef, files: list[str]) -> None:
    """Refuse folders that are no safetensors checkpoint, saying what they are."""
    if DELTA_PLAN in files and "config.json" not in files:
        raise RequestError(
            f"{ref.name} is a delta written by dcsurgery, not a base model",
            hint=f"load it with dcsurgery.load_model({ref.name!r}), check it with `dcsurgery verify`",
        )
    if "config.json" not in files:
        raise CheckpointNotFoundError(
            f"{ref.name} has no config.json", hint="name the folder that transformers would load"
        )
    single, index = "model.safetensors" in files, "model.safetensors.index.json" in files
    if single and index:
        raise MalformedCheckpointError(
            f"{ref.name} has both model.safetensors and an index of shards",
            hint="transformers would read the single file and leave the rest random: remove one",
        )
    if single or index:
        return
    pickles = [name for name in files if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickles:
        raise UnsafeFormatError(
            f"{ref.name} holds its weights as pickles only ({', '.join(pickles[:3])}), "
            "which can run code when read",
            hint="load it with transformers and save_pretrained() it once: that writes safetensors",
        )
    raise CheckpointNotFoundError(
        f"{ref.name} has neither model.safetensors nor model.safetensors.index.json",
        hint="fetch the model again, or name the folder that holds its weights",
    )


def read_weight_map(index: Mapping[str, Any], name: str) -> dict[str, str]:
    """Return the index's tensor -> file mapping, every file name checked."""
    mapping = index.get("weight_map")
    if not isinstance(mapping, dict) or not mapping or not isinstance(index.get("metadata"), dict):
        raise MalformedCheckpointError(
            f"{name} lacks its weight_map or its metadata object", hint="fetch the file again"
        )
    for value in mapping.values():
        _check_file_name(value, name)
    return mapping


def _check_file_name(value: Any, index: str) -> None:
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
    if not value.endswith(".safetensors"):
        raise UnsafeFormatError(
            f"{index} names {value!r}, which is not a safetensors file",
            hint="re-save the model as safetensors",
        )


def compare_index(mapping: Mapping[str, str], homes: Mapping[str, str], name: str) -> None:
    """Raise MalformedCheckpointError unless index and headers place every tensor alike."""
    for tensor in sorted({*mapping, *homes}):
        stated, found = mapping.get(tensor), homes.get(tensor)
        if stated != found:
            places = (
                f"{name} places tensor {tensor} in {stated or 'no file'}, "
                f"it is in {found or 'no file'}"
            )
            raise MalformedCheckpointError(
                places, hint="the index belongs to other shards: fetch the model again"
            )
