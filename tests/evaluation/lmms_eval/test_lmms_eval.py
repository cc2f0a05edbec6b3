"""A stock conversion runs in lmms-eval as it is. Needs `pip install 'dcsurgery[eval]'`.

lmms-eval exits 0 when it fails, and gives an empty answer where a model raises: files are read.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from dcsurgery.surgery.convert import convert_checkpoint
from tests.evaluation.lmms_eval import utils

HERE = Path(__file__).parent
TASK = "dcsurgery_tiny"
COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


def write_task(folder: Path) -> Path:
    """Write the task and its questions; return the folder to include."""
    import datasets

    rows = [
        {"image": Image.new("RGB", (40, 30), value), "question": "Which colour?", "answer": name}
        for name, value in COLOURS.items()
    ]
    folder.mkdir()
    data = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    data.to_parquet(folder / "questions.parquet")
    task = (HERE / f"{TASK}.yaml").read_text().replace("$DATA", str(folder / "questions.parquet"))
    (folder / f"{TASK}.yaml").write_text(task)
    shutil.copy(HERE / "utils.py", folder)
    return folder


def evaluate(model: Path, tasks: Path, out: Path) -> list[str]:
    """Run the command of docs/lmms-eval.md on CPU; return the answers."""
    given = f"pretrained={model},dtype=float32,device_map=cpu"
    command = [
        *(sys.executable, "-m", "lmms_eval", "--model", "llava_hf", "--model_args", given),
        *("--device", "cpu", "--tasks", TASK, "--include_path", str(tasks), "--batch_size", "1"),
        *("--output_path", str(out), "--log_samples"),
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tasks)
    found = list(out.rglob("*results.json"))
    assert found, done.stderr[-2000:]
    assert "exact,none" in json.loads(found[0].read_text())["results"][TASK]
    (samples,) = out.rglob(f"*samples_{TASK}.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(rows) == len(COLOURS)
    return [str(row["filtered_resps"]) for row in sorted(rows, key=lambda row: row["doc_id"])]


def test_the_task_reads_its_questions(tmp_path: Path) -> None:
    """What lmms-eval does with the task's files, without it."""
    import datasets

    tasks = write_task(tmp_path / "tasks")
    yaml = (tasks / f"{TASK}.yaml").read_text()
    file = next(line.split()[-1] for line in yaml.splitlines() if "test: " in line)
    cache = str(tmp_path / "cache")
    rows = datasets.load_dataset("parquet", data_files={"test": file}, cache_dir=cache)["test"]
    assert [row["answer"] for row in rows] == list(COLOURS)
    for row, colour in zip(rows, COLOURS.values(), strict=True):
        (picture,) = utils.doc_to_visual(row)
        assert picture.getpixel((5, 5)) == colour
        assert row["question"] in utils.doc_to_text(row)
        assert utils.process_results(row, [f" {row['answer'].upper()}\n"]) == {"exact": 1.0}
        assert utils.process_results(row, ["grey"]) == {"exact": 0.0}
    named = set(re.findall(r"!function utils\.(\w+)", yaml))
    assert named and all(callable(getattr(utils, name)) for name in named)


@pytest.mark.skipif(find_spec("lmms_eval") is None, reason="lmms-eval is not installed")
def test_a_conversion_answers_as_its_base(tiny_siglip: Path, tmp_path: Path) -> None:
    tasks = write_task(tmp_path / "tasks")
    stock = tmp_path / "stock"
    convert_checkpoint(tiny_siglip, stock)
    answers = evaluate(stock, tasks, tmp_path / "out")
    assert all(answer.strip("[]'\" ") for answer in answers)
    assert answers == evaluate(tiny_siglip, tasks, tmp_path / "base-out")
