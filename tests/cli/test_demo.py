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


def test_full_makes_as_many_towers_as_asked(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Path, int]] = []
    monkeypatch.setattr(
        "dcsurgery.demo.full.run_full", lambda work, say, towers: asked.append((work, towers))
    )
    assert run("demo", "--full", "--towers", 9, "--work-dir", tmp_path).exit_code == 0
    assert run("demo", "--full").exit_code == 0
    assert asked == [(tmp_path, 9), (Path("full-demo"), 8)]


def test_a_folder_in_use_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    for more in ((), ("--full",)):
        done = run("demo", *more, "--work-dir", tmp_path)
        assert done.exit_code == 1 and str(tmp_path) in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
