"""`dcsurgery probe`: which hidden states would help, and is it worth it, before any training."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    part_of,
    read_towers,
)
from dcsurgery.cli.output import Output
from dcsurgery.training.settings import READING, TrainingSettings

EXAMPLES = (
    "dcsurgery probe llava-hf/llava-1.5-7b-hf --data rows.json --images pictures -o probe.json",
    "dcsurgery probe ./my-llava --data rows.json --rows 2000",
    "dcsurgery convert ./my-llava -o my-llava-chosen --layers @probe.json",
)


@dataclass(frozen=True)
class ProbeOptions:
    """On what, how much of it, and where the answer goes."""

    data: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            help="The rows it would be trained on, as `dcsurgery finetune` reads them: a file, "
            "FILE,FILE or a folder; a saved data set, or a Hub data set's id.",
        ),
    ]
    images: Images = None
    columns: Columns = None
    split: Split = "train"
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="JSON file to write, for `dcsurgery convert --layers @FILE`. Default: none.",
        ),
    ] = None
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Page to write, with the picture. Default: none."),
    ] = None
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace FILE, if a probe wrote it.")
    ] = False
    rows: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Rows with pictures to look at, drawn at random. More rows detect smaller gains.",
        ),
    ] = 500
    folds: Annotated[
        int,
        typer.Option(metavar="N", help="Parts of the rows that are held out in turn, 3 or more."),
    ] = 4
    seed: Annotated[
        int, typer.Option(metavar="N", help="Seed of the rows drawn and of the intervals.")
    ] = 0


if TYPE_CHECKING:
    Reading = TrainingSettings
else:
    Reading = part_of(TrainingSettings, READING)


@dataclass(frozen=True)
class Places:
    """Where the model's parts are, as in finetune."""

    revision: Revision = None
    base: BaseNow = None
    tower: Towers = None
    template: Template = None


def probe(
    model: Model,
    options: ProbeOptions,
    reading: Reading,
    places: Places,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Tell which hidden states would help a model.

    It also tells whether that is worth a training; nothing is trained. Forward and backward passes
    over some rows give the gradient for every hidden state at once. A step on most of the rows is
    judged by the others, in turns. Beating shuffled states is what counts as evidence.
    """
    out = Output(as_json=as_json, quiet=quiet)
    text, remote = f"probing {model}", not Path(model).is_dir()
    # What is fetched from the Hub shows its own bars.
    with out.working(text, fetches=True) if remote else out.stepping(text) as show:
        from dcsurgery.data.columns import parse_columns
        from dcsurgery.probing.probe import probe_model

        given: dict[str, Any] = asdict(options) | asdict(places)
        settings = TrainingSettings(seed=given.pop("seed"), **asdict(reading))
        given["columns"] = parse_columns(options.columns)
        given["towers"] = read_towers(given.pop("tower"))
        report = probe_model(model, settings=settings, progress=show, **given)
    if as_json:
        out.data(report.to_dict())
        return
    report.show(out)
    for file in (options.output, options.html):
        if file is not None:
            out.tell(f"{file} is written")
    if report.recommended.operate:
        place = report.base.folder or report.base.id if report.installed else model
        layers = f"@{options.output}" if options.output else report.recommended.layers
        out.tell(f"\nnext:\n  dcsurgery convert {shlex.quote(str(place))} -o OUT --layers "
                 f"{shlex.quote(str(layers))}")  # fmt: skip
