"""How much memory a piece of work takes: of the GPU where there is one, else of this process."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

PROCESS = Path("/proc/self")


def restart_peak() -> None:
    """Forget the peak so far, where the system lets a process do so."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):
        (PROCESS / "clear_refs").write_text("5")


def peak() -> int | None:
    """Return the bytes at the peak since restart_peak, None where the system does not tell."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    with suppress(OSError, StopIteration, ValueError):
        lines = (PROCESS / "status").read_text().splitlines()
        line = next(line for line in lines if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return None
