"""push_checkpoint(): a converted folder becomes a repository on the Hub."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcsurgery.checkpoint.leftovers import describe_leftovers
from dcsurgery.checkpoint.model_ref import local_folder
from dcsurgery.errors import PublishError, RequestError
from dcsurgery.printing import units
from dcsurgery.printing.sheet import Printed, Sheet
from dcsurgery.publishing.account import connect, full_name, require_write, who_am_i
from dcsurgery.publishing.base import PublicBase, find_public_base
from dcsurgery.publishing.card import CardFacts
from dcsurgery.publishing.changes import (
    Action,
    Change,
    Content,
    left_behind,
    local_files,
    plan_changes,
)
from dcsurgery.publishing.commit import Commit
from dcsurgery.publishing.documents import (
    VERIFY_FILE,
    all_evaluations,
    make_documents,
    old_card,
    public_plan,
    read_evaluations,
    standing_reports,
    with_report,
)
from dcsurgery.publishing.failures import NOTHING, hub_calls, safe
from dcsurgery.publishing.metadata import lenient_metadata, settle_licence, split_card
from dcsurgery.publishing.secrets import refuse_secrets
from dcsurgery.publishing.target import MAIN, Target, look_up
from dcsurgery.publishing.tried import TRIAL_FILE, Tried, require_trial, standing_trial
from dcsurgery.surgery.delta_readme import CARD
from dcsurgery.surgery.plan_file import read_plan

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from dcsurgery.evaluation.eval_report import EvalReport
    from dcsurgery.surgery.plan_file import SurgeryPlan
    from dcsurgery.verification import Report


ACTIONS: dict[Action, str] = {
    "add": "added",
    "copy": "copied on the Hub",
    "skip": "there already",
    "delete": "deleted",
}


class UnverifiedError(PublishError):
    """The model did not verify, so it was not pushed; `report` says why."""

    def __init__(self, report: Report) -> None:
        failed = [check.name for check in report.checks if not check.passed]
        super().__init__(
            f"{report.output} did not verify ({', '.join(failed)}); {NOTHING}",
            hint="convert again, or push it as it is with --no-verify",
        )
        self.report = report


@dataclass(frozen=True)
class PushResult(Printed):
    """What a push did, or would do (`dry_run`). `commit` is None when nothing was committed."""

    repo_id: str
    branch: str
    url: str
    changes: tuple[Change, ...]
    verified: bool
    notes: tuple[str, ...]
    dry_run: bool
    creates_repo: bool = False
    commit: str | None = None
    pull_request: str | None = None
    seconds: float = 0.0

    @property
    def bytes_to_send(self) -> int:
        """Bytes of all files that are added: an upper bound, the Hub knows many chunks already."""
        return sum(change.size for change in self.changes if change.action == "add")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; keys only ever get added."""
        names = ("dry_run", "repo_id", "branch", "url", "creates_repo", "verified", "commit")
        more = ("pull_request", "bytes_to_send", "seconds")
        files = [
            {"path": change.path, "action": change.action, "bytes": change.size}
            for change in self.changes
        ]
        values = {name: getattr(self, name) for name in (*names, *more)}
        return {"schema_version": 1, **values, "files": files, "notes": list(self.notes)}

    def show(self, out: Sheet) -> None:
        """Put it on a sheet; of a dry run every file."""
        if self.dry_run:
            rows = [(c.path, c.action, f"{c.size:,}") for c in self.changes]
            out.table(("file", "action", "bytes"), rows, "wlr")
            out.show()
        counts = Counter(change.action for change in self.changes)
        tally = ", ".join(f"{counts[a]} {word}" for a, word in ACTIONS.items() if counts[a])
        facts = [("files", tally), ("sends", f"{units.size(self.bytes_to_send)} at most")]
        if self.creates_repo:
            facts.append(("repository", f"{self.repo_id}, new"))
        facts += [("note", note) for note in self.notes]
        if self.commit:
            facts.append(("commit", self.commit))
        out.facts(facts)
        out.show()
        out.show(self._verdict(), "bold green")

    def _verdict(self) -> str:
        if self.dry_run:
            return f"dry run: nothing was sent to {self.repo_id}"
        if self.pull_request:
            return f"pull request opened: {self.pull_request}"
        if self.commit is None:
            return f"{self.url} has all of it already: nothing was committed"
        return f"pushed: {self.url}"


@dataclass(frozen=True)
class _Request:
    """What was asked for, as push_checkpoint got it."""

    repo_id: str
    revision: str | None
    token: str | None
    base_model: str | None
    license: str | None
    private: bool
    create_pr: bool
    overwrite_card: bool


@dataclass(frozen=True)
class _Ready:
    """Everything that was found out before a large file is opened."""

    api: HfApi
    plan: SurgeryPlan
    target: Target
    base: PublicBase
    card: str | None
    licence: dict[str, Any]


def push_checkpoint(  # noqa: PLR0913 - one keyword per CLI option, by design
    model: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    dry_run: bool = False,
    verify: bool = True,
    against: str | Path | None = None,
    evals: Sequence[str | Path] = (),
    require: str | Path | None = None,
    require_anyway: bool = False,
    base_model: str | None = None,
    license: str | None = None,
    overwrite_card: bool = False,
    token: str | None = None,
) -> PushResult:
    """Push a converted model to a Hub repository, in one commit, and return what was done.

    `model` is a folder or a Hub id. Permission, name and licence are checked first; then the model
    is verified; files that the repository has are skipped, unchanged files of a base on the same
    Hub are copied there, the rest is uploaded. `require` is the trial.json of a trial: a model that
    does not beat its control there, or loses on a question type, is refused (not with
    `require_anyway`), and the card shows the trial. `dry_run` sends nothing. Raises PublishError,
    which says whether anything was committed (UnverifiedError when the model does not verify),
    RequestError for `evals` that are not reports, and what verify_checkpoint raises.
    """
    started = time.perf_counter()
    folder = local_folder(model)
    if message is not None and not message.strip():
        raise RequestError("the commit message is empty", hint="leave --message out")
    if require is None and require_anyway:
        raise RequestError("there is no trial to pass over", hint="name it: --require trial.json")
    plan, new = read_plan(folder), read_evaluations(evals)
    tried = None
    if require is not None:
        tried = require_trial(Path(require), plan, anyway=require_anyway)
    wanted = _Request(
        repo_id, revision, token, base_model, license, private, create_pr, overwrite_card
    )
    files = local_files(folder)
    refuse_secrets(files)  # before anybody is asked, and again what is written for the repository
    ready = _prepare(folder, plan, wanted)
    report = _verify(folder, against) if verify else None
    changes = _changes(ready, files, new, report, tried)
    result = PushResult(
        repo_id=ready.target.repo_id,
        branch=ready.target.branch,
        url=f"{ready.api.endpoint}/{ready.target.repo_id}",
        changes=tuple(changes),
        verified=report is not None,
        notes=(*ready.base.notes, *_left_notes(folder), *(tried.notes if tried else ())),
        dry_run=dry_run,
        creates_repo=not ready.target.exists,
    )
    if dry_run or all(change.action == "skip" for change in changes):
        return replace(result, seconds=time.perf_counter() - started)
    text = message or f"Add a Dense Connector ({plan.kind}, {plan.form}) with {plan.tool}"
    commit = Commit(ready.api, ready.target, ready.base, changes, text, create_pr)
    sent = commit.send(private=private)
    return replace(
        result,
        commit=sent.commit,
        pull_request=sent.pull_request,
        notes=(*result.notes, *sent.notes),
        seconds=time.perf_counter() - started,
    )


def _left_notes(folder: Path) -> list[str]:
    left = left_behind(folder)
    return [f"not pushed: {describe_leftovers(left)}"] if left else []


def ask_permission(
    repo_id: str, *, private: bool, revision: str | None, create_pr: bool, token: str | None = None
) -> tuple[HfApi, Target]:
    """Return a client and the state of a repository that this account may push to.

    Nothing is sent but the question. Raises PublishError that says what is in the way.
    """
    api = connect(token)
    account = who_am_i(api)
    repo_id = full_name(repo_id, account)
    target = look_up(api, repo_id, revision, private=private)
    if create_pr and not target.exists:
        raise PublishError(
            f"there is no {repo_id} to open a pull request on; {NOTHING}",
            hint="leave --create-pr out to create the repository",
        )
    if create_pr and revision not in (None, MAIN):
        raise PublishError(
            f"a pull request is opened on {MAIN}, not on {revision}; {NOTHING}",
            hint="use either --revision or --create-pr",
        )
    require_write(account, repo_id, exists=target.exists, create_pr=create_pr)
    _probe(api, target, create_pr=create_pr)
    return api, target


def _prepare(folder: Path, plan: SurgeryPlan, wanted: _Request) -> _Ready:
    """Ask the Hub all that could speak against the push; nothing large is read."""
    api, target = ask_permission(
        wanted.repo_id,
        private=wanted.private,
        revision=wanted.revision,
        create_pr=wanted.create_pr,
        token=wanted.token,
    )
    base = find_public_base(api, plan, wanted.base_model)
    card = None if wanted.overwrite_card else old_card(api, target, folder, plan)
    stated = split_card(card)[0] if card is not None else {}
    licence = settle_licence(lenient_metadata(base.card), stated, wanted.license)
    return _Ready(api, plan, target, base, card, licence)


def _probe(api: HfApi, target: Target, *, create_pr: bool) -> None:
    """Ask for permission to upload one small file: the only sure way to know about it."""
    from huggingface_hub import CommitOperationAdd

    if not target.exists:
        return
    with hub_calls(target.repo_id):
        api.preupload_lfs_files(
            target.repo_id,
            [CommitOperationAdd(CARD, b"#")],
            revision=target.branch if target.branch_exists else None,
            create_pr=create_pr,
        )


def _verify(folder: Path, against: str | Path | None) -> Report:
    from dcsurgery.verification import verify_checkpoint

    report = verify_checkpoint(folder, against=against)
    if not report.passed:
        raise UnverifiedError(report)
    return report


def _changes(
    ready: _Ready,
    files: dict[str, Content],
    new: list[EvalReport],
    report: Report | None,
    tried: Tried | None,
) -> list[Change]:
    """Return what to do for every file: from here on, large files are read."""
    plan = public_plan(ready.plan, ready.base)
    standing = standing_reports(ready.api, ready.target, plan)
    if tried is None and TRIAL_FILE in standing:
        tried = standing_trial(standing[TRIAL_FILE], plan)
    facts = CardFacts(
        repo_id=ready.target.repo_id,
        branch=ready.target.branch,
        plan=plan,
        base=ready.base,
        licence=ready.licence,
        evaluations=all_evaluations(new, standing),
        endpoint=ready.api.endpoint,
        tried=tried,
    )
    found = report.to_dict() if report is not None else None
    if found is None and VERIFY_FILE in standing:
        found = json.loads(standing[VERIFY_FILE])
    facts = with_report(facts, found)
    documents = make_documents(files, facts, ready.card)
    refuse_secrets(documents)
    _validate(ready.api, documents[CARD])
    return plan_changes(documents, ready.target, ready.base.files)


def _validate(api: HfApi, card: Content) -> None:
    """Let the Hub check the card before anything is uploaded."""
    from huggingface_hub import ModelCard

    assert isinstance(card.source, bytes)
    text = card.source.decode()
    with hub_calls("the Hub"):
        try:
            ModelCard(text).validate()
        except ValueError as error:
            raise PublishError(
                f"the Hub does not accept the card's metadata ({safe(str(error))}); {NOTHING}",
                hint="repair README.md in the repository, or write it anew with --overwrite-card",
            ) from None
