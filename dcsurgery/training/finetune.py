"""finetune_connector: a model, data and an output in, a trained connector out."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dcsurgery import __version__
from dcsurgery.checkpoint.destination import check_output
from dcsurgery.data.batches import Collator, StreamedDataset, TrainingDataset
from dcsurgery.data.census import Census
from dcsurgery.data.conversations import BadRow
from dcsurgery.data.prompts import Prompter
from dcsurgery.data.rows import data_digest, read_rows
from dcsurgery.data.samples import Sample, dry_run_samples
from dcsurgery.errors import RequestError, TrainingError
from dcsurgery.surgery.convert import Conversion
from dcsurgery.surgery.plan_file import DELTA_FOLDER, TrainingRecord
from dcsurgery.training.checkpoints import latest_checkpoint, load_trained
from dcsurgery.training.estimate import Estimate, estimate
from dcsurgery.training.feeding import Feed, micro_batches, processes, rank
from dcsurgery.training.freeze import Trained
from dcsurgery.training.job import Job
from dcsurgery.training.logs import PLOT_FILE, Watch, draw
from dcsurgery.training.lora import add_adapters, describe_adapters, save_adapters
from dcsurgery.training.settings import TrainingSettings
from dcsurgery.training.start import Origin, Start, check_origin, start
from dcsurgery.training.trained_files import checkpoint_names, write_trained
from dcsurgery.training.trainer import Run, TrainingResult, carry_out, prepare
from dcsurgery.training.workspace import Workspace, check_workspace, open_workspace

PACKAGES = ("torch", "transformers", "accelerate", "peft")


@dataclass(frozen=True)
class Data:
    """What to train on: a file, folder or Hub data set, and how to read it."""

    data: str | Path
    images: Path | None = None
    split: str = "train"
    streaming: bool = False
    columns: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Finetuned:
    """A finished finetune_connector: what was trained, how it went, and what was written."""

    output: Path
    result: TrainingResult
    record: TrainingRecord
    bad: tuple[BadRow, ...]
    census: Census
    conversion: Conversion | None


@dataclass(frozen=True)
class TrainingPreview:
    """What a training would do, and would need; `lengths` are tokens of the rows looked at."""

    trained: Trained
    settings: TrainingSettings
    steps: int
    rows: int
    bad: tuple[BadRow, ...]
    census: Census
    samples: tuple[Sample, ...]
    estimate: Estimate
    batch: tuple[int, int, int]


def finetune_connector(  # noqa: PLR0913 - one keyword per CLI option, by design
    model: str | Path,
    data: str | Path,
    output: str | Path,
    *,
    images: str | Path | None = None,
    settings: TrainingSettings | None = None,
    connector: Mapping[str, Any] | None = None,
    split: str = "train",
    streaming: bool = False,
    columns: Mapping[str, str] | None = None,
    revision: str | None = None,
    base: str | Path | None = None,
    towers: Mapping[str, str] | None = None,
    template: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    watch: Watch | None = None,
) -> Finetuned:
    """Train a connector and write the model to `output`, in the form that `model` has.

    `model` is a folder or Hub id that convert or finetune wrote, or an unconverted one with
    `connector`, the keywords of convert ({"connector": "dci"}); `towers` and `template` are as
    convert takes them. `data`, `images` and `columns` are as read_rows takes them. Checkpoints and
    log are kept in OUTPUT.training/ until `output` is whole; `resume` goes on from there to the
    same weights, to the bit on a CPU. `watch` is called with every step. Raises DcSurgeryError of
    the fitting kind; the source is never changed. SIGINT and SIGTERM save a checkpoint before they
    raise KeyboardInterrupt or SystemExit.
    """
    target = Path(output)
    settings = (settings or TrainingSettings()).resolved()
    origin = Origin(model, revision, base, connector, towers, template)
    source = Data(data, None if images is None else Path(images), split, streaming, columns)
    check_output(target, overwrite=overwrite, sources=[check_origin(origin)])
    workspace = check_workspace(target, resume=resume, overwrite=overwrite)
    job, begun = _job(origin, source, settings)
    open_workspace(workspace)
    if isinstance(job.feed.dataset, TrainingDataset):
        job.feed.dataset.collect_bad(workspace.bad_rows)
    identity = _identity(begun, source)
    run = Run(workspace.folder, workspace.resumes, identity, watch)
    result = carry_out(begun.model, job, run)
    record = _record(begun.model, job, result, source, identity)
    conversion = None
    if rank() == 0:
        if result.sharded:
            begun = _reloaded(origin, job, workspace)
        conversion = _write(target, job, begun, workspace, record, overwrite)
        _leave_logs(target, job, result, workspace)
        workspace.clear()
    return Finetuned(target, result, record, _bad(job), job.feed.dataset.census, conversion)


def preview_finetune(  # noqa: PLR0913 - one keyword per CLI option, by design
    model: str | Path,
    data: str | Path,
    output: str | Path | None = None,
    *,
    images: str | Path | None = None,
    settings: TrainingSettings | None = None,
    connector: Mapping[str, Any] | None = None,
    split: str = "train",
    streaming: bool = False,
    columns: Mapping[str, str] | None = None,
    revision: str | None = None,
    base: str | Path | None = None,
    towers: Mapping[str, str] | None = None,
    template: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> TrainingPreview:
    """Return what finetune_connector would do, measured on one micro-batch; nothing is written.

    Raises whatever it would refuse.
    """
    settings = (settings or TrainingSettings()).resolved()
    origin = Origin(model, revision, base, connector, towers, template)
    source = Data(data, None if images is None else Path(images), split, streaming, columns)
    folder = check_origin(origin)
    if output is not None:
        check_output(Path(output), overwrite=overwrite, sources=[folder])
        check_workspace(Path(output), resume=resume, overwrite=overwrite)
    job, begun = _job(origin, source, settings)
    if torch.cuda.is_available() and settings.quantize is None:
        begun.model.to("cuda")
    dataset = job.feed.dataset
    samples = tuple(dry_run_samples(dataset))
    size, count = micro_batches(settings)
    return TrainingPreview(
        trained=job.trained,
        settings=settings,
        steps=job.steps,
        rows=0 if job.feed.streamed else len(dataset),
        bad=_bad(job),
        census=dataset.census,
        samples=samples,
        estimate=estimate(begun.model, job),
        batch=(size, count, processes()),
    )


def _job(origin: Origin, source: Data, settings: TrainingSettings) -> tuple[Job, Start]:
    """Open the data, load the model and make exactly what is announced trainable."""
    rows = read_rows(
        source.data,
        images=source.images,
        split=source.split,
        streaming=source.streaming,
        columns=source.columns,
    )
    if rows.streamed and settings.orientation == "raw":
        raise RequestError(
            "the pictures of a stream arrive turned as their EXIF tag says",
            hint="leave out --streaming, or --orientation raw",
        )
    begun = start(origin, settings)
    version = None if settings.prompt == "auto" else settings.prompt
    prompter = Prompter(
        begun.processor,
        version=version,
        aspect=settings.aspect,
        orientation=settings.orientation,
    )
    limits: dict[str, Any] = {"max_length": settings.max_length, "max_bad": settings.max_bad}
    dataset: TrainingDataset | StreamedDataset
    if rows.streamed:
        dataset = StreamedDataset(rows, prompter, **limits)
    else:
        dataset = TrainingDataset(rows, prompter, **limits)
    feed = Feed(dataset, Collator(begun.processor))
    steps = feed.steps(settings)
    trained = prepare(begun.model, begun.plan, feed, settings)
    plain = [name for name in trained.names if ".lora_" not in name]
    checkpoint_names(begun.model, begun.base, plain)
    return Job(begun.plan, settings, trained, steps, feed), begun


def _identity(begun: Start, source: Data) -> dict[str, Any]:
    plan = begun.plan
    return {
        "data": data_digest(source.data),
        "split": source.split,
        "columns": [f"{word}={name}" for word, name in sorted((source.columns or {}).items())],
        "base": plan.base.config_sha256,
        "connector": [plan.kind, plan.blocks, plan.pool],
        "values": [record.sha256 for record in plan.delta],
    }


def _record(
    model: Any, job: Job, result: TrainingResult, source: Data, identity: Mapping[str, Any]
) -> TrainingRecord:
    settings = job.settings
    assert settings.train is not None
    return TrainingRecord(
        train=settings.train,
        trained=list(job.trained.names),
        trained_parameters=job.trained.count,
        adapter=describe_adapters(model) if settings.train == "lora" else None,
        data=str(source.data),
        data_sha256=str(identity["data"]),
        rows=job.feed.dataset.bad.total if job.feed.streamed else len(job.feed.dataset),
        skipped_rows=len(job.feed.dataset.bad),
        columns=dict(source.columns or {}),
        **job.feed.dataset.census.facts(),
        seed=settings.seed,
        steps=result.steps,
        epochs=result.epochs,
        batch_size=settings.batch_size or 1,
        settings=settings.model_dump(mode="json"),
        first_loss=result.first_loss,
        last_loss=result.last_loss,
        seconds=round(result.seconds, 3),
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        versions={"dcsurgery": __version__, **{name: version(name) for name in PACKAGES}},
    )


def _reloaded(origin: Origin, job: Job, workspace: Workspace) -> Start:
    """Return the trained model whole, where processes hold a part each: from the last checkpoint.

    Raises TrainingError where there is none.
    """
    checkpoint = latest_checkpoint(workspace.folder)
    if checkpoint is None:
        raise TrainingError(
            "FSDP and DeepSpeed need a checkpoint to put the model together from",
            hint="leave out --save-steps 0",
        )
    begun = start(origin, job.settings)
    if job.settings.train == "lora":
        add_adapters(begun.model, job.settings)
    load_trained(checkpoint, begun.model, job.trained.names)
    return begun


def _write(
    target: Path,
    job: Job,
    begun: Start,
    workspace: Workspace,
    record: TrainingRecord,
    overwrite: bool,
) -> Conversion:
    adapter = None
    if job.settings.train == "lora":
        adapter = workspace.lora
        save_adapters(begun.model, adapter)
    return write_trained(
        target,
        plan=begun.plan,
        model=begun.model,
        trained=[name for name in job.trained.names if ".lora_" not in name],
        record=record,
        adapter=adapter,
        base=begun.base,
        source=begun.source,
        overwrite=overwrite,
    )


def _leave_logs(target: Path, job: Job, result: TrainingResult, workspace: Workspace) -> None:
    """Put log, picture and bad rows into OUT/dense_connector, beside the plan."""
    folder = target / DELTA_FOLDER
    if result.history:
        draw(result.history, job.plan, folder / PLOT_FILE)
    for path in (result.log, workspace.bad_rows):
        if path.is_file():
            shutil.copyfile(path, folder / path.name)


def _bad(job: Job) -> tuple[BadRow, ...]:
    return tuple(job.feed.dataset.bad)
