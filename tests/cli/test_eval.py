from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from dcsurgery.tiny import write_tiny_llava

from .conftest import Run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    write_tiny_llava(folder / "model")
    (folder / "pictures").mkdir()
    Image.new("RGB", (40, 30), (200, 90, 20)).save(folder / "pictures" / "photo.png")
    rows = [
        {"id": n, "image": "photo.png", "question": f"{n}?", "answer": "x", "category": "easy"}
        for n in range(3)
    ]
    (folder / "test.json").write_text(json.dumps(rows))
    return folder


def test_a_table_says_scores_intervals_and_the_test(run: Run, place: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(
        json.dumps([*json.loads((place / "test.json").read_text()), {"id": "odd"}])
    )
    arguments = ["--data", tmp_path / "bad.json", "--images", place / "pictures", "--max-bad", 50]
    model = place / "model"
    result = run("eval", model, model, *arguments, "-o", tmp_path / "out", "--max-new-tokens", 2)
    assert result.exit_code == 0, result.stderr
    for words in ("exact on 3 rows", "all", "easy", "0.000", "sign-flip", "1 rows could not be"):
        assert words in result.stdout
    assert "odd: no layout fits its keys id; understood are conversations" in result.stdout
    assert "report.json" in result.stderr
    assert (tmp_path / "out" / "report.png").stat().st_size > 1000


def test_json_is_the_report_and_nothing_else(run: Run, place: Path, tmp_path: Path) -> None:
    arguments = ["--data", place / "test.json", "--images", place / "pictures", "--json"]
    more = ["--metric", "loss", "--limit", 2, "--prompt", "v1"]
    result = run("eval", place / "model", *arguments, *more, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["metric"], report["rows"]) == ("loss", 2)
    assert report["settings"]["version"] == "v1"
    assert 0 < report["models"][0]["score"]["mean"] < 20


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--data", "gone.json"], 1, "there is no data file gone.json"),
        (["--data", "broken.json"], 1, "line 1, column 2"),
        (["--data", "test.json", "--images", "nowhere"], 1, "nowhere is not a folder"),
        (["--data", "test.json", "--metric", "bleu"], 1, "choose one of exact, vqa, loss, choice"),
        (["--data", "test.json", "--prompt", "v2"], 2, "use plain or v1"),
        ([], 2, "--data"),
    ],
)
def test_what_cannot_be_meant_is_said(
    run: Run,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    (place / "broken.json").write_text("[oh")
    monkeypatch.chdir(place)
    result = run("eval", "model", *arguments, "-o", "out")
    assert result.exit_code == code
    assert words in result.stderr and "Traceback" not in result.stderr
    assert not (place / "out").exists()
