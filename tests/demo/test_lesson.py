"""The lesson of docs/training.md, line by line: the base is wrong, the tuned model right."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dcsurgery.demo.lesson import write_lesson
from dcsurgery.errors import OutputExistsError

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


@pytest.mark.slow
def test_the_lesson_ends_with_a_model_that_has_learnt(tmp_path: Path) -> None:
    block = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0]
    said = ""
    for line in block.replace("\\\n", "").strip().splitlines():
        program, *arguments = shlex.split(line)
        start = ["-m", "dcsurgery"] if program == "dcsurgery" else []
        done = subprocess.run(
            [sys.executable, *start, *arguments],
            cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        said = done.stdout
    report = json.loads((tmp_path / "lesson/scores/report.json").read_text())
    base, tuned = (model["score"]["mean"] for model in report["models"])
    # Six colours: one of them for all would be 0.17.
    assert base == 0 and tuned >= 0.9 and report["rows"] == 60
    assert "red" in said


def test_the_lesson_is_the_same_each_time_and_overwrites_nothing(tmp_path: Path) -> None:
    one, two = write_lesson(tmp_path / "one"), write_lesson(tmp_path / "two")
    files = [path.relative_to(one) for path in sorted(one.rglob("*")) if path.is_file()]
    assert len(files) == 310
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)
    with pytest.raises(OutputExistsError):
        write_lesson(one)
