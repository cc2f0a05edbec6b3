"""Both sides of a verification: an output, in a folder or on the Hub, and its base."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dcsurgery.checkpoint.checks import is_foreign_weight
from dcsurgery.checkpoint.contents import Checkpoint, open_checkpoint
from dcsurgery.checkpoint.digests import digest, file_bytes
from dcsurgery.checkpoint.hub import HubUnreachableError, list_repository
from dcsurgery.checkpoint.model_ref import ModelRef, fetch, fetch_files, parse_reference
from dcsurgery.errors import CheckpointNotFoundError, DcSurgeryError
from dcsurgery.originals import is_original
from dcsurgery.originals.adopted import Adopted
from dcsurgery.surgery.base_model import find_base
from dcsurgery.surgery.plan_file import DELTA_FILE, DELTA_FOLDER, SurgeryPlan, read_plan


@dataclass(frozen=True)
class Pair:
    """A converted folder, its plan and its base.

    `stock` is the folder as a checkpoint; None for a delta, and for a broken folder, where `broken`
    says what is wrong with it. Of an output on the Hub `folder` holds all but its weights, which
    `stock` reads by range requests; `listed` are the names of all its files.
    """

    folder: Path
    plan: SurgeryPlan
    base: Checkpoint
    stock: Checkpoint | None
    broken: str | None = None
    listed: frozenset[str] = frozenset()

    def holds(self, name: str) -> bool:
        """Return whether the output has a file of that name."""
        return name in self.listed or os.path.lexists(self.folder / name)


def open_pair(
    output: str | Path,
    against: str | Path | None,
    towers: Mapping[str, str] | None = None,
    *,
    revision: str | None = None,
    whole: bool = True,
) -> Pair:
    """Open both sides of a verification: a folder or a Hub id, and its base.

    Unless `whole`, weights that are on the Hub stay there. Raises CheckpointNotFoundError when the
    output, its plan or the base is missing, and MalformedCheckpointError when the plan or the base
    is broken.
    """
    if not os.path.isdir(output) and str(output)[:1] in "./~":
        raise CheckpointNotFoundError(
            f"there is no folder {output}", hint="name the folder that `dcsurgery convert` wrote"
        )
    ref, listed = parse_reference(output, revision), frozenset[str]()
    if ref.folder is None:
        ref, listed = _fetch_output(ref, whole=whole)
    folder = Path(ref.folder or "")
    plan = read_plan(folder)
    base = _open_base(plan, against, towers, whole)
    if plan.form == "delta":
        return Pair(folder, plan, base, None, listed=listed)
    try:
        remote = listed and not all(os.path.lexists(folder / name) for name in plan.base.files)
        stock = open_checkpoint(str(ref.repo_id), ref.commit) if remote else open_checkpoint(folder)
        return Pair(folder, plan, base, stock, listed=listed)
    except DcSurgeryError as error:
        return Pair(folder, plan, base, None, broken=error.message, listed=listed)


def _fetch_output(ref: ModelRef, *, whole: bool) -> tuple[ModelRef, frozenset[str]]:
    """Fetch an output on the Hub, its weight files only where they are needed or are small.

    Without the Hub, what the cache holds is taken.
    """
    try:
        listing = list_repository(str(ref.repo_id), ref.revision)
    except HubUnreachableError:
        return fetch(ref, cached_only=True), frozenset()
    # Not by commit: the Hub's client would not note the branch, and not find it offline.
    own = f"{DELTA_FOLDER}/"
    small = [n for n in listing.sizes if n.startswith(own) or not is_foreign_weight(n)]
    found = fetch_files(ref, small)
    plan = read_plan(Path(found.folder or ""))
    # A trained stock form keeps a part of its delta in its weight files.
    inside = any(record.file != DELTA_FILE for record in plan.delta)
    if plan.form != "delta" and (whole or inside):
        found = fetch(ref)
    return found, frozenset(listing.sizes)


def _open_base(
    plan: SurgeryPlan,
    against: str | Path | None,
    towers: Mapping[str, str] | None,
    whole: bool,
) -> Checkpoint:
    """Open the base: where it is whole on this machine there, else on the Hub unless `whole`."""
    if whole:
        return find_base(plan, against, towers)
    base = find_base(plan, against, towers, weights=False)
    if base.is_local:
        return base
    if base.ref.repo_id is None:  # only a tower is on the Hub
        return find_base(plan, against, towers)
    try:
        cached = fetch(base.ref, cached_only=True)
        open_checkpoint(Path(cached.folder or ""), pickles=is_original)
    except DcSurgeryError:
        return base
    return find_base(plan, against, towers)


def same_file(
    pair: Pair, stock: Checkpoint, name: str, *, deep: bool = False, cheap: bool = False
) -> bool:
    """Return whether two weight files are known to be equal before a tensor of them is read.

    A hard link is the same file (not taken on trust when `deep`); files on the Hub are named by
    their SHA-256, which a local file is hashed for unless it must be `cheap`.
    """
    mine = next((file for file in stock.weights if file.name == name), None)
    own = next(file for file in pair.base.weights if file.name == name)
    if mine is None or isinstance(pair.base, Adopted) or mine.size != own.size:
        return False
    if pair.base.is_local and stock.is_local:
        return not deep and os.path.samefile(pair.base.path(name), stock.path(name))
    if cheap and (pair.base.is_local or stock.is_local):
        return False
    one, other = _published(pair.base, name), _published(stock, name)
    return one is not None and one == other


def _published(checkpoint: Checkpoint, name: str) -> str | None:
    """Return the SHA-256 of a weight file: as the Hub says, of a local one as it is."""
    if checkpoint.is_local:
        return digest(file_bytes(checkpoint.path(name)))
    return checkpoint.remote_digests.get(name)
