from __future__ import annotations

from pathlib import Path

from .conftest import Run


def test_demo_tells_the_whole_story_offline(spawn: Run, run: Run, tmp_path: Path) -> None:
    done = spawn("demo", "--work-dir", "work", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.split("\n")
    assert max(map(len, lines)) <= 80 and "\x1b" not in done.stdout
    for step in (
        "$ dcsurgery inspect tiny-llava",
        "$ dcsurgery convert tiny-llava -o tiny-llava-dci",
        "$ dcsurgery verify tiny-llava-dci --logits",
        "$ dcsurgery convert tiny-llava -o tiny-llava-dci-delta --form delta",
        "$ dcsurgery verify tiny-llava-dci-delta --logits",
    ):
        assert step in lines
    assert "FAILED" not in done.stdout and "bit for bit the base" in done.stdout
    assert (tmp_path / "work" / "tiny-llava-dci" / "config.json").is_file()
    again = run("demo", "--work-dir", tmp_path / "work")
    assert again.exit_code == 1 and "not empty" in again.stderr
