"""Validate, dry-run and complete every shipped recipe with --smoke: python -m tests.recipes.every.

Offline, one process per core. Ends with 1 when a recipe fails.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from dcsurgery.recipes.catalog import shipped


def command(*arguments: str) -> int:
    """Run the command line in this process and return its exit code."""
    from typer.testing import CliRunner

    from dcsurgery.cli.main import app

    done = CliRunner().invoke(app, ["recipe", *arguments], prog_name="dcsurgery")
    if done.exit_code:
        print(done.output, file=sys.stderr)
    return done.exit_code


def complete(name: str) -> tuple[str, int, float]:
    """Return a recipe's name, the first exit code that is not zero, and seconds."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        work = str(Path(folder) / "run")
        code = (
            command("validate", name)
            or command("run", name, "--dry-run", "--work-dir", work, "--data-dir", folder)
            or command("run", name, "--smoke", "--quiet", "--work-dir", work)
        )
    return name, code, time.monotonic() - started


def prepare() -> None:
    """Make a worker quiet and single-threaded: as many run as there are cores."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    import torch

    torch.set_num_threads(1)


def main() -> int:
    """Run all recipes and return the number of those that failed."""
    failed = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(mp_context=context, initializer=prepare) as pool:
        for name, code, seconds in pool.map(complete, shipped()):
            print(f"{'ok  ' if code == 0 else 'FAIL'} {name}: {seconds:.0f} s", flush=True)
            failed += [name] if code else []
    return len(failed)


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
