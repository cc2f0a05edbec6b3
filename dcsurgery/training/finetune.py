"""finetune_connector: a model, data and an output in, a trained connector out."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, Unpack, overload

import torch
from torch import Tensor

from dcsurgery.checkpoint.destination import check_output
from dcsurgery.connectors.request import Connector, ConnectorKeywords
from dcsurgery.data.batches import TrainingDataset
from dcsurgery.data.conversations import BadRow
from dcsurgery.data.samples import dry_run_samples
from dcsurgery.errors import RequestError
from dcsurgery.printing.sheet import Progress
from dcsurgery.surgery.conversion import Conversion, wanted_output
from dcsurgery.surgery.plan_file import ADAPTED, DELTA_FOLDER, TrainingRecord
from dcsurgery.training.advice import advice
from dcsurgery.training.estimate import estimate
from dcsurgery.training.feeding import micro_batches, processes, rank
from dcsurgery.training.finetuned import Finetuned, TrainingPlan, told_merged
from dcsurgery.training.job import Job, Request, open_feed, open_rows
from dcsurgery.training.logs import PLOT_FILE, Watch, draw
from dcsurgery.training.lora import add_adapters, save_adapters
from dcsurgery.training.memory import check_memory
from dcsurgery.training.record import make_record
from dcsurgery.training.settings import TrainingSettings
from dcsurgery.training.sharding import check_sharding
from dcsurgery.training.start import Start, check_origin, start
from dcsurgery.training.trained_files import checkpoint_names, write_trained
from dcsurgery.training.trainer import Run, TrainingResult, carry_out, prepare
from dcsurgery.training.workers import worker_count
from dcsurgery.training.workspace import Workspace, check_workspace, open_workspace


class FinetuneOptions(ConnectorKeywords, total=False):
    """The keywords of finetune_connector, in a dry run as well."""

    images: str | Path | None
    settings: TrainingSettings | None
    connector: Connector | str | Mapping[str, Any] | None
    split: str
    streaming: bool
    columns: Mapping[str, str] | None
    revision: str | None
    base: str | Path | None
    towers: Mapping[str, str] | None
    template: str | None
    resume: bool
    overwrite: bool


@overload
def finetune_connector(
    model: str | Path,
    data: str | Path,
    output: str | Path,
    *,
    dry_run: Literal[False] = ...,
    progress: Progress | None = ...,
    watch: Watch | None = ...,
    tell: Callable[[str], None] | None = ...,
    **options: Unpack[FinetuneOptions],
) -> Finetuned: ...


@overload
def finetune_connector(
    model: str | Path,
    data: str | Path,
    output: str | Path | None = ...,
    *,
    dry_run: Literal[True],
    **options: Unpack[FinetuneOptions],
) -> TrainingPlan: ...


def finetune_connector(  # noqa: PLR0913 - one keyword per CLI option, by design
    model: str | Path,
    data: str | Path,
    output: str | Path | None = None,
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
    watch: Watch | None = None,
    tell: Callable[[str], None] | None = None,
    **options: Unpack[FinetuneOptions],
) -> Finetuned | TrainingPlan:
    """Train a connector and write the model to `output`, in the form that `model` has.

    `model` is a folder or Hub id (at `revision`) that convert or finetune wrote, `base` where its
    base is now; or an unconverted one with `connector`, which it gets on the way as convert takes
    it; `towers` and `template` are as convert takes them. `data`, `images`, `split`, `streaming`
    and `columns` are as read_rows takes them. Checkpoints and log are kept in OUTPUT.training/
    until `output` is whole; `resume` goes on from there to the same weights, to the bit on a CPU.
    `progress(step, steps, words)` is called with every step, `tell` with each piece of advice
    before the first one. `dry_run` returns the plan, measured on one micro-batch, and writes
    nothing. Raises DcSurgeryError of the fitting kind; the source is never changed. SIGINT and
    SIGTERM save a checkpoint before they raise KeyboardInterrupt or SystemExit.
    """
    asked = _request(model, data, **options)
    check_sharding(asked.settings)
    worker_count(asked.settings, streamed=asked.streaming)
    target = wanted_output(output, dry_run=dry_run)
    folder = check_origin(asked)
    if target is not None:
        check_output(target, overwrite=asked.overwrite, sources=[folder])
        workspace = check_workspace(target, resume=asked.resume, overwrite=asked.overwrite)
    job, begun = _job(asked)
    if dry_run or target is None:
        return _plan(str(model), job, begun)
    held = check_memory(begun.model, job)
    open_workspace(workspace)
    if isinstance(job.feed.dataset, TrainingDataset):
        # All processes have measured the same rows, and the first one has made the folder.
        job.feed.dataset.collect_bad(workspace.bad_rows, old=rank() == 0)
    if tell is not None and rank() == 0:
        for line in (*held, *told_merged(begun.merged), *advice(job)):
            tell(line)
    identity = _identity(begun, asked, job)
    run = Run(workspace.folder, workspace.resumes, identity, _watch(progress, watch))
    result = carry_out(begun.model, job, run)
    job.feed.share_tally()
    record = make_record(begun, job, result, asked, identity)
    conversion = None
    if rank() == 0:
        if result.values is not None:
            begun = _reloaded(asked, job, result.values)
        leave = partial(_leave_logs, job, result, workspace)
        conversion = _write(target, job, begun, workspace, record, asked.overwrite, leave)
        workspace.clear()
    census = job.feed.dataset.census
    told = (advice(job), begun.merged)
    return Finetuned(target, result, record, _bad(job), census, conversion, *told)


def _request(
    model: str | Path,
    data: str | Path,
    *,
    images: str | Path | None = None,
    settings: TrainingSettings | None = None,
    connector: Connector | str | Mapping[str, Any] | None = None,
    **options: Any,
) -> Request:
    own = {field.name for field in fields(Request)} & options.keys()
    plain = {name: options.pop(name) for name in own}
    return Request(
        model,
        data,
        (settings or TrainingSettings()).resolved(),
        None if images is None else Path(images),
        connector=_connector(connector, options),
        **plain,
    )


def _plan(model: str, job: Job, begun: Start) -> TrainingPlan:
    settings, dataset = job.settings, job.feed.dataset
    if torch.cuda.is_available() and settings.quantize is None:
        begun.model.to("cuda")
    size, count = micro_batches(settings)
    return TrainingPlan(
        model=model,
        trained=job.trained,
        settings=settings,
        steps=job.steps,
        rows=0 if job.feed.streamed else len(dataset),
        bad=_bad(job),
        census=dataset.census,
        samples=tuple(dry_run_samples(dataset)),
        estimate=estimate(begun.model, job),
        batch=(size, count, processes()),
        measured=dataset.measured,
        advice=advice(job),
        merged=begun.merged,
    )


def _watch(progress: Progress | None, watch: Watch | None) -> Watch | None:
    if watch is not None:
        text = "watch(row) is now progress(step, steps, words)"
        warnings.warn(text, DeprecationWarning, stacklevel=3)
        return watch
    if progress is None:
        return None

    def tell(row: dict[str, Any]) -> None:
        words = f"loss {row['loss']:.4f}, {row['tokens_per_second']:,.0f} tokens/s"
        if row["cut_rows"]:
            words += f", {row['cut_rows']} of {row['rows']} rows cut"
        progress(row["step"], row["steps"], words)

    return tell


def _connector(
    connector: Connector | str | Mapping[str, Any] | None, options: Mapping[str, Any]
) -> Connector | None:
    if isinstance(connector, Mapping):
        text = "connector is a Connector, or its kind with the other fields as keywords"
        warnings.warn(text, DeprecationWarning, stacklevel=4)
        return Connector.of(**{**connector, **options})
    if connector is None and options:
        raise RequestError(
            f"{', '.join(options)} is said of no connector", hint='name its kind: connector="dci"'
        )
    return None if connector is None else Connector.of(connector, **options)


def _job(asked: Request) -> tuple[Job, Start]:
    """Open the data, load the model and make exactly what is announced trainable."""
    settings = asked.settings
    rows = open_rows(asked)
    begun = start(asked)
    feed = open_feed(rows, begun.processor, settings)
    if isinstance(feed.dataset, TrainingDataset):
        feed.dataset.measure()
    steps = feed.steps(settings)
    trained = prepare(begun.model, begun.plan, feed, settings)
    plain = [name for name in trained.names if ADAPTED not in name]
    checkpoint_names(begun.model, begun.base, plain)
    return Job(begun.plan, settings, trained, steps, feed), begun


def _identity(begun: Start, asked: Request, job: Job) -> dict[str, Any]:
    plan = begun.plan
    return {
        **asked.identity(job.feed.dataset.rows.root),
        "base": plan.base.config_sha256,
        "connector": [plan.kind, list(map(list, plan.layout.groups)), plan.layout.pool],
        "values": [record.sha256 for record in plan.delta],
    }


def _reloaded(asked: Request, job: Job, values: Mapping[str, Tensor]) -> Start:
    """Return the trained model whole, where processes hold a part of it each."""
    begun = start(asked)
    if job.settings.train == "lora":
        add_adapters(begun.model, job.settings)
    parameters = dict(begun.model.named_parameters())
    for name, value in values.items():
        parameters[name].data = value
    return begun


def _write(  # noqa: PLR0913 - what a training leaves behind
    target: Path,
    job: Job,
    begun: Start,
    workspace: Workspace,
    record: TrainingRecord,
    overwrite: bool,
    leave: Callable[[Path], None],
) -> Conversion:
    adapter = None
    if job.settings.train == "lora":
        adapter = workspace.lora
        save_adapters(begun.model, adapter)
    return write_trained(
        target,
        plan=begun.plan,
        model=begun.model,
        trained=list(dict.fromkeys([*record.trained, *begun.merged])),
        record=record,
        adapter=adapter,
        base=begun.base,
        source=begun.source,
        overwrite=overwrite,
        leave=leave,
    )


def _leave_logs(job: Job, result: TrainingResult, workspace: Workspace, target: Path) -> None:
    """Put log, picture and bad rows into dense_connector/, beside the plan."""
    folder = target / DELTA_FOLDER
    if result.history:
        draw(result.history, job.plan, folder / PLOT_FILE)
    shutil.copyfile(result.log, folder / result.log.name)
    if workspace.bad_rows.is_file():
        # Every process writes what it finds, and after a stop it is found again.
        lines = workspace.bad_rows.read_text(encoding="utf-8").splitlines()
        text = "".join(f"{line}\n" for line in dict.fromkeys(lines))
        (folder / workspace.bad_rows.name).write_text(text, encoding="utf-8")


def _bad(job: Job) -> tuple[BadRow, ...]:
    return tuple(job.feed.dataset.bad)
