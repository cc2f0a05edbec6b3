"""`dcsurgery finetune`: train what a conversion put in, or look at what that would take."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcsurgery.cli import units
from dcsurgery.cli.options import (
    AsJson,
    Model,
    Quiet,
    Revision,
    Template,
    Towers,
    read_towers,
)
from dcsurgery.cli.output import Output
from dcsurgery.cli.training_options import DataOptions, FreshConnector, SettingOptions
from dcsurgery.errors import DcSurgeryError

if TYPE_CHECKING:
    from dcsurgery.data.conversations import BadRow
    from dcsurgery.training.finetune import Finetuned, TrainingPreview
    from dcsurgery.training.freeze import Trained

EXAMPLES = (
    "dcsurgery finetune llava-dci --data data/rows.json -o llava-tuned",
    "dcsurgery finetune llava-dci --data data/rows.json --dry-run",
    "dcsurgery finetune ./my-llava --connector dci --data data/rows.json -o mine",
)
LISTED_ROWS = 5


@dataclass(frozen=True)
class JobOptions(DataOptions):
    """What to train on, where the result goes, and what of an earlier attempt is kept."""

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
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Where the base is now. Default: where the plan says."),
    ] = None
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
    settings: SettingOptions,
    fresh: FreshConnector,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a connector on pictures and answers.

    Only what is announced changes; OUT says in its plan what was trained, on what, and how. Ctrl-C
    ends the step under way, saves a checkpoint and leaves with 130. Several processes: start it
    with torchrun or accelerate launch.
    """
    out = Output(as_json=as_json, quiet=quiet)
    if job.output is None and not job.dry_run:
        raise typer.BadParameter("say where to write: -o OUT", param_hint="--output")
    connector = fresh.keywords(settings.seed or 0)
    with out.working(f"preparing to train {model}", fetches=not Path(model).is_dir()):
        from dcsurgery.data.columns import parse_columns
        from dcsurgery.training.finetune import preview_finetune
        from dcsurgery.training.settings import make_settings

        given = {key: value for key, value in asdict(settings).items() if value is not None}
        arguments = asdict(job) | {"settings": make_settings(**given), "connector": connector}
        arguments["columns"] = parse_columns(job.columns)
        arguments["towers"] = read_towers(arguments.pop("tower"))
        if arguments.pop("dry_run"):
            preview = preview_finetune(model, **arguments)
    if job.dry_run:
        _show_preview(preview, model, out)
    else:
        _train(model, arguments, out)


def _train(model: str, arguments: Mapping[str, Any], out: Output) -> None:
    from dcsurgery.training.checkpoints import latest_checkpoint
    from dcsurgery.training.feeding import rank
    from dcsurgery.training.finetune import finetune_connector
    from dcsurgery.training.workspace import training_folder

    if rank():
        out = Output(quiet=True)
    output = arguments["output"]
    again = "the same command with --resume"
    with out.stepping(f"training {model}") as show:

        def watch(row: dict[str, Any]) -> None:
            words = f"loss {row['loss']:.4f}, {row['tokens_per_second']:,.0f} tokens/s"
            if row["cut_rows"]:
                words += f", {row['cut_rows']} of {row['rows']} rows cut"
            show(row["step"], row["steps"], words)

        try:
            done = finetune_connector(model, watch=watch, tell=out.tell, **arguments)
        except (KeyboardInterrupt, SystemExit):
            out.tell(_stopped(output, again))
            raise
        except DcSurgeryError:
            if latest_checkpoint(training_folder(output)) is not None:
                out.tell(_stopped(output, again))
            raise
    if rank():
        return
    if out.as_json:
        out.data(_done(done))
        return
    _show_done(done, out)
    out.tell(f"\nnext:\n  dcsurgery verify {shlex.quote(str(done.output))}")


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


def _done(done: Finetuned) -> dict[str, Any]:
    conversion = done.conversion
    return {
        "schema_version": 1,
        "dry_run": False,
        "output": str(done.output),
        "trained": _trained(done.result.trained),
        "resumed_at": done.result.resumed_at,
        "record": done.record.model_dump(mode="json"),
        "untouched": _untouched(done),
        "advice": list(done.advice),
        "bad_rows": [asdict(bad) for bad in done.bad],
        "plan": None if conversion is None else conversion.plan.model_dump(mode="json"),
    }


def _untouched(done: Finetuned) -> dict[str, list[str]]:
    """Return the parameters that never had a gradient, by group."""
    found: dict[str, list[str]] = {}
    for name in done.result.untouched:
        found.setdefault(done.result.trained.group_of(name), []).append(name)
    return found


def _trained(trained: Trained) -> dict[str, Any]:
    return {
        group: {"parameters": trained.counts[group], "tensors": list(names)}
        for group, names in trained.groups.items()
    }


def _show_done(done: Finetuned, out: Output) -> None:
    from dcsurgery.data.tally import Losses

    record, result = done.record, done.result
    lost = Losses(record.cut_rows, record.cut_answers, record.dropped)
    untouched = "\n".join(
        f"{group}: {len(names)} of {units.plural(len(result.trained.groups[group]), 'tensor')}, "
        "never had a gradient and stay as they were"
        for group, names in _untouched(done).items()
    )
    out.show(f"{done.output}: trained for {units.plural(result.steps, 'step')}", "bold")
    resumed = f", resumed at step {result.resumed_at}" if result.resumed_at else ""
    rows = [
        *_groups(result.trained),
        *([("untrained", untouched)] if untouched else []),
        ("data", f"{record.data}: {units.plural(record.rows, 'row')}{_skipped(done.bad)}"),
        ("images", done.census.pictures()),
        *_lost(lost.lines(record.settings["max_length"])),
        ("epochs", f"{record.epochs:g}, batches of {record.batch_size}{resumed}"),
        ("loss", f"{record.first_loss:.4f} -> {record.last_loss:.4f}"),
        ("time", units.seconds(record.seconds)),
        ("log", "dense_connector/training.jsonl, dense_connector/training.png"),
    ]
    if done.conversion is not None:
        rows.append(("loads with", done.conversion.plan.loader))
    out.facts(rows)


def _groups(trained: Trained) -> list[tuple[str, str]]:
    lines = [
        f"{group}: {units.count(trained.counts[group])} in {units.plural(len(names), 'tensor')}"
        for group, names in trained.groups.items()
    ]
    return [("trains", "\n".join(lines))]


def _lost(lines: list[str]) -> list[tuple[str, str]]:
    return [("lost", "\n".join(lines))] if lines else []


def _skipped(bad: tuple[BadRow, ...]) -> str:
    if not bad:
        return ""
    named = [f"\n{row.id}: {row.reason}" for row in bad[:LISTED_ROWS]]
    more = f"\nand {len(bad) - LISTED_ROWS} more" if len(bad) > LISTED_ROWS else ""
    return f", {len(bad)} skipped:" + "".join(named) + more


def _show_preview(preview: TrainingPreview, model: str, out: Output) -> None:
    if out.as_json:
        out.data(_planned(preview))
        return
    settings, needs = preview.settings, preview.estimate
    out.show(f"plan: train {model} for {units.plural(preview.steps, 'step')}", "bold")
    size, count, workers = preview.batch
    batch = f"{size} at a time x {count} before an update x {units.plural(workers, 'process')}"
    rates = {
        "connector": settings.connector_lr,
        "projector": settings.projector_lr,
        "language": settings.lr,
        "tower": settings.tower_lr,
    }
    lines = [f"{group}: {rates[group]:g}" for group in preview.trained.groups]
    memory = (
        f"{units.size(needs.memory)}: weights {units.size(needs.parameters)}, gradients "
        f"{units.size(needs.gradients)}, optimiser {units.size(needs.optimizer)}, activations "
        f"{units.size(needs.activations)}"
    )
    total = units.seconds(needs.seconds_per_step * preview.steps)
    out.facts(
        [
            *_groups(preview.trained),
            ("rates", "\n".join(lines)),
            ("rows", f"{preview.rows:,}{_looked_at(preview)}{_skipped(preview.bad)}"),
            ("images", preview.census.pictures()),
            *_lost(_measured(preview)),
            ("batch", f"{settings.batch_size} rows: {batch}"),
            ("memory", memory),
            ("time", f"about {total}, {units.seconds(needs.seconds_per_step)} for one step"),
        ]
    )
    for sample in preview.samples:
        cut = ", cut" if sample.truncated else ""
        out.heading(f"{sample.id}: {sample.tokens} tokens, {sample.supervised} supervised{cut}")
        out.facts(
            [
                ("layout", f"{sample.layout}, from {', '.join(sample.keys)}"),
                ("images", str(sample.images)),
                ("question", sample.question),
                ("answer", sample.answer),
            ]
        )
        out.passage(sample.pieces)
    for line in preview.advice:
        if line not in _measured(preview):
            out.tell(line)
    out.tell("\ndry run: nothing was trained or written; [[...]] is what carries the loss")


def _looked_at(preview: TrainingPreview) -> str:
    return "" if preview.measured is None else f", {preview.measured.rows:,} looked at closely"


def _measured(preview: TrainingPreview) -> list[str]:
    """Say what rows of the sample lose."""
    if preview.measured is None:
        return []
    of = f" of {preview.measured.rows:,} that were looked at"
    return preview.measured.losses.lines(preview.settings.max_length, of=of)


def _planned(preview: TrainingPreview) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "dry_run": True,
        "trained": _trained(preview.trained),
        "settings": preview.settings.model_dump(mode="json"),
        "steps": preview.steps,
        "rows": preview.rows,
        "bad_rows": [asdict(bad) for bad in preview.bad],
        **preview.census.facts(),
        "measured": None if preview.measured is None else asdict(preview.measured),
        "advice": list(preview.advice),
        "samples": [asdict(sample) for sample in preview.samples],
        "estimate": {**asdict(preview.estimate), "memory": preview.estimate.memory},
    }
