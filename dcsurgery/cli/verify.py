"""`dcsurgery verify`: prove what a conversion changed and what it did not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcsurgery.cli.options import AsJson, Orientation, Quiet, Revision, Towers, read_towers
from dcsurgery.cli.output import Output
from dcsurgery.errors import DcSurgeryError, RequestError
from dcsurgery.printing import units

if TYPE_CHECKING:
    from dcsurgery.verification import Report
    from dcsurgery.verification.cost import Cost

EXAMPLES = (
    "dcsurgery verify llava-dci",
    "dcsurgery verify llava-dci --image photo.jpg --logits",
    "dcsurgery verify llava-dci --against ./my-llava --deep --json",
)
FAILED = 3


@dataclass(frozen=True)
class VerifyOptions:
    """What to verify against, on what, and how much of it."""

    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="The base: a folder or Hub id. Default: the one the plan names."
        ),
    ] = None
    image: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Picture to compare features and logits on; repeat for several. "
            "Default: a photograph that comes with matplotlib.",
        ),
    ] = None
    orientation: Orientation = "exif"
    deep: Annotated[
        bool,
        typer.Option(
            "--deep", help="Also hash hard-linked files, and compare with the Hub's digests."
        ),
    ] = False
    logits: Annotated[
        bool,
        typer.Option(
            "--logits", help="Also run both whole models; needs memory for them (a 7B: 30 GB)."
        ),
    ] = False
    tower: Towers = None
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="ENGINE",
            help="Instead, compare a server's log-probabilities with transformers': the address of "
            "one that runs, or llama.cpp or vllm (and its arguments) to start one. MODEL may be "
            "any model.",
        ),
    ] = None
    engine_limit: Annotated[
        float, typer.Option(metavar="NATS", help="Largest difference that passes with --engine.")
    ] = 0.1


def verify(
    model: Annotated[
        str, typer.Argument(metavar="OUT", help="What `dcsurgery convert` wrote: folder or Hub id.")
    ],
    options: VerifyOptions,
    revision: Revision = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Prove what a conversion changed and what it did not.

    Structure: every byte the plan did not name is the base's. Features: vision tower, connector and
    projector of both models on real pictures, without the language model. Exit code 3 when a check
    fails; the report is on stdout either way.
    """
    out = Output(as_json=as_json, quiet=quiet)
    if options.engine is not None:
        return _verify_engine(model, options, options.engine, revision, out)
    with out.working(f"verifying {model}", fetches=_fetches(Path(model), options.against)):
        from dcsurgery.verification import verify_checkpoint

        report = verify_checkpoint(
            model,
            revision=revision,
            against=options.against,
            images=options.image or [],
            deep=options.deep,
            logits=options.logits,
            towers=read_towers(options.tower),
            announce=lambda cost: out.tell(_told(cost)),
            orientation=options.orientation,
        )
    return _end(report, out)


def _end(report: Report, out: Output) -> int:
    if out.as_json:
        out.data(report.to_dict())
    else:
        show_report(report, out)
    return 0 if report.passed else FAILED


def _verify_engine(
    model: str, options: VerifyOptions, engine: str, revision: str | None, out: Output
) -> int:
    for name in ("deep", "logits", "tower"):
        if getattr(options, name):
            raise RequestError(f"--{name} is not for --engine", hint=f"leave --{name} out")
    with out.working(f"asking {engine} and transformers", fetches=not Path(model).is_dir()):
        from dcsurgery.serving.compare import verify_engine

        report = verify_engine(
            model,
            engine,
            base=options.against,
            revision=revision,
            images=options.image or [],
            limit=options.engine_limit,
        )
    return _end(report, out)


def _told(cost: Cost) -> str:
    sent = f", {units.size(cost.remote)} of it from the Hub" if cost.remote else ""
    return (
        f"reads about {units.size(cost.read)}{sent}, holds {units.size(cost.memory)} in memory, "
        f"takes about {units.seconds(cost.seconds)}"
    )


def _fetches(path: Path, against: str | None) -> bool:
    """True when something may have to be downloaded; False too when that cannot be known."""
    from dcsurgery.surgery.plan_file import read_plan

    if not path.is_dir():
        return True
    if against is not None:
        return not Path(against).is_dir()
    try:
        return read_plan(path).base.folder is None
    except DcSurgeryError:
        return False


def show_report(report: Report, out: Output) -> None:
    """Print a verification's checks and its verdict."""
    out.show(f"{report.output}: {report.form} form of {report.base}", "bold")
    columns = ("", "check", "measured", "limit")
    rows = [
        ("ok" if check.passed else "FAILED", check.name, check.measured, check.limit)
        for check in report.checks
    ]
    out.table(columns, rows, "wlll")
    failed = [check for check in report.checks if not check.passed]
    for check in failed:
        out.show()
        out.facts([(check.name, check.detail or f"{check.measured}, limit {check.limit}")])
    out.show()
    if failed:
        out.show(f"FAILED: {len(failed)} of {len(report.checks)} checks", "bold red")
    else:
        out.show(f"verified: all {len(report.checks)} checks passed", "bold green")
