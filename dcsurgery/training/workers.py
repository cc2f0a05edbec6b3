"""Processes that read and encode rows while the model computes."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dcsurgery.errors import RequestError, TrainingError
from dcsurgery.training.checkpoints import Interruption
from dcsurgery.training.settings import TrainingSettings

# As many as LLaVA's own code uses.
MOST = 4


def worker_count(settings: TrainingSettings, *, streamed: bool) -> int:
    """Return how many processes read rows for this one; a stream is read by the training itself.

    Without a GPU the cores are busy with the model, so that none is the default there. Raises
    RequestError where a system has no processes that share their memory.
    """
    forks = sys.platform == "linux"
    if settings.workers and not forks:
        raise RequestError(
            f"--workers {settings.workers} needs Linux: elsewhere each would load the data anew",
            hint="leave out --workers",
        )
    if streamed:
        return 0
    if settings.workers is not None:
        return settings.workers
    if not forks or not torch.cuda.is_available():
        return 0
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(0, min(MOST, cores - 1))


def start_worker(number: int) -> None:
    """Make a new worker leave it to the training when to stop, whom a terminal tells as well."""
    for name in Interruption.SIGNALS:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    # Or tokenizers warn that they do not use threads after a fork.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


@contextmanager
def deaths_told() -> Iterator[None]:
    """Raise TrainingError where a worker dies while the block runs."""
    try:
        with warnings.catch_warnings():
            # Torch advises against more than there are cores, in its own words.
            warnings.filterwarnings("ignore", "This DataLoader will create")
            yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise TrainingError(
            f"a process that reads rows has died: {str(error).splitlines()[0][:160]}",
            hint="was the memory full? go on with --resume, with fewer --workers, or --workers 0",
        ) from None
