"""Which model is meant: a folder, or a Hub id at a revision."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from dcsurgery.checkpoint.hub import hub_errors
from dcsurgery.errors import CheckpointNotFoundError, RequestError

# Everything a stock checkpoint needs; other weight formats of the same model stay on the Hub.
FOREIGN_SUFFIXES = (
    ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".gguf", ".onnx", ".onnx_data", ".h5",
    ".msgpack", ".ot", ".tflite",
)  # fmt: skip
FOREIGN_PREFIXES = ("original/", "onnx/", "consolidated")
LEFT_ON_HUB = (
    *(f"*{suffix}" for suffix in FOREIGN_SUFFIXES),
    *(f"{prefix}*" for prefix in FOREIGN_PREFIXES),
)
_SHARED_BLOB = re.compile(r"/blobs/([0-9a-f]{2})/\1[0-9a-f]{62}$")
_REPO_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_REPO_ID = re.compile(rf"({_REPO_PART}/)?{_REPO_PART}(?<![.-])")


@dataclass(frozen=True)
class ModelRef:
    """A model as the user named it, and where it is; `commit` is set for Hub models once known."""

    name: str
    folder: Path | None = None
    repo_id: str | None = None
    revision: str | None = None
    commit: str | None = None

    @property
    def in_cache(self) -> bool:
        """True when the folder or one of its weights lies in a Hub cache: share nothing."""
        if self.folder is None:
            return False
        return is_cache_path(self.folder) or any(
            map(is_cache_path, self.folder.glob("*.safetensors"))
        )


def is_cache_path(path: Path) -> bool:
    """Return whether a path lies in a Hub cache (models--org--name/... or blobs/ab/ab...)."""
    real = path.resolve()
    parts = real.parts
    return _SHARED_BLOB.search(real.as_posix()) is not None or any(
        part.startswith("models--") and following in ("snapshots", "blobs", "refs")
        for part, following in zip(parts, (*parts[1:], ""), strict=True)
    )


def parse_reference(model: str | Path, revision: str | None = None) -> ModelRef:
    """Return the reference for a folder (looked for first) or a Hub id.

    Raises CheckpointNotFoundError for a path that does not exist, RequestError for a revision of a
    folder or a file where a folder is expected.
    """
    name = str(model)
    if not name.strip():
        raise RequestError("the model's name is empty", hint="name a folder or a Hub id")
    # os.path answers False for names that are too long or hold NUL; pathlib raises.
    folder = Path(os.path.expanduser(name))
    if os.path.isdir(folder):
        if revision is not None:
            raise RequestError(
                f"{name} is a folder, which has no revision {revision!r}",
                hint="leave --revision out, or name a Hub id",
            )
        return ModelRef(name=name, folder=folder)
    if os.path.lexists(folder):
        raise RequestError(f"{name} is not a folder", hint="name the folder that holds config.json")
    if not _looks_like_repo(name):
        raise CheckpointNotFoundError(
            f"there is no folder {name[:200]!r}, and it is not a Hub id",
            hint="check the path, or write a Hub id such as llava-hf/llava-1.5-7b-hf",
        )
    return ModelRef(name=name, repo_id=name, revision=revision)


def _looks_like_repo(name: str) -> bool:
    # huggingface_hub's own rules; importing it for a mistyped path would take a second.
    forbidden = "--" in name or ".." in name or name.endswith(".git") or len(name) > 96
    return not forbidden and _REPO_ID.fullmatch(name) is not None


def fetch(ref: ModelRef, *, cached_only: bool = False, pickles: bool = False) -> ModelRef:
    """Download a Hub model into huggingface_hub's cache and return the reference to its snapshot.

    A folder is returned unchanged. `cached_only` asks nobody and accepts a snapshot that lacks
    files (what is missing shows when it is opened). `pickles` brings weights that are .bin files.
    Raises CheckpointNotFoundError or CheckpointError.
    """
    if ref.folder is not None or ref.repo_id is None:
        return ref
    with hub_errors(ref.repo_id, ref.revision):
        from huggingface_hub import snapshot_download

        left = [pattern for pattern in LEFT_ON_HUB if not (pickles and pattern == "*.bin")]
        wanted = ["config.json", "model*.safetensors*", *(["pytorch_model*"] if pickles else [])]
        # Everything is expected of a download, but only config and weights of a cached copy.
        path = snapshot_download(
            ref.repo_id,
            revision=ref.commit or ref.revision,
            ignore_patterns=None if cached_only else left,
            allow_patterns=wanted if cached_only else None,
            local_files_only=cached_only,
        )
    folder = Path(path)
    return replace(ref, folder=folder, commit=folder.name)


def local_folder(model: str | Path, revision: str | None = None) -> Path:
    """Return the folder of a model, fetched if need be. Raises CheckpointNotFoundError."""
    found = fetch(parse_reference(model, revision)).folder
    if found is None:
        raise CheckpointNotFoundError(f"{model} was not found", hint="check the path or the Hub id")
    return found


def fetch_files(ref: ModelRef, names: Iterable[str]) -> ModelRef:
    """Download some files of a Hub model into the cache; return the reference to its snapshot.

    Raises CheckpointNotFoundError or CheckpointError.
    """
    with hub_errors(str(ref.repo_id), ref.revision):
        from huggingface_hub import snapshot_download

        wanted = [glob.escape(name) for name in names]
        path = Path(
            snapshot_download(
                str(ref.repo_id), revision=ref.commit or ref.revision, allow_patterns=wanted
            )
        )
    return replace(ref, folder=path, commit=path.name)


def fetch_cached(ref: ModelRef, weights: bool, pickles: bool) -> ModelRef:
    """Return a snapshot of the cache, with pickles only where there are no other weights.

    A download that left them on the Hub would count as one that is not whole.
    """
    found = fetch(ref, cached_only=not weights)
    if pickles and not any(Path(found.folder or "").glob("*.safetensors")):
        return fetch(ref, cached_only=not weights, pickles=True)
    return found
