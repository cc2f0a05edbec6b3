"""`dcsurgery push`: a converted folder becomes a Hub repository."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from dcsurgery.cli.options import AsJson, Quiet
from dcsurgery.cli.output import Output

EXAMPLES = (
    "dcsurgery push llava-dci my-name/llava-dci --dry-run",
    "dcsurgery push llava-dci my-name/llava-dci --private",
    "dcsurgery push llava-dci my-name/llava-dci --eval results/report.json",
)
VERIFICATION_FAILED = 3


@dataclass(frozen=True)
class PushOptions:
    """How to push: the keywords of push_checkpoint."""

    private: Annotated[
        bool, typer.Option("--private", help="Create the repository for your eyes only.")
    ] = False
    revision: Annotated[
        str | None,
        typer.Option(
            metavar="BRANCH", help="Branch to commit to; it is made when missing. Default: main."
        ),
    ] = None
    create_pr: Annotated[
        bool,
        typer.Option("--create-pr", help="Offer the commit as a pull request on the repository."),
    ] = False
    message: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Commit message. Default: says what was installed."),
    ] = None
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check and verify all, print the table, send nothing."),
    ] = False
    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Verify against this base: a folder or Hub id. Default: the one the plan names.",
        ),
    ] = None
    evals: Annotated[
        list[Path] | None,
        typer.Option(
            "--eval",
            metavar="FILE",
            help="A report.json of `dcsurgery eval` for the card; repeat for several.",
        ),
    ] = None
    require: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The trial.json of `dcsurgery trial`: refuse a model that does not beat its "
            "control there, loses on a question type or is below the base. The card shows it.",
        ),
    ] = None
    require_anyway: Annotated[
        bool,
        typer.Option(
            "--require-anyway", help="Push in spite of what the trial says; the card shows it."
        ),
    ] = False
    base_model: Annotated[
        str | None,
        typer.Option(
            metavar="ID", help="Where a base that was a folder here is on the Hub: its id."
        ),
    ] = None
    license: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Licence for the card. Default: the base's."),
    ] = None
    overwrite_card: Annotated[
        bool,
        typer.Option(
            "--overwrite-card",
            help="Write README.md anew. Otherwise only our part of an existing card changes.",
        ),
    ] = False


def push(
    model: Annotated[
        str,
        typer.Argument(
            metavar="OUT", help="A folder or Hub id that `dcsurgery convert` or a later step wrote."
        ),
    ],
    repo_id: Annotated[
        str, typer.Argument(metavar="REPO_ID", help="Hub repository, as user/name.")
    ],
    options: PushOptions,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Push without verifying first; the card says so.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Publish a model on the Hub with a card, in one commit.

    Permission, name and licence are checked before anything large is read, then the model is
    verified. Files that are there already are skipped, unchanged files of a base on the same Hub
    are copied there, the rest is uploaded. The token is that of `hf auth login`, or HF_TOKEN.
    """
    out = Output(as_json=as_json, quiet=quiet)
    from dcsurgery.publishing.commit import PushInterrupted
    from dcsurgery.publishing.push import UnverifiedError, push_checkpoint

    values = asdict(options) | {"evals": options.evals or []}
    try:
        with out.working(f"pushing {model} to {repo_id}", fetches=True):
            result = push_checkpoint(model, repo_id, verify=not no_verify, **values)
    except UnverifiedError as error:
        _show_unverified(error, out)
        return VERIFICATION_FAILED
    except PushInterrupted as stop:
        _leave(str(stop), out)
    out.result(result)
    return 0


def _show_unverified(error: Any, out: Output) -> None:
    from dcsurgery.cli.verify import show_report

    if out.as_json:
        out.data(error.report.to_dict())
    else:
        show_report(error.report, out)
    out.tell(f"error: {error.message}\nhint: {error.hint}")


def _leave(text: str, out: Output) -> None:
    """Say how it stands and leave at once: the client's upload threads would be waited for."""
    out.tell(text)
    sys.stdout.flush()
    os._exit(128 + signal.SIGINT)
