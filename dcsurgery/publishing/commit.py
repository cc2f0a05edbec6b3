"""Send the changes of a push: upload first, then one commit on the stated parent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

from dcsurgery.publishing.base import PublicBase
from dcsurgery.publishing.changes import Change
from dcsurgery.publishing.failures import AGAIN, NOTHING, hub_calls, status_of, translate
from dcsurgery.publishing.target import MAIN, RemoteFile, Target, list_files

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi

_T = TypeVar("_T")
UNKNOWN = "could not find out whether it was committed"
# A request that was sent and not answered may still be carried out.
LOST = "the Hub's answer was lost"
SO_FAR = "so far"
TIMEOUT_S = 10.0


class PushInterrupted(KeyboardInterrupt):
    """Ctrl-C during a push; the message says whether anything was committed."""


@dataclass(frozen=True)
class Sent:
    """A finished push: commit, pull request where one was asked for, what is worth telling."""

    commit: str
    pull_request: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Commit:
    """What to commit where. `base` is where copies come from."""

    api: HfApi
    target: Target
    base: PublicBase
    changes: Sequence[Change]
    message: str
    create_pr: bool = False

    def send(self, *, private: bool) -> Sent:
        """Create what is missing, upload, commit.

        Raises PublishError, or PushInterrupted; both say whether anything was committed.
        """
        empty = NOTHING
        if not self.target.exists:
            empty = f"{NOTHING} (the new repository {self.target.repo_id} is empty)"
        try:
            ready = replace(self, target=_prepare(self.api, self.target, private=private))
            return ready._upload_and_commit(empty)
        except PushInterrupted:
            raise
        except KeyboardInterrupt:
            raise PushInterrupted(f"interrupted; {NOTHING}; {AGAIN}") from None

    def _upload_and_commit(self, empty: str) -> Sent:
        additions, deletions = self._additions("add"), self._deletions()
        self._upload(additions, empty)
        copies = self._copies()
        try:
            return self._finish([*additions, *copies, *deletions], empty, copying=bool(copies))
        except _CopyRefused:
            more = self._additions("copy")
        self._upload(more, empty)
        sent = self._finish([*additions, *more, *deletions], empty)
        note = "the Hub refused to copy unchanged files from the base: they were uploaded"
        return replace(sent, notes=(note, *sent.notes))

    def _additions(self, action: str) -> list[Any]:
        from huggingface_hub import CommitOperationAdd

        return [
            CommitOperationAdd(change.path, change.content.source)
            for change in self.changes
            if change.action == action and change.content is not None
        ]

    def _deletions(self) -> list[Any]:
        from huggingface_hub import CommitOperationDelete

        return [CommitOperationDelete(c.path) for c in self.changes if c.action == "delete"]

    def _copies(self) -> list[Any]:
        from huggingface_hub import CommitOperationCopy

        return [
            CommitOperationCopy(
                change.path,
                change.path,
                src_revision=self.base.commit,
                src_repo_id=self.base.repo_id,
                src_repo_type="model",
            )
            for change in self.changes
            if change.action == "copy"
        ]

    def _upload(self, additions: list[Any], empty: str) -> None:
        """Send the large files; those that are there already are not sent again."""
        with hub_calls(self.target.repo_id, lambda: empty):
            interruptible(
                lambda: self.api.preupload_lfs_files(
                    self.target.repo_id,
                    additions,
                    revision=self.target.branch,
                    create_pr=self.create_pr,
                    free_memory=False,
                )
            )

    def _finish(self, operations: list[Any], empty: str, *, copying: bool = False) -> Sent:
        try:
            info = self._commit(operations)
        except KeyboardInterrupt:
            landed, outcome = self._look_again(f"{empty} {SO_FAR}")
            then = "" if landed else f"; {AGAIN}"
            raise PushInterrupted(f"interrupted; {outcome}{then}") from None
        except Exception as error:
            if copying and _is_copy_refusal(error):
                raise _CopyRefused from error
            if 400 <= (status_of(error) or 500) < 500:
                raise translate(error, self.target.repo_id, empty) from error
            answered = status_of(error) is not None
            landed, outcome = self._look_again(empty if answered else f"{empty} {SO_FAR}")
            if landed is None:
                raise translate(error, self.target.repo_id, outcome) from error
            return Sent(
                landed, notes=(f"{LOST} ({type(error).__name__}), but the commit is there",)
            )
        return Sent(info.oid, info.pr_url)

    def _commit(self, operations: list[Any]) -> CommitInfo:
        return self.api.create_commit(
            self.target.repo_id,
            operations,
            commit_message=self.message,
            revision=self.target.branch,
            parent_commit=self.target.head,
            create_pr=self.create_pr,
        )

    def _look_again(self, empty: str) -> tuple[str | None, str]:
        """Return the commit that has all our changes, if there is one, and what to tell of it."""
        repo, branch = self.target.repo_id, self.target.branch
        if self.create_pr:
            return None, f"{UNKNOWN}: look at the pull requests of {repo}"
        try:
            head = self.api.model_info(repo, revision=branch, timeout=TIMEOUT_S).sha
            files = list_files(self.api, repo, str(head)) if head != self.target.head else {}
        except Exception:
            return None, f"{UNKNOWN}: look at {repo}"
        if head is not None and files and all(map(partial(_is_done, files), self.changes)):
            return head, f"commit {head[:12]} was made"
        return None, empty


class _CopyRefused(Exception):
    """The Hub would not copy files between repositories; they can be uploaded instead."""


def _is_copy_refusal(error: Exception) -> bool:
    """Return whether copying failed, not the commit: no Xet hash, another region, no permission."""
    response = getattr(error, "response", None)
    if response is not None:
        refused = 400 <= response.status_code < 500 and response.status_code not in (401, 429)
        return refused and "/lfs-files/duplicate" in str(response.url)
    kinds = ("FileDuplicationError", "NotImplementedError", "ValueError", "EntryNotFoundError")
    return type(error).__name__ in kinds


def _is_done(files: dict[str, RemoteFile], change: Change) -> bool:
    if change.content is None:
        return change.path not in files
    return change.content.equals(files.get(change.path))


def _prepare(api: HfApi, target: Target, *, private: bool) -> Target:
    """Return the target with a repository and a branch to commit to."""
    head, repo = target.head, target.repo_id
    with hub_calls(repo):
        if not target.exists:
            api.create_repo(repo, private=private)
            head = api.model_info(repo).sha
    # From here on there is a repository, whatever happens.
    with hub_calls(repo, lambda: f"{NOTHING} (the new repository {repo} is empty)"):
        if target.branch != MAIN and not target.branch_exists:
            api.create_branch(repo, branch=target.branch, revision=head)
    return replace(target, exists=True, head=head, branch_exists=True)


def interruptible(call: Callable[[], _T]) -> _T:
    """Return what a call returns, made in a thread of its own.

    The client's uploads wait for their threads on Ctrl-C, minutes with a large shard; waiting for
    this one can be given up at once.
    """
    done: Future[_T] = Future()

    def run() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    Thread(target=run, daemon=True).start()
    return done.result()
