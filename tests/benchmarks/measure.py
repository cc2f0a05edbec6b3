"""Measure one command as a subprocess: time, peak memory, bytes written."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The kernel counts ru_oublock in these units, whatever the disk's blocks are.
OUBLOCK = 512


@dataclass(frozen=True)
class Run:
    """One run: seconds on the wall, peak resident bytes, bytes the kernel was told to write, and
    the seconds of all processors (user and system), which a busy machine changes little.
    """

    seconds: float
    peak_rss: int
    written: int
    processor: float = 0.0


@dataclass
class Series:
    """All runs of one command."""

    name: str
    runs: list[Run] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median of the wall times in seconds."""
        return statistics.median(run.seconds for run in self.runs)

    @property
    def peak_rss(self) -> int:
        """Largest peak of resident memory in bytes."""
        return max(run.peak_rss for run in self.runs)

    @property
    def written(self) -> int:
        """Largest number of bytes written."""
        return max(run.written for run in self.runs)


def measure(command: Sequence[str]) -> Run:
    """Run a command to its end. Raises RuntimeError, with its stderr, when it fails.

    Peak memory and bytes come from wait4 and include waited-for children: ru_maxrss, and
    ru_oublock, which is the sum that /proc/PID/io calls write_bytes. This process must stay small:
    a child's peak starts at its parent's size.
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    # The pipe closes when the command ends; wait4 then takes the usage that Popen would drop.
    talk = child.stderr.read().decode(errors="replace") if child.stderr else ""
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.stderr:
        child.stderr.close()
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)[:300]} ended with {child.returncode}:\n{talk}")
    unit = 1 if sys.platform == "darwin" else 1024
    busy = usage.ru_utime + usage.ru_stime
    return Run(seconds, usage.ru_maxrss * unit, usage.ru_oublock * OUBLOCK, busy)


def forget(folder: Path) -> None:
    """Write back everything pending and drop a folder's files from the page cache.

    Needs no root and leaves other programs' files cached. The host of a virtual machine may still
    hold a copy.
    """
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            opened = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(opened, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(opened)
