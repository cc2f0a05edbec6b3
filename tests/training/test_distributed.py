"""Two processes (gloo, on the CPU) train as one does with the same global batch.

They are stopped inside the second epoch and go on; the one is not.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dcsurgery.training.logs import read_log
from tests.closeness import PAPER, assert_near
from tests.training.two_processes import work


def test_two_processes_have_the_loss_curve_of_one(tiny_clip: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.two_processes", tiny_clip, two, "2"],
        cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    work(tiny_clip, one)
    curves = [read_log(folder / "training.jsonl") for folder in (one, two)]
    losses = [[row["loss"] for row in curve] for curve in curves]
    assert len(losses[0]) == 6 and losses[0] == pytest.approx(losses[1], rel=1e-5)
    for key in ("rows", "tokens", "supervised_tokens", "lr language"):
        assert [row[key] for row in curves[0]] == [row[key] for row in curves[1]]
    ranks = [load_file(two / f"rank-{rank}.safetensors") for rank in (0, 1)]
    alone = load_file(one / "rank-0.safetensors")
    for name, value in alone.items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        assert_near(ranks[0][name], value, PAPER, name)
