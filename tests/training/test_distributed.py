"""Two processes (gloo, on the CPU) train as one does with the same global batch.

They are stopped inside the second epoch and go on; the one is not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dcsurgery.training.logs import read_log
from dcsurgery.training.order import EpochOrder
from tests.closeness import PAPER, assert_near
from tests.training.pictures import save_picture
from tests.training.two_processes import work

pytestmark = pytest.mark.slow


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


def test_two_processes_count_together_what_rows_lose(tiny_clip: Path, tmp_path: Path) -> None:
    """Each process reads four of ten rows, and the one with a picture is none of these eight."""
    order = list(EpochOrder(10, seed=0))
    rows: list[dict[str, Any]] = []
    for number in range(10):
        said = "x" * 120 if number in order[1:4] else "red"
        turns = [{"from": "human", "value": "Which?"}, {"from": "gpt", "value": said}]
        rows.append({"id": f"r{number}", "conversations": turns})
    rows[order[4]]["conversations"].append({"from": "human", "value": "and?"})
    rows[order[8]]["conversations"][0]["value"] = "y" * 90
    rows[order[9]]["conversations"][0]["value"] = "<image>Which?"
    rows[order[9]]["image"] = save_picture(tmp_path / "a.png", 32, 32).name
    data, out = tmp_path / "rows.json", tmp_path / "out"
    data.write_text(json.dumps(rows))
    out.mkdir()
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.two_processes", tiny_clip, out, "2", data],
        cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((out / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert one == two
    assert one["cut"] == [3, 3] and one["bad"] == [f"r{order[8]}"]
    assert one["dropped"] == {"question after the last answer": 1}
    assert one["untouched"][0] == "dense_connector.weight" and len(one["untouched"]) == 5
    file = out / "out" / "dense_connector" / "bad_rows.jsonl"
    assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == one["bad"]
