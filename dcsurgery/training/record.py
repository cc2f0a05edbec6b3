"""What a plan keeps of a training: which tensors, on what, how, and what was lost on the way."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

from dcsurgery import __version__
from dcsurgery.errors import TrainingError
from dcsurgery.surgery.plan_file import ADAPTED, TrainingRecord
from dcsurgery.training.job import Job, Request
from dcsurgery.training.lora import describe_adapters
from dcsurgery.training.sharding import size
from dcsurgery.training.start import Start
from dcsurgery.training.trained_files import checkpoint_names
from dcsurgery.training.trainer import TrainingResult

PACKAGES = ("torch", "transformers", "accelerate", "peft")


def make_record(
    begun: Start, job: Job, result: TrainingResult, asked: Request, identity: Mapping[str, Any]
) -> TrainingRecord:
    """Return what the plan keeps of a training that has ended.

    Raises TrainingError when nothing was learnt at all.
    """
    if set(result.untouched) >= set(job.trained.names):
        raise TrainingError(
            "no parameter ever had a gradient: nothing was trained, and nothing is written",
            hint="look at --dry-run: are there images, and answers that carry loss?",
        )
    settings, lost = job.settings, job.feed.dataset.tally.counts()
    assert settings.train is not None
    untouched = [name for name in result.untouched if ADAPTED not in name]
    moved = [name for name in job.trained.names if name not in result.untouched]
    sizes = {name: size(value) for name, value in begun.model.named_parameters()}
    return TrainingRecord(
        train=settings.train,
        trained=moved,
        trained_parameters=sum(sizes[name] for name in moved),
        untouched=sorted(checkpoint_names(begun.model, begun.base, untouched).values()),
        adapter=describe_adapters(begun.model) if settings.train == "lora" else None,
        data=str(asked.data),
        data_sha256=str(identity["data"]),
        rows=job.feed.dataset.bad.total if job.feed.streamed else len(job.feed.dataset),
        skipped_rows=len(job.feed.dataset.bad),
        columns=dict(asked.columns or {}),
        **job.feed.dataset.census.facts(),
        cut_rows=lost.cut_rows,
        cut_answers=lost.cut_answers,
        dropped=lost.dropped,
        seed=settings.seed,
        steps=result.steps,
        epochs=result.epochs,
        batch_size=settings.batch_size or 1,
        settings=asdict(settings),
        first_loss=result.first_loss,
        last_loss=result.last_loss,
        seconds=round(result.seconds, 3),
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        versions={"dcsurgery": __version__, **{name: version(name) for name in PACKAGES}},
    )
