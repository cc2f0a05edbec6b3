"""Which model is meant: a folder, or a Hub id at a revision."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from dcsurgery.checkpoint.hub import hub_errors
from dcsurgery.errors import CheckpointNotFoundError, RequestError

# Everything a stock checkpoint needs; other weight formats of the same model stay on the Hub.
LEFT_ON_HUB = (
    "*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.onnx", "*.h5", "*.msgpack", "*.ot",
    "original/*", "consolidated*", "onnx/*",
)  # fmt: skip


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
        """True when the folder is a Hub cache snapshot, whose files nothing else may share."""
        return self.folder is not None and is_cache_path(self.folder)


def is_cache_path(path: Path) -> bool:
    """Return whether a path lies in a Hub cache (models--org--name/snapshots or blobs)."""
    parts = path.resolve().parts
    return any(
        part.startswith("models--") and following in ("snapshots", "blobs", "refs")
        for part, following in zip(parts, (*parts[1:], ""), strict=True)
    )


def parse_reference(model: str | Path, revision: str | None = None) -> ModelRef:
    """Return the reference for a folder (looked for first) or a Hub id.

    Raises CheckpointNotFoundError for a path that does not exist, RequestError for a revision of a
    folder or a file where a folder is expected.
    """
    name = str(model)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise RequestError(
                f"{name} is a folder, which has no revision {revision!r}",
                hint="leave --revision out, or name a Hub id",
            )
        return ModelRef(name=name, folder=folder)
    if folder.exists():
        raise RequestError(f"{name} is a file", hint="name the folder that holds config.json")
    if not _looks_like_repo(name):
        raise CheckpointNotFoundError(
            f"there is no folder {name}, and it is not a Hub id",
            hint="check the path, or write a Hub id such as llava-hf/llava-1.5-7b-hf",
        )
    return ModelRef(name=name, repo_id=name, revision=revision)


def _looks_like_repo(name: str) -> bool:
    import re

    part = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}"
    return re.fullmatch(f"{part}(/{part})?", name) is not None and ".." not in name


def fetch(ref: ModelRef) -> ModelRef:
    """Download a Hub model into huggingface_hub's cache and return the reference to its snapshot.

    A folder is returned unchanged. Raises CheckpointNotFoundError or CheckpointError.
    """
    if ref.folder is not None or ref.repo_id is None:
        return ref
    with hub_errors(ref.repo_id, ref.revision):
        from huggingface_hub import snapshot_download

        path = snapshot_download(
            ref.repo_id, revision=ref.commit or ref.revision, ignore_patterns=list(LEFT_ON_HUB)
        )
    folder = Path(path)
    return replace(ref, folder=folder, commit=folder.name)
