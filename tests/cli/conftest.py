"""Shared by the command line's tests: a tiny model and two ways to run a command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

Run = Callable[..., Any]


@pytest.fixture(scope="session")
def model(tiny_deep: Path) -> Path:
    """A tiny LLaVA with the depth and shards of llava-1.5-7b. Do not write into it."""
    return tiny_deep


@pytest.fixture
def run() -> Run:
    """Run a command in this process: result with exit_code, stdout and stderr."""
    from dcsurgery.cli.main import app

    def call(*arguments: object) -> Any:
        return CliRunner().invoke(app, [str(item) for item in arguments], prog_name="dcsurgery")

    return call


@pytest.fixture
def spawn() -> Run:
    """Run a command in a process of its own, as a user does, both streams piped."""

    def call(*arguments: object, code: str = "", **options: Any) -> Any:
        env = {**os.environ, "COLUMNS": "80", **options.pop("env", {})}
        start = ["-c", code] if code else ["-m", "dcsurgery"]
        return subprocess.run(
            [sys.executable, *start, *map(str, arguments)],
            text=True,
            timeout=300,
            **({"capture_output": True} | options),
            env=env,
        )

    return call
