"""Where the base is for other people: its Hub id, its files there, its card."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dcsurgery.checkpoint.hub import HubUnreachableError, hub_errors
from dcsurgery.errors import CheckpointError, CheckpointNotFoundError, PublishError
from dcsurgery.publishing.failures import NOTHING
from dcsurgery.publishing.target import RemoteFile, list_files, read_text
from dcsurgery.surgery.delta_readme import CARD
from dcsurgery.surgery.plan_file import SurgeryPlan

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@dataclass(frozen=True)
class PublicBase:
    """The base as others can find it. Without `repo_id` they cannot."""

    repo_id: str | None = None
    commit: str | None = None
    files: dict[str, RemoteFile] = field(default_factory=dict)
    card: str = ""
    notes: tuple[str, ...] = ()


def find_public_base(api: HfApi, plan: SurgeryPlan, named: str | None) -> PublicBase:
    """Return where the base of a plan is on the Hub; `named` says so for a base that was a folder.

    Raises PublishError when `named` is another model, and for a delta whose base, or its tower,
    others would not find.
    """
    _require_public_towers(plan)
    repo_id, commit = _identity(plan)
    if named is not None and repo_id is None:
        repo_id, commit = named, _confirm(plan, named)
    elif named is not None and named != repo_id:
        raise PublishError(
            f"the base of this model is {repo_id}, not {named}; {NOTHING}",
            hint="leave --base-model out",
        )
    found = _look_up(api, repo_id, commit) if repo_id else None
    if found is not None:
        return found
    where = f"{repo_id} at {commit or 'its commit'}" if repo_id else f"{_folder(plan).name} (local)"
    if plan.form == "delta":
        raise PublishError(
            f"this delta needs its base, {where}, which others cannot find on this Hub; {NOTHING}",
            hint="push the base first and name it with --base-model USER/BASE, or convert with "
            "--form stock",
        )
    note = f"the base, {where}, is not on this Hub: every file is uploaded, the card names no base"
    return PublicBase(card=_local_card(plan), notes=(note,))


def _folder(plan: SurgeryPlan) -> Path:
    return Path(plan.base.folder or plan.base.id)


def _identity(plan: SurgeryPlan) -> tuple[str | None, str | None]:
    """The base's Hub id and commit: recorded, or told by a folder of the Hub client's cache."""
    if plan.base.folder is None:
        return plan.base.id, plan.base.commit
    parts = _folder(plan).parts
    if len(parts) > 3 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return parts[-3].removeprefix("models--").replace("--", "/"), parts[-1]
    return None, None


def _confirm(plan: SurgeryPlan, named: str) -> str | None:
    """Return the commit of a Hub model whose config, headers and projector are the base's."""
    from dcsurgery.originals import open_model
    from dcsurgery.surgery.base_model import base_hints, check_base

    try:
        checkpoint = open_model(named, hints=base_hints(plan))
        if checkpoint.ref.repo_id is None:
            raise PublishError(
                f"{named} is a folder, not a Hub model; {NOTHING}", hint="name its Hub id"
            )
        check_base(plan, checkpoint)
    except CheckpointError as error:
        raise PublishError(
            f"{error.message}; {NOTHING}",
            hint="name the Hub id of the very model that was converted",
        ) from None
    return checkpoint.ref.commit


def _require_public_towers(plan: SurgeryPlan) -> None:
    """Raise PublishError for a delta whose base takes its vision tower from a folder."""
    for tower in plan.base.towers.values():
        if plan.form == "delta" and Path(tower.place).expanduser().is_dir():
            raise PublishError(
                f"the base of this delta takes its vision tower from {Path(tower.place).name}, a "
                f"folder here, which others do not have; {NOTHING}",
                hint="convert it again with --tower NAME=HUB_ID, or with --form stock",
            )


def _look_up(api: HfApi, repo_id: str, commit: str | None) -> PublicBase | None:
    try:
        with hub_errors(repo_id, commit):
            return _read(api, repo_id, commit)
    except CheckpointError as error:
        missing = isinstance(error, CheckpointNotFoundError)
        if missing and not isinstance(error, HubUnreachableError):
            return None
        raise PublishError(f"{error.message}; {NOTHING}", hint=error.hint) from error


def _read(api: HfApi, repo_id: str, commit: str | None) -> PublicBase:
    from huggingface_hub.errors import GatedRepoError

    info = api.model_info(repo_id, revision=commit)
    sha, notes = str(info.sha), []
    if info.private:
        notes.append(f"{repo_id} is private: only who may read it can load what is pushed")
    if info.gated:
        notes.append(f"{repo_id} is gated: its terms still apply to what is pushed")
    files = list_files(api, repo_id, sha)
    card = f"---\n{info.card_data.to_yaml()}\n---\n" if info.card_data else ""
    if CARD in files:
        try:
            card = read_text(api, repo_id, sha, CARD)
        except GatedRepoError:
            notes.append(f"this account may not read {repo_id}: only its card's metadata is used")
    return PublicBase(repo_id, sha, files, card, tuple(notes))


def _local_card(plan: SurgeryPlan) -> str:
    path = _folder(plan) / CARD
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
