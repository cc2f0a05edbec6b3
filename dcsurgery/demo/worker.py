"""Processes that share the work: every one takes the units that carry its number.

    python -m dcsurgery.demo.worker FOLDER NUMBER

Finished units are files, so that a run that was stopped goes on.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from dcsurgery.demo.exercise import Exercise
from dcsurgery.demo.outcome import read_outcome
from dcsurgery.errors import TrainingError

WORK = "work.json"
RUNS = "runs"
PAUSE = 0.5
Say = Callable[[str], None]


class Unit(BaseModel):
    """One arm of one tower, which is a base in a folder of that name; `layers` of a chosen arm."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tower: str
    seed: int
    arm: str
    worker: int
    layers: str | None = None

    def folder(self, work: Path) -> Path:
        """Return where this unit's files are."""
        return work / RUNS / self.tower / self.arm


class Work(BaseModel):
    """Everything the workers must know; what differs in a folder that is used again is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    exercise: Exercise
    units: list[Unit]


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def do_units(work: Path, number: int) -> None:
    """Do the units of one worker, in order, in this process."""
    from dcsurgery.demo.training import run_once

    told = Work.model_validate_json((work / WORK).read_bytes())
    for unit in told.units:
        if unit.worker != number:
            continue
        base, folder = work / unit.tower, unit.folder(work)
        run_once(base, unit.arm, unit.seed, told.exercise, folder, unit.layers)


def run_workers(work: Path, told: Work, say: Say) -> None:
    """Do all units in parallel processes, one thread each, and tell when one is finished.

    Raises TrainingError when a process fails.
    """
    numbers = sorted({unit.worker for unit in told.units})
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    logs = [work / RUNS / f"worker-{number}.log" for number in numbers]
    processes = []
    try:
        for number, log in zip(numbers, logs, strict=True):
            with open(log, "a", encoding="utf-8") as stream:
                command = [sys.executable, "-m", "dcsurgery.demo.worker", str(work), str(number)]
                processes.append(
                    subprocess.Popen(
                        command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
                        env=environment,
                    )
                )  # fmt: skip
        _watch(work, told, processes, logs, say)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def _watch(
    work: Path,
    told: Work,
    processes: Sequence[subprocess.Popen[bytes]],
    logs: Sequence[Path],
    say: Say,
) -> None:
    waiting = list(told.units)
    while waiting:
        running = [process.poll() is None for process in processes]
        for unit in list(waiting):
            done = read_outcome(unit.folder(work))
            if done is not None:
                waiting.remove(unit)
                count = len(told.units) - len(waiting)
                say(
                    f"  {count:2d} of {len(told.units)}  {unit.tower}  {unit.arm:9s} "
                    f"validation {done.curve[0]:.1%} -> {done.curve[done.steps]:.1%}"
                )
        for process, log in zip(processes, logs, strict=True):
            if process.poll():
                last = log.read_text(encoding="utf-8", errors="replace").strip().split("\n")[-1]
                raise TrainingError(f"a worker failed: {last[:200]}", hint=f"{log} has the rest")
        if waiting and not any(running):
            raise TrainingError("the workers left work undone", hint=f"look into {logs[0].parent}")
        time.sleep(PAUSE if waiting else 0)


def main() -> None:
    """Do the units of the worker named on the command line."""
    import torch

    torch.set_num_threads(1)
    do_units(Path(sys.argv[1]), int(sys.argv[2]))


if __name__ == "__main__":
    main()
