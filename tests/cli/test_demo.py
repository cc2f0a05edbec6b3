from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .conftest import Run


def test_demo_runs_the_story_where_it_is_told_to(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path | None] = []

    def story(work_dir: Path | None, say: Any) -> None:
        asked.append(work_dir)
        say("told")

    monkeypatch.setattr("dcsurgery.demo.run_demo", story)
    done = run("demo", "--work-dir", tmp_path / "work")
    assert done.exit_code == 0 and done.stdout == "told\n"
    assert run("demo").exit_code == 0
    assert asked == [tmp_path / "work", None]


def test_a_folder_in_use_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    done = run("demo", "--work-dir", tmp_path)
    assert done.exit_code == 1 and str(tmp_path) in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
