"""`dcsurgery finetune`: train what a conversion put in, or look at what that would take."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from dcsurgery.cli.options import (
    AsJson,
    BaseNow,
    Columns,
    Images,
    Model,
    Quiet,
    Revision,
    Split,
    Template,
    Towers,
    read_towers,
)
from dcsurgery.cli.output import Output
from dcsurgery.connectors.request import Connector
from dcsurgery.errors import DcSurgeryError
from dcsurgery.training.settings import TrainingSettings

EXAMPLES = (
    "dcsurgery finetune llava-dci --data data/rows.json -o llava-tuned",
    "dcsurgery finetune llava-dci --data data/rows.json --dry-run",
    "dcsurgery finetune ./my-llava --connector dci --data data/rows.json -o mine",
)


@dataclass(frozen=True)
class JobOptions:
    """What to train on, where the result goes, and what of an earlier attempt is kept."""

    data: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            help="JSON, JSONL, CSV, TSV, parquet or arrow: a file, FILE,FILE or a folder; a saved "
            "data set, or a Hub data set's id. docs/data.md shows the rows that are read.",
        ),
    ]
    images: Images = None
    columns: Columns = None
    split: Split = "train"
    streaming: Annotated[
        bool,
        typer.Option("--streaming", help="Read a Hub data set as it arrives; needs --max-steps."),
    ] = False
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="Folder to write, in the form MODEL has. Needed, except with --dry-run. Until it "
            "is whole, checkpoints and log are in OUT.training.",
        ),
    ] = None
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace OUT, if dcsurgery wrote all of it, and a training that stopped there.",
        ),
    ] = False
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with a training that stopped, from its last checkpoint in OUT.training; "
            "from the start where there is none.",
        ),
    ] = False
    revision: Revision = None
    base: BaseNow = None
    tower: Towers = None
    template: Template = None
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show what would train, rows of each layout as they are read and as the model "
            "sees them, steps, memory and time measured on one micro-batch; write nothing.",
        ),
    ] = False


def finetune(
    model: Model,
    job: JobOptions,
    settings: TrainingSettings,
    connector: Connector | None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a connector on pictures and answers.

    A MODEL without a connector gets one on the way: --connector, with its options as `dcsurgery
    convert` takes them. Only what is announced changes; OUT says in its plan what was trained, on
    what, and how. Ctrl-C ends the step under way, saves a checkpoint and leaves with 130. Several
    processes: start it with torchrun or accelerate launch, with ZeRO-2, ZeRO-3 or FSDP2 if you
    like.
    """
    out = Output(as_json=as_json, quiet=quiet)
    if job.output is None and not job.dry_run:
        raise typer.BadParameter("say where to write: -o OUT", param_hint="--output")
    with out.working(f"preparing to train {model}", fetches=not Path(model).is_dir()):
        from dcsurgery.data.columns import parse_columns
        from dcsurgery.training.finetune import finetune_connector

        arguments = asdict(job) | {"settings": settings, "connector": connector}
        arguments["columns"] = parse_columns(job.columns)
        arguments["towers"] = read_towers(arguments.pop("tower"))
        if job.dry_run:
            plan = finetune_connector(model, **arguments)
    if job.output is not None and not job.dry_run:
        _train(model, job.output, arguments, out)
    else:
        nothing = "\ndry run: nothing was trained or written; [[...]] is what carries the loss"
        out.result(plan, "\n".join([*plan.hints, nothing]))


def _train(model: str, output: Path, arguments: Mapping[str, Any], out: Output) -> None:
    from dcsurgery.training.checkpoints import latest_checkpoint
    from dcsurgery.training.feeding import rank
    from dcsurgery.training.finetune import finetune_connector
    from dcsurgery.training.workspace import training_folder

    if rank():
        out = Output(quiet=True)
    again = "the same command with --resume"
    with out.stepping(f"training {model}") as show:
        try:
            done = finetune_connector(model, progress=show, tell=out.tell, **arguments)
        except (KeyboardInterrupt, SystemExit):
            out.tell(_stopped(output, again))
            raise
        except DcSurgeryError:
            if latest_checkpoint(training_folder(output)) is not None:
                out.tell(_stopped(output, again))
            raise
    if not rank():
        out.result(done, f"\nnext:\n  dcsurgery verify {shlex.quote(str(done.output))}")


def _stopped(output: Path, again: str) -> str:
    from dcsurgery.training.checkpoints import latest_checkpoint, step_of
    from dcsurgery.training.workspace import training_folder

    folder = training_folder(output)
    checkpoint = latest_checkpoint(folder)
    if checkpoint is None:
        return "stopped before there was anything to keep"
    return (
        f"stopped; {folder} keeps the training after step {step_of(checkpoint)}\nnext:\n  {again}"
    )
