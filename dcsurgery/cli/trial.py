"""`dcsurgery trial`: is it worth it, for this model, on this data? By training arms alike."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcsurgery.cli.options import (
    AsJson,
    Columns,
    Dtype,
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
from dcsurgery.printing import units
from dcsurgery.training.settings import TrainingSettings

if TYPE_CHECKING:
    from dcsurgery.evaluation.trial_report import Gain, TrialReport

EXAMPLES = (
    "dcsurgery trial ./my-llava --data train.json --test test.json",
    "dcsurgery trial ./my-llava --data train.json --test test.json --layers 3,12 --seeds 5",
    "dcsurgery push my-llava.trial/chosen-0 my-name/my-llava --require my-llava.trial/trial.json",
)
ARMS = "base,control,repeated,dci,chosen"


@dataclass(frozen=True)
class TrialOptions:
    """On what, which arms, how often, and how answers are scored."""

    data: Annotated[
        str,
        typer.Option(metavar="DATA", help="The rows to train on, as `dcsurgery finetune` reads."),
    ]
    test: Annotated[
        str,
        typer.Option(
            metavar="DATA", help="Other rows with reference answers, as `dcsurgery eval` reads."
        ),
    ]
    work_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for everything: what is done is kept, and the same command goes on. "
            "Default: MODEL.trial.",
        ),
    ] = None
    arms: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="base: before training. control: the same training without new inputs. repeated: "
            "a new matrix of the same size for today's feature. dci: the default connector. "
            "chosen: the states of --layers, else the probe's.",
        ),
    ] = ARMS
    seeds: Annotated[
        int, typer.Option(metavar="N", help="Trainings of every arm, from --seed upwards.")
    ] = 3
    metric: Annotated[
        str,
        typer.Option(
            metavar="METRIC",
            help="What decides: exact, vqa, choice or loss, as in `dcsurgery eval`. The loss is "
            "measured as well.",
        ),
    ] = "exact"
    connector: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Kind of the chosen arm: dci, sci, sti or mix."),
    ] = None
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="LAYERS",
            help="Hidden states of the chosen arm, as `dcsurgery convert` takes them. Default: "
            "those that a probe of DATA recommends.",
        ),
    ] = None
    probe_rows: Annotated[int, typer.Option(metavar="N", help="Rows that the probe looks at.")] = (
        500
    )
    heed_probe: Annotated[
        bool,
        typer.Option("--heed-probe", help="Train nothing where the probe says 'do not operate'."),
    ] = False
    images: Images = None
    test_images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the test's pictures. Default: --images."),
    ] = None
    columns: Columns = None
    split: Split = "train"
    test_split: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Split of a Hugging Face test. Default: --split."),
    ] = None
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="Use the first N test rows only. Default: all.")
    ] = None
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="Longest answer, in tokens.")] = (
        32
    )
    eval_batch: Annotated[int, typer.Option(metavar="N", help="Test rows answered at once.")] = 8
    dtype: Dtype = "auto"
    revision: Revision = None
    tower: Towers = None
    template: Template = None
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Show arms, steps and an estimate of the time; write nothing."
        ),
    ] = False


def trial(
    model: Model,
    options: TrialOptions,
    settings: TrainingSettings,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Tell whether a connector is worth it for your model and rows.

    A probe chooses states. Then every arm is trained on the same batches with the same seeds, and
    answers the same test. What is done is kept: the same command goes on where it stopped, and a
    second one beside it shares the work. Intervals and tests are over whole pictures.
    """
    out = Output(as_json=as_json, quiet=quiet)
    with out.working(f"trying {model}", fetches=True):
        from dcsurgery.data.columns import parse_columns
        from dcsurgery.trials.checks import work_folder
        from dcsurgery.trials.plan import TrialPlan
        from dcsurgery.trials.trial import try_model

        given: dict[str, Any] = asdict(options)
        given["arms"] = [name.strip() for name in options.arms.split(",") if name.strip()]
        given["columns"] = parse_columns(options.columns)
        given["towers"] = read_towers(given.pop("tower"))
        try:
            report = try_model(model, settings=settings, say=out.tell, **given)
        except (KeyboardInterrupt, SystemExit):
            if not options.dry_run:
                out.tell("stopped: the same command goes on")
            raise
    if isinstance(report, TrialPlan):
        out.result(report, "\ndry run: nothing was trained or written")
        return
    if as_json:
        out.data(report.model_dump(mode="json"))
        return
    show_trial(report, out)
    work = work_folder(model, options.work_dir)
    out.tell(f"\n{work}: trial.html, trial.json, trial.png, and what was trained")
    if report.decision == "worth it":
        run = next(arm for arm in report.arms if arm.name == report.judged).runs[0]
        place = shlex.quote(str(work / "trial.json"))
        out.tell(f"next:\n  dcsurgery export {shlex.quote(run.folder)} -o OUT\n"
                 f"  dcsurgery push OUT NAME/REPO --require {place}")  # fmt: skip


def show_trial(report: TrialReport, out: Output) -> None:
    """Print scores, gains by question type, and the verdict."""
    out.show(f"trial of {report.model} on {report.test}", "bold")
    rows = [
        (arm.name, f"{arm.score.mean:.4f}", f"{arm.loss.mean:.4f}",
         units.seconds(sum(run.seconds for run in arm.runs) / len(arm.runs)))
        for arm in report.arms
    ]  # fmt: skip
    out.table(("arm", report.metric, "loss", "a training"), rows, "wrrr")
    for name, why in report.left_out.items():
        out.show(f"without {name}: {why}")
    for item in report.comparisons:
        if item.arm != report.judged:
            continue
        out.heading(f"{item.arm} minus {item.against}")
        lines = [("all", *_numbers(item.gain), *_numbers(item.loss))]
        lines += [
            (kind, *_numbers(gain), *_numbers(item.loss_by_type[kind]))
            for kind, gain in item.by_type.items()
        ]
        out.table(("questions", report.metric, "95 %", "loss off", "95 %"), lines, "wrwrw")
        for word, kinds in (("lost", item.lost), ("may have lost", item.doubtful)):
            if kinds:
                out.show(f"  {word}: {', '.join(kinds)}", "bold red")
    for found in report.differences:
        out.show(f"seed {found.seed}: {report.judged} won {found.won} and lost {found.lost} of "
                 f"{found.rows:,} rows against control")  # fmt: skip
    if report.estimate is not None:
        hours = units.seconds(3600 * report.estimate.hours)
        out.show(f"one {report.estimate.device}, estimated: {hours} for all trainings")
    for text in report.warnings:
        out.warn(text)
    style = {"worth it": "bold green", "do not": "bold red"}.get(report.decision, "bold yellow")
    out.show()
    out.show(report.verdict, style)


def _numbers(gain: Gain) -> tuple[str, str]:
    return f"{gain.mean:+.4f}", f"{gain.low:+.4f}..{gain.high:+.4f}"
