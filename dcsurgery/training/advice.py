"""What people should hear before a training's first step."""

from __future__ import annotations

import math

from dcsurgery.training.feeding import processes
from dcsurgery.training.job import Job

# Below, a rate has hardly climbed before it falls, and little is learnt.
FEW_UPDATES = 50
SMALL_BATCH = 8


def advice(job: Job) -> tuple[str, ...]:
    """Return advice about few updates, and about rows of the sample that lose something."""
    found = [] if job.feed.streamed else _few_updates(job)
    if job.feed.streamed and job.settings.workers:
        found.append("a stream is read by the training itself: --workers changes nothing")
    measured = getattr(job.feed.dataset, "measured", None)
    if measured is not None:
        of = f" of {measured.rows:,} that were looked at"
        found += measured.losses.lines(job.settings.max_length, of=of)
    return tuple(found)


def _few_updates(job: Job) -> list[str]:
    """A number of steps that was asked for is meant so."""
    settings, rows = job.settings, len(job.feed.dataset)
    if settings.max_steps is not None or job.steps >= FEW_UPDATES:
        return []
    size = settings.batch_size or 1
    small = min(size, math.ceil(SMALL_BATCH / processes()) * processes())
    epochs = max(math.ceil(settings.epochs), math.ceil(FEW_UPDATES / math.ceil(rows / small)))
    batch = f"--batch-size {small} " if small < size else ""
    times = "" if settings.epochs == 1 else f", {settings.epochs:g} times,"
    return [
        f"{rows:,} rows in batches of {size}{times} make {job.steps} "
        f"update{'' if job.steps == 1 else 's'}, too few to learn much: "
        f"try {batch}--epochs {epochs}"
    ]
