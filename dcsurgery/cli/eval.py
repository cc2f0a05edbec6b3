"""`dcsurgery eval`: models side by side on the same questions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from dcsurgery.cli.options import (
    AsJson,
    BaseNow,
    Columns,
    Device,
    Dtype,
    Orientation,
    PromptOption,
    Quiet,
    Split,
    Template,
    Towers,
    read_towers,
)
from dcsurgery.cli.output import Output
from dcsurgery.printing import units

if TYPE_CHECKING:
    from dcsurgery.data.templates import Prompt
    from dcsurgery.evaluation.eval_report import EvalReport, ModelResult

EXAMPLES = (
    "dcsurgery eval llava-dci --data test.json --images pictures -o scores",
    "dcsurgery eval my-llava llava-dci --data test.jsonl --metric vqa -o vqa",
    "dcsurgery eval llava-dci --data test.jsonl --metric loss --json -o loss",
    "dcsurgery eval --data test.json --answers theirs.jsonl -o theirs",
)
# What only a model that answers can have.
ANSWERING = ("base", "batch_size", "max_new_tokens", "prompt", "orientation", "dtype", "device")


@dataclass(frozen=True)
class EvalOptions:
    """On what, by which metric, and how."""

    data: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="Questions with reference answers: JSON, JSONL, CSV, TSV, parquet or arrow, a "
            "file, FILE,FILE or a folder; a saved data set, or a Hub data set's id.",
        ),
    ]
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder for report.json, report.png and answers.jsonl. An evaluation that was "
            "interrupted goes on.",
        ),
    ]
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder that image paths start from. Default: the data file's."
        ),
    ] = None
    columns: Columns = None
    answers: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Score answers that another engine gave, instead of a MODEL's: JSONL of id and "
            "answer. Several files are several models.",
        ),
    ] = None
    metric: Annotated[
        str,
        typer.Option(
            metavar="METRIC",
            help="exact: the answer is a reference, ignoring case and outer punctuation; by POPE's "
            "rule where all references are yes or no. vqa: the VQA challenge's accuracy. choice: "
            "the right option, by letter or text. loss: mean loss per answer token.",
        ),
    ] = "exact"
    batch_size: Annotated[
        int, typer.Option(metavar="N", help="Rows that a model answers at once.")
    ] = 8
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="Longest answer, in tokens.")] = (
        32
    )
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="Use the first N rows only. Default: all.")
    ] = None
    max_bad: Annotated[
        str,
        typer.Option(metavar="PERCENT", help="Rows that may be unusable before it is an error."),
    ] = "1%"
    split: Split = "train"
    base: BaseNow = None
    prompt: PromptOption = "auto"
    tower: Towers = None
    template: Template = None
    orientation: Orientation = "exif"
    dtype: Dtype = "auto"
    device: Device = None
    seed: Annotated[
        int, typer.Option(metavar="N", help="Seed of the intervals and of the test.")
    ] = 0
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Forget the answers that DIR holds.")
    ] = False


def eval(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="Model folders or Hub ids, converted or not. The others are compared with the "
            "first.",
        ),
    ] = None,
    *,
    options: EvalOptions,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare models on the same questions, with intervals.

    Scores are per question type. Answers are greedy. Intervals are 95 % bootstrap intervals and the
    test is a sign-flip permutation test, both over whole pictures. Rows that cannot be used are
    counted and named.
    """
    out = Output(as_json=as_json, quiet=quiet)
    if options.prompt not in ("auto", "plain", "v1"):
        raise typer.BadParameter("use auto, plain or v1", param_hint="--prompt")
    if bool(models) == bool(options.answers):
        raise typer.BadParameter("name models, or --answers FILE", param_hint="MODEL")
    report = _score_files(options, out) if options.answers else _ask(models or [], options, out)
    if as_json:
        out.data(report.model_dump(mode="json"))
        return
    show_report(report, out)
    out.tell(f"{options.output}: report.json, report.png, answers.jsonl")


def _score_files(options: EvalOptions, out: Output) -> EvalReport:
    unused = [name for name in ANSWERING if getattr(options, name) != getattr(EvalOptions, name)]
    if unused:
        flag = f"--{unused[0].replace('_', '-')}"
        raise typer.BadParameter("it is for models that answer, not --answers", param_hint=flag)
    files = options.answers or []
    with out.working(f"scoring {units.plural(len(files), 'file')} of answers"):
        from dcsurgery.data.columns import parse_columns
        from dcsurgery.evaluation.foreign import score_answers

        return score_answers(
            options.data,
            files,
            options.output,
            images=options.images,
            metric=options.metric,
            limit=options.limit,
            max_bad=options.max_bad,
            seed=options.seed,
            split=options.split,
            columns=parse_columns(options.columns),
            overwrite=options.overwrite,
        )


def _ask(models: list[str], options: EvalOptions, out: Output) -> EvalReport:
    text = f"evaluating {units.plural(len(models), 'model')}"
    remote = any(not Path(model).is_dir() for model in models)
    # What is fetched from the Hub shows its own bars.
    with out.working(text, fetches=True) if remote else out.stepping(text) as show:
        from dcsurgery.data.columns import parse_columns
        from dcsurgery.data.tally import checked_percent
        from dcsurgery.evaluation.runner import EvalSettings, evaluate_checkpoints

        def progress(done: int, rows: int, model: str) -> None:
            if show is not None:
                show(done, rows, model)

        settings = EvalSettings(
            metric=options.metric,
            batch_size=options.batch_size,
            max_new_tokens=options.max_new_tokens,
            limit=options.limit,
            max_bad=checked_percent(options.max_bad),
            seed=options.seed,
            prompt=cast("Prompt", options.prompt),
            orientation=cast(Literal["exif", "raw"], options.orientation),
            dtype=options.dtype,
            device=options.device,
        )
        return evaluate_checkpoints(
            models,
            options.data,
            options.output,
            images=options.images,
            settings=settings,
            split=options.split,
            columns=parse_columns(options.columns),
            tell=out.warn,
            overwrite=options.overwrite,
            base=options.base,
            towers=read_towers(options.tower),
            template=options.template,
            progress=progress,
        )


def show_report(report: EvalReport, out: Output) -> None:
    """Print the scores of every model, and what differs from the first."""
    from collections import Counter

    from dcsurgery.data.census import Census
    from dcsurgery.data.tally import Losses

    out.show(f"{report.metric} on {report.rows} rows of {report.data}", "bold")
    kinds: list[str | None] = [None, *report.models[0].by_type]
    rows = [_row(result, kind) for kind in kinds for result in report.models]
    columns = ("rows of", "model", "score", "95 %", "minus first", "95 %", "p")
    out.table(columns, rows, "wwlllll")
    if report.skipped_rows:
        named = "; ".join(f"{name}: {why}" for name, why in list(report.skipped.items())[:3])
        out.show(f"{report.skipped_rows} rows could not be used: {named}")
    for model, counts in report.dropped.items():
        for line in Losses(dropped=counts).lines(0):
            out.show(f"{model}: {line}")
    census = Census(
        report.rows_with_pictures,
        report.rows_without_pictures,
        unread=Counter(report.unread_pictures),
    )
    for note in (note for result in report.models for note in _notes(result, report.rows)):
        out.show(note)
    for name, how in report.reading.items():
        out.show(f"{name.replace('_', '/')}: {how}")
    facts = [("images", census.pictures())]
    out.facts([*facts, ("p", report.test)] if len(report.models) > 1 else facts)


def _notes(result: ModelResult, rows: int) -> list[str]:
    """Return what the score of a model does not show."""
    found = []
    if result.yes_no is not None:
        names = ("accuracy", "precision", "recall", "f1", "yes_share")
        values = [(name.replace("_", " "), getattr(result.yes_no, name)) for name in names]
        shown = ", ".join(f"{n} {'-' if v is None else f'{v:.3f}'}" for n, v in values)
        found.append(f"{result.model}: {shown}")
    if result.unclear:
        what = "say neither yes nor no" if result.yes_no else "pick no option, or several"
        found.append(f"{result.model}: {result.unclear} of {rows} answers {what}")
    matching = result.matching
    for name, words in (
        ("missing", "have no answer and are not scored"),
        ("repeated", "have several answers"),
        ("unknown", "are in no row of the data"),
    ):
        count = getattr(matching, name, 0)
        if count:
            ids = ", ".join(getattr(matching, f"{name}_ids")[:3])
            found.append(f"{result.model}: {units.plural(count, 'id')} {words}: {ids}")
    return found


def _row(result: ModelResult, kind: str | None) -> tuple[str, ...]:
    score = result.score if kind is None else result.by_type[kind]
    compared = result.against_first if kind is None else result.against_first_by_type.get(kind)
    shown = (kind or "all", result.model, f"{score.mean:.3f}", f"{score.low:.3f}..{score.high:.3f}")
    if compared is None:
        return (*shown, "", "", "")
    return (
        *shown,
        f"{compared.difference:+.3f}",
        f"{compared.low:+.3f}..{compared.high:+.3f}",
        f"{compared.p_value:.2g}",
    )
