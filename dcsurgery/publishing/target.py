"""What is on the Hub already: the repository that is pushed to, and the base's."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dcsurgery.errors import PublishError
from dcsurgery.publishing.failures import NOTHING, hub_calls

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MAIN = "main"
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class RemoteFile:
    """A file on the Hub: git's id of its content, the SHA-256 where it is a large one.

    `shared`: the Hub can copy it to another repository by itself.
    """

    size: int
    blob: str
    sha256: str | None
    shared: bool


@dataclass(frozen=True)
class Target:
    """The repository and branch a push goes to. `head` is None where there is nothing yet."""

    repo_id: str
    branch: str
    exists: bool
    head: str | None = None
    branch_exists: bool = False
    files: dict[str, RemoteFile] = field(default_factory=dict)


def look_up(api: HfApi, repo_id: str, revision: str | None, *, private: bool) -> Target:
    """Return the state of the repository that is pushed to.

    A branch that does not exist yet starts at main. Raises PublishError for a commit instead of a
    branch, and for a public repository that should be private.
    """
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    branch = revision or MAIN
    if _COMMIT.fullmatch(branch) or branch.startswith("refs/"):
        raise PublishError(
            f"{branch} is not a branch, and only branches can be pushed to; {NOTHING}",
            hint="name a branch with --revision, or use --create-pr",
        )
    with hub_calls(repo_id):
        try:
            info = api.model_info(repo_id)
        except RepositoryNotFoundError:
            return Target(repo_id, branch, exists=False)
        if private and info.private is False:
            raise PublishError(
                f"{repo_id} exists and is public, --private would not hide it; {NOTHING}",
                hint="make it private in its settings on the Hub, or leave --private out",
            )
        head, found = info.sha, True
        if branch != MAIN:
            try:
                head = api.model_info(repo_id, revision=branch).sha
            except RevisionNotFoundError:
                found = False
        return Target(repo_id, branch, True, head, found, list_files(api, repo_id, str(head)))


def list_files(api: HfApi, repo_id: str, commit: str) -> dict[str, RemoteFile]:
    """Return every file of a repository at a commit, by its path."""
    from huggingface_hub.hf_api import RepoFile

    return {
        item.path: RemoteFile(
            size=item.size,
            blob=item.blob_id,
            sha256=item.lfs.sha256 if item.lfs else None,
            shared=bool(item.lfs and getattr(item, "xet_hash", None)),
        )
        for item in api.list_repo_tree(repo_id, recursive=True, revision=commit)
        if isinstance(item, RepoFile)
    }


def read_text(api: HfApi, repo_id: str, commit: str, path: str) -> str:
    """Return a small text file of a repository at a commit."""
    local = api.hf_hub_download(repo_id, path, revision=commit)
    return Path(local).read_text(encoding="utf-8", errors="replace")
