"""finetune_connector: a model, data and an output in, a trained connector out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dcsurgery.checkpoint.destination import check_output
from dcsurgery.data.batches import Measured, TrainingDataset
from dcsurgery.data.census import Census
from dcsurgery.data.conversations import BadRow
from dcsurgery.data.samples import Sample, dry_run_samples
from dcsurgery.errors import TrainingError
from dcsurgery.surgery.convert import Conversion
from dcsurgery.surgery.plan_file import DELTA_FOLDER, TrainingRecord
from dcsurgery.training.advice import advice
from dcsurgery.training.checkpoints import latest_checkpoint, load_trained
from dcsurgery.training.estimate import Estimate, estimate
from dcsurgery.training.feeding import micro_batches, processes, rank
from dcsurgery.training.freeze import Trained
from dcsurgery.training.job import Data, Job, open_feed, open_rows
from dcsurgery.training.logs import PLOT_FILE, Watch, draw
from dcsurgery.training.lora import add_adapters, save_adapters
from dcsurgery.training.record import make_record
from dcsurgery.training.settings import TrainingSettings
from dcsurgery.training.start import Origin, Start, check_origin, start
from dcsurgery.training.trained_files import checkpoint_names, write_trained
from dcsurgery.training.trainer import Run, TrainingResult, carry_out, prepare
from dcsurgery.training.workspace import Workspace, check_workspace, open_workspace


@dataclass(frozen=True)
class Finetuned:
    """A finished finetune_connector: what was trained, how it went, and what was written."""

    output: Path
    result: TrainingResult
    record: TrainingRecord
    bad: tuple[BadRow, ...]
    census: Census
    conversion: Conversion | None
    advice: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingPreview:
    """What a training would do, and would need.

    `measured` is what became of a sample of rows, None for a stream; `advice` is for people.
    """

    trained: Trained
    settings: TrainingSettings
    steps: int
    rows: int
    bad: tuple[BadRow, ...]
    census: Census
    samples: tuple[Sample, ...]
    estimate: Estimate
    batch: tuple[int, int, int]
    measured: Measured | None = None
    advice: tuple[str, ...] = ()


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
    tell: Callable[[str], None] | None = None,
) -> Finetuned:
    """Train a connector and write the model to `output`, in the form that `model` has.

    `model` is a folder or Hub id that convert or finetune wrote, or an unconverted one with
    `connector`, the keywords of convert ({"connector": "dci"}); `towers` and `template` are as
    convert takes them. `data`, `images` and `columns` are as read_rows takes them. Checkpoints and
    log are kept in OUTPUT.training/ until `output` is whole; `resume` goes on from there to the
    same weights, to the bit on a CPU. `watch` is called with every step, `tell` with each piece of
    advice before the first one. Raises DcSurgeryError of
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
        # All processes have measured the same rows, and the first one has made the folder.
        job.feed.dataset.collect_bad(workspace.bad_rows, old=rank() == 0)
    if tell is not None and rank() == 0:
        for line in advice(job):
            tell(line)
    identity = _identity(begun, source, job)
    run = Run(workspace.folder, workspace.resumes, identity, watch)
    result = carry_out(begun.model, job, run)
    job.feed.share_tally()
    record = make_record(begun, job, result, source, identity)
    conversion = None
    if rank() == 0:
        if result.sharded:
            begun = _reloaded(origin, job, workspace)
        leave = partial(_leave_logs, job, result, workspace)
        conversion = _write(target, job, begun, workspace, record, overwrite, leave)
        workspace.clear()
    census = job.feed.dataset.census
    return Finetuned(target, result, record, _bad(job), census, conversion, advice(job))


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
        measured=dataset.measured,
        advice=advice(job),
    )


def _job(origin: Origin, source: Data, settings: TrainingSettings) -> tuple[Job, Start]:
    """Open the data, load the model and make exactly what is announced trainable."""
    rows = open_rows(source, settings)
    begun = start(origin, settings)
    feed = open_feed(rows, begun.processor, settings)
    if isinstance(feed.dataset, TrainingDataset):
        feed.dataset.measure()
    steps = feed.steps(settings)
    trained = prepare(begun.model, begun.plan, feed, settings)
    plain = [name for name in trained.names if ".lora_" not in name]
    checkpoint_names(begun.model, begun.base, plain)
    return Job(begun.plan, settings, trained, steps, feed), begun


def _identity(begun: Start, source: Data, job: Job) -> dict[str, Any]:
    plan = begun.plan
    return {
        **source.identity(job.feed.dataset.rows.root),
        "base": plan.base.config_sha256,
        "connector": [plan.kind, plan.blocks, plan.pool],
        "values": [record.sha256 for record in plan.delta],
    }


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
        trained=[name for name in record.trained if ".lora_" not in name],
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
