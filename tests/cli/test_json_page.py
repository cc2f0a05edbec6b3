"""docs/json.md names every key that a command's `--json` prints."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, keys
from tests.docs.workplace import write_workplace
from tests.training.data import write_data

from .conftest import Run

EVERYWHERE = {"schema_version"}


@pytest.fixture(scope="module")
def place(tiny_deep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = write_workplace(tmp_path_factory.mktemp("json"), tiny_deep)
    write_data(place / "data")
    return place


@pytest.mark.slow
@pytest.mark.parametrize(
    ("title", "lines"),
    [
        ("inspect", ["inspect MODEL"]),
        (
            "convert, export",
            [
                "convert MODEL -o dci --dry-run", "convert MODEL -o dci --form delta",
                "export dci -o stock",
            ],
        ),
        ("verify", ["verify dci"]),
        (
            "finetune",
            [
                "finetune dci --data data/rows.json --batch-size 4 --dry-run",
                "finetune dci --data data/rows.json --batch-size 4 -o tuned",
            ],
        ),
        ("eval", ["eval MODEL dci --data test.json -o scores"]),
        ("ask", ["ask dci photo.jpg Why?", "ask dci --video clip.mp4 Why?"]),
        (
            "recipe",
            [
                "recipe list", "recipe validate tiny", "recipe run tiny --dry-run",
                "recipe data tiny", "recipe run tiny --slurm",
            ],
        ),
        ("architectures", ["architectures"]),
    ],
)  # fmt: skip
def test_every_key_is_on_the_page(
    run: Run, place: Path, monkeypatch: pytest.MonkeyPatch, title: str, lines: list[str]
) -> None:
    monkeypatch.chdir(place)
    if not Path("dci").exists() and title not in ("inspect", "convert, export"):
        run("convert", "llava-hf/llava-1.5-7b-hf", "-o", "dci", "--form", "delta")
    told = {
        word
        for code in re.findall(r"`([^`]+)`", PAGES["docs/json.md"].section(title))
        for word in re.findall(r"\w+", code)
    }
    for line in lines:
        result = run(*line.replace("MODEL", "llava-hf/llava-1.5-7b-hf").split(), "--json")
        assert result.exit_code == 0, (line, result.stderr)
        found = set(keys(json.loads(result.stdout)))
        groups = {"connector", "projector"} if title == "finetune" else set()
        assert found - told - EVERYWHERE - groups == set(), line
