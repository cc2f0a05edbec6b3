"""probe_model: which hidden states would help this model on this data, and is it worth it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dcsurgery import __version__
from dcsurgery.architectures import named
from dcsurgery.data.rows import data_digest
from dcsurgery.errors import RequestError
from dcsurgery.printing.sheet import Progress
from dcsurgery.probing.advice import Advice, Candidates
from dcsurgery.probing.gains import Gains
from dcsurgery.probing.page import is_page, render_page
from dcsurgery.probing.probe_report import ProbeReport, check_file, is_answer, write_file
from dcsurgery.probing.rows import draw_rows
from dcsurgery.probing.slopes import ProbeRow, Subject, measure_slopes
from dcsurgery.probing.subject import open_subject
from dcsurgery.training.feeding import Feed
from dcsurgery.training.job import Request, open_feed, open_rows
from dcsurgery.training.precision import arithmetic
from dcsurgery.training.settings import READING, TrainingSettings

# Three at least: the choice of states is judged by a fold that neither chose nor measured.
LEAST_FOLDS = 3
LEAST_ROWS = 20
NAMED = 100


def probe_model(  # noqa: PLR0913 - one keyword per CLI option, by design
    model: str | Path,
    data: str | Path,
    output: str | Path | None = None,
    *,
    html: str | Path | None = None,
    images: str | Path | None = None,
    rows: int = 500,
    folds: int = 4,
    settings: TrainingSettings | None = None,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    revision: str | None = None,
    base: str | Path | None = None,
    towers: Mapping[str, str] | None = None,
    template: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ProbeReport:
    """Tell from gradients alone which hidden states would help a model on its user's own rows.

    `model` is a folder or Hub id, converted or not; of a trained connector it tells what more
    states would add. `rows` are drawn among those with pictures, by `settings.seed`; `folds` of
    them are held out in turn. Of `settings`, what says how rows become batches and in which
    precision is used, as finetune uses it; `data` and what follows are as finetune takes them.
    `output` is a JSON file that `convert --layers @FILE` reads, `html` a page for people.
    `progress` is called with (done, total, what). Raises DcSurgeryError of the fitting kind; no
    weight changes.
    """
    started = time.perf_counter()
    _check(rows, folds)
    if output is not None:
        check_file(Path(output), overwrite=overwrite, ours=is_answer)
    if html is not None:
        check_file(Path(html), overwrite=overwrite, ours=is_page)
    chosen = replace(settings or TrainingSettings(), train="connector").resolved()
    asked = Request(
        model,
        data,
        chosen,
        None if images is None else Path(images),
        split=split,
        columns=columns,
        revision=revision,
        base=base,
        towers=towers,
        template=template,
    )
    records = open_rows(asked)
    begun, installed = open_subject(asked)
    feed = open_feed(records, begun.processor, chosen)
    drawn = draw_rows(feed, rows, folds, chosen.seed)
    subject = Subject(
        begun.model,
        begun.plan.anatomy,
        named(begun.plan.architecture).arrange,
        installed,
        arithmetic(chosen, begun.model),
    )
    candidates = Candidates(begun.plan.anatomy)
    slopes = measure_slopes(subject, drawn, candidates.all, progress=progress)
    gains = Gains(
        slopes, [row.picture for row in drawn], [row.kind for row in drawn], seed=chosen.seed
    )
    report = ProbeReport(
        **Advice(gains, candidates, installed).fields(),
        model=str(model),
        base=begun.plan.base,
        architecture=begun.plan.architecture,
        feature_layers=list(begun.plan.anatomy.feature_layers),
        installed=[list(block.layers) for block in installed],
        data=str(data),
        data_sha256=data_digest(data),
        **_counts(feed, drawn, chosen),
        answer_tokens=int(slopes.tokens.sum()),
        settings={
            "rows": rows,
            "folds": folds,
            "split": split,
            **{name: getattr(chosen, name) for name in ("seed", *READING)},
        },
        seconds=round(time.perf_counter() - started, 3),
        versions={"dcsurgery": __version__, **{n: version(n) for n in ("torch", "transformers")}},
    )
    if output is not None:
        write_file(Path(output), report.model_dump_json(indent=2) + "\n")
    if html is not None:
        write_file(Path(html), render_page(report))
    return report


def _check(rows: int, folds: int) -> None:
    for name, value, least in (("rows", rows, LEAST_ROWS), ("folds", folds, LEAST_FOLDS)):
        if value < least:
            raise RequestError(f"--{name} {value} is too few", hint=f"use {least} or more")


def _counts(feed: Feed, drawn: Sequence[ProbeRow], settings: TrainingSettings) -> dict[str, Any]:
    """Return what the report says of the rows."""
    dataset = feed.dataset
    return {
        "rows": len(drawn),
        "pictures": len({row.picture for row in drawn}),
        "skipped_rows": len(dataset.bad),
        "skipped": {bad.id: bad.reason for bad in list(dataset.bad)[:NAMED]},
        **dataset.census.facts(),
        "lost": dataset.tally.counts().lines(settings.max_length),
    }
