"""train(): one training of an attached model on any data set of encoded rows."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from dcsurgery.errors import RequestError
from dcsurgery.loading.load import quiet_transformers
from dcsurgery.surgery.plan_file import SurgeryPlan
from dcsurgery.training.arguments import training_arguments
from dcsurgery.training.average import AVERAGE_FILE
from dcsurgery.training.checkpoints import (
    TRAINED_FILE,
    Interruption,
    check_same,
    latest_checkpoint,
    load_trained,
    step_of,
)
from dcsurgery.training.engine import Engine, StopInOrder
from dcsurgery.training.feeding import Collate, Feed
from dcsurgery.training.freeze import Trained, choose, freeze, without_unused
from dcsurgery.training.gradients import without_gradient
from dcsurgery.training.job import Job
from dcsurgery.training.logs import LOG_FILE, Recorder, Watch
from dcsurgery.training.lora import add_adapters
from dcsurgery.training.loss import SupervisedHead, supervised_loss
from dcsurgery.training.precision import arithmetic, autocast
from dcsurgery.training.settings import TrainingSettings
from dcsurgery.training.workers import worker_count


@dataclass(frozen=True)
class Run:
    """Where a training writes, and whether one that stopped there goes on.

    `identity` is what must be the same for that, beside the settings. `watch` is called with every
    logged step, `callbacks` are transformers' own.
    """

    output_dir: Path
    resume: bool = False
    identity: Mapping[str, Any] = field(default_factory=dict)
    watch: Watch | None = None
    callbacks: Sequence[TrainerCallback] = ()


@dataclass(frozen=True)
class TrainingResult:
    """What a training did. `history` has one entry per step, as in `log`.

    `values` are those of what was trained where FSDP or DeepSpeed has split the model, whose own
    are parts: whole in the first process, empty in the others; None where the model has them.
    `untouched` are announced parameters that never had a gradient other than zero.
    """

    trained: Trained
    settings: TrainingSettings
    steps: int
    epochs: float
    first_loss: float
    last_loss: float
    seconds: float
    resumed_at: int
    history: tuple[dict[str, Any], ...]
    log: Path
    values: Mapping[str, Tensor] | None = None
    untouched: tuple[str, ...] = ()


def train(  # noqa: PLR0913 - the parts of a training, each its own thing
    model: Any,
    plan: SurgeryPlan,
    dataset: Any,
    collator: Collate,
    settings: TrainingSettings,
    *,
    output_dir: str | Path,
    callbacks: Sequence[TrainerCallback] = (),
    watch: Watch | None = None,
    resume: bool = False,
    identity: Mapping[str, Any] | None = None,
) -> TrainingResult:
    """Train an attached model in place and return what happened; it is in eval mode after.

    `dataset` gives encoded rows: mappings with "input_ids" and "labels" [T] (-100 where nothing is
    to be learnt), "attention_mask" and the model's image inputs; `collator` makes a batch of a list
    of them. A data set may have `lengths` (tokens per row, negative for text alone) for
    group_by_length, and `name_of(index)`, else rows are called by their "id" or number.
    `output_dir` gets checkpoints and training.jsonl; with `resume` a training that stopped there
    goes on, and `identity` is what must be the same for that beside the settings. `watch` is called
    with every logged step. Trained parameters become fp32 and stay so; the base keeps its dtype.

    SIGINT and SIGTERM end the step, save, and raise KeyboardInterrupt or SystemExit. Raises
    TrainingError when the loss is no number or nothing can be trained, RequestError for settings
    that do not fit the data.
    """
    run = Run(Path(output_dir), resume, identity or {}, watch, tuple(callbacks))
    feed = Feed(dataset, collator)
    settings = settings.resolved()
    arithmetic(settings, model)
    worker_count(settings, streamed=feed.streamed)
    steps = feed.steps(settings)
    trained = prepare(model, plan, feed, settings)
    job = Job(plan, settings, trained, steps, feed)
    return carry_out(model, job, run)


def carry_out(model: Any, job: Job, run: Run) -> TrainingResult:
    """Run a prepared training to its end, or from where it stopped; see train()."""
    started = time.perf_counter()
    folder = run.output_dir
    facts = job.facts | dict(run.identity)
    checkpoint = latest_checkpoint(folder) if run.resume else None
    if checkpoint is not None:
        check_same(checkpoint, facts)
        job.feed.load_tally(checkpoint)
    resumed_at = step_of(checkpoint) if checkpoint else 0
    folder.mkdir(parents=True, exist_ok=True)
    recorder = Recorder(folder, run.watch, resumed_at)
    values = None
    with _ready(model, job.settings), Interruption() as interruption:
        if checkpoint is not None and resumed_at >= job.steps:
            file = AVERAGE_FILE if job.settings.average else TRAINED_FILE
            load_trained(checkpoint, model, job.trained.names, file)
            untouched = _untouched(checkpoint, job.trained)
        else:
            arguments = training_arguments(job, folder, arithmetic(job.settings, model))
            callbacks = [StopInOrder(interruption), recorder, *run.callbacks]
            engine = Engine(model, job, arguments, facts, callbacks)
            engine.run(checkpoint)
            values = engine.whole_values if engine.sharded else None
            untouched = engine.untouched()
        history = tuple(recorder.history)
        interruption.leave()
    return TrainingResult(
        trained=job.trained,
        settings=job.settings,
        steps=history[-1]["step"] if history else resumed_at,
        epochs=history[-1]["epoch"] if history else 0.0,
        first_loss=history[0]["loss"] if history else math.nan,
        last_loss=history[-1]["loss"] if history else math.nan,
        seconds=time.perf_counter() - started,
        resumed_at=resumed_at,
        history=history,
        log=folder / LOG_FILE,
        values=values,
        untouched=untouched,
    )


def _untouched(checkpoint: Path, trained: Trained) -> tuple[str, ...]:
    """Return what never had a gradient up to a checkpoint."""
    state = torch.load(checkpoint / "optimizer.pt", "cpu", weights_only=True, mmap=True)
    return without_gradient(state, trained)


@contextmanager
def _ready(model: Any, settings: TrainingSettings) -> Iterator[None]:
    """Checkpoint activations while the block runs, and leave the model as one that answers."""
    wanted = settings.grad_checkpointing
    checkpointing = torch.cuda.is_available() if wanted is None else wanted
    cached = getattr(model.config, "use_cache", None)
    if checkpointing:
        # The older name warns where the newer one exists.
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    try:
        with quiet_transformers():
            yield
    finally:
        if checkpointing:
            disable = getattr(model, "activation_checkpointing_disable", None)
            (disable or model.gradient_checkpointing_disable)()
        if cached is not None:
            model.config.use_cache = cached
        model.eval()


def prepare(model: Any, plan: SurgeryPlan, feed: Feed, settings: TrainingSettings) -> Trained:
    """Make exactly what `settings` (resolved) names trainable, adapters included; return it."""
    _check_reporting(settings)
    torch.manual_seed(settings.seed)
    if settings.train == "lora":
        add_adapters(model, settings)
    trained = choose(model, plan, settings)
    freeze(model, trained)
    if settings.train_tower:
        trained = without_unused(model, trained, _probe(model, feed, settings))
        freeze(model, trained)
    return trained


def _check_reporting(settings: TrainingSettings) -> None:
    """Raise RequestError for a tracker that transformers does not know or that is not installed."""
    from transformers.integrations import get_available_reporting_integrations

    here = [*get_available_reporting_integrations(), "all", "none"]
    if settings.report_to is not None and settings.report_to not in here:
        raise RequestError(
            f"{settings.report_to} is not installed, or unknown to transformers",
            hint=f"install it, or leave out --report-to; found here: {', '.join(here)}",
        )


def _probe(model: Any, feed: Feed, settings: TrainingSettings) -> Tensor:
    """Return the loss of one row with an image."""
    head = SupervisedHead(model)
    try:
        with autocast(arithmetic(settings, model)):
            return supervised_loss(model, head, feed.collator([feed.example]))
    finally:
        head.remove()
