"""open_clip's folders: one weight file under a name of its own, and no config.json."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path

from dcsurgery.checkpoint import checks
from dcsurgery.checkpoint.contents import Checkpoint, Stamp, WeightFile
from dcsurgery.checkpoint.headers import header_length, parse_header, read_header
from dcsurgery.checkpoint.hub import HubUnreachableError, fetch_file, list_repository, read_range
from dcsurgery.checkpoint.model_ref import ModelRef, parse_reference
from dcsurgery.checkpoint.pickles import open_reader, read_pickle
from dcsurgery.errors import CheckpointError, CheckpointNotFoundError

PICKLE = "open_clip_pytorch_model.bin"
# In the order of choice; the last one is torch's zip file.
NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", PICKLE)


def open_open_clip(place: str, commit: str | None = None, *, weights: bool) -> Checkpoint:
    """Open the weights of an open_clip folder or Hub repository by their header.

    Of a repository only header bytes are read; `weights` fetches that one file. Its config stays
    empty: shapes say all there is to know. Raises CheckpointError of the fitting kind.
    """
    ref = parse_reference(place, commit)
    if ref.folder is not None:
        return _open_file(ref, _choose(checks.list_files(ref.folder), place))
    repo_id = str(ref.repo_id)
    try:
        listing = list_repository(repo_id, ref.revision)
    except HubUnreachableError:
        return _open_fetched(ref, NAMES)
    name = _choose(listing.sizes, place)
    if weights:
        return _open_fetched(ref, (name,))
    size, read = listing.sizes[name], partial(read_range, repo_id, listing.commit, name)
    if name == PICKLE:
        header = read_pickle(read, size, name)
    else:
        blob = read(0, min(size, 8))
        header = parse_header(blob + read(8, header_length(blob, size, name)), size, name)
    return _checkpoint(replace(ref, commit=listing.commit), WeightFile(name, size, header), {})


def _choose(files: Collection[str], place: str) -> str:
    for name in NAMES:
        if name in files:
            return name
    raise CheckpointNotFoundError(
        f"{place} has no open_clip weights ({', '.join(NAMES)})",
        hint="name the folder of the open_clip model, or its Hub id",
    )


def _open_fetched(ref: ModelRef, names: Collection[str]) -> Checkpoint:
    """Open the first of `names` that the Hub, or the cache where it cannot be reached, has.

    Not by commit: huggingface_hub would not note the branch, and not find it offline.
    """
    problem: CheckpointError | None = None
    for name in names:
        try:
            folder = fetch_file(str(ref.repo_id), ref.revision, name).parent
        except CheckpointError as error:
            problem = problem or error
        else:
            return _open_file(replace(ref, folder=folder, commit=folder.name), name)
    raise problem or CheckpointNotFoundError(f"{ref.name} has no weights", hint="check the id")


def _open_file(ref: ModelRef, name: str) -> Checkpoint:
    path = checks.safe_path(Path(ref.folder or ""), name)
    found = path.stat()
    if name == PICKLE:
        with open_reader(path) as read:
            header = read_pickle(read, found.st_size, name)
    else:
        header = read_header(path)
    stamp: Stamp = (found.st_ino, found.st_size, found.st_mtime_ns)
    return _checkpoint(ref, WeightFile(name, found.st_size, header), {name: stamp})


def _checkpoint(ref: ModelRef, weights: WeightFile, stamps: dict[str, Stamp]) -> Checkpoint:
    return Checkpoint(
        ref=ref,
        config={},
        config_text="",
        weights=(weights,),
        index=None,
        side_files=(),
        left_out=(),
        stamps=stamps,
    )
