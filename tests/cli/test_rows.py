"""What `finetune` and `eval` say about the rows they read."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.training.pictures import save_picture

from .conftest import Run

FAST = ("--batch-size", "2", "--max-steps", "1", "--save-steps", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    for number in range(4):
        save_picture(folder / f"{number}.png", 32, 32, seed=number)
    return folder


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def asked(number: int, **values: Any) -> dict[str, Any]:
    return {"id": f"r{number}", "question": "Which colour?", "answer": "red", **values}


def words(text: str) -> str:
    return " ".join(text.split())


def test_pictures_under_a_strange_key_are_never_trained_without(
    run: Run, tiny_clip: Path, folder: Path, tmp_path: Path
) -> None:
    data = write(folder, "strange.jsonl", [asked(n, scan=f"{n}.png") for n in range(4)])
    given = ("finetune", tiny_clip, "--connector", "dci", "--data", data, "-o", tmp_path / "out")
    result = run(*given, *FAST)
    assert result.exit_code == 1 and not (tmp_path / "out").exists()
    assert "r0: it has no picture, but 'scan' looks like one" in words(result.stderr)
    assert "--columns image=scan" in words(result.stderr)
    result = run(*given, *FAST, "--columns", "image=scan", "--json")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)["record"]
    assert (record["rows_with_pictures"], record["rows_without_pictures"]) == (4, 0)
    assert record["columns"] == {"image": "scan"}
    assert record["layouts"] == {"question and answer": 4}


def test_data_without_pictures_is_refused_for_training(
    run: Run, tiny_clip: Path, folder: Path, tmp_path: Path
) -> None:
    data = write(folder, "text.jsonl", [asked(n) for n in range(4)])
    for options in ((), ("--dry-run",), ("--train", "lora", "--lora-rank", "2")):
        given = ("--connector", "dci", "--data", data, "-o", tmp_path / "out")
        result = run("finetune", tiny_clip, *given, *FAST, *options)
        assert result.exit_code == 1 and not list(tmp_path.iterdir())
        assert "none of the 4 rows" in words(result.stderr)
        assert "the connector could learn nothing" in words(result.stderr)


def test_a_dry_run_shows_a_row_of_each_layout_and_what_is_not_read(
    run: Run, tiny_clip: Path, folder: Path
) -> None:
    rows = [asked(n, image=f"{n}.png", depth=f"{3 - n}.png") for n in range(4)]
    rows.append({"id": "cap", "file_name": "0.png", "caption": "a red square"})
    rows.append(asked(5))
    said = [{"user": "Which?", "assistant": "blue"}]
    rows.append({"id": "pairs", "images": ["1.png", "2.png"], "texts": said})
    data = write(folder, "mixed.jsonl", rows)
    result = run("finetune", tiny_clip, "--connector", "dci", "--data", data, "--dry-run")
    assert result.exit_code == 0, result.stderr
    text = words(result.stdout)
    for fact in (
        "images 6 rows with, 1 without",
        "'depth' looks like a picture and is not read, in 4: --columns image=depth",
        "layout question and answer, from question, answer, image; unread: depth images 1 question "
        "<image>Which colour? answer red",
        "layout caption, from caption, file_name images 1 question "
        "<image>Describe the image briefly. answer a red square",
        "layout texts, from texts, images images 2 question <image><image>Which? answer blue",
    ):
        assert fact in text
    planned = json.loads(
        run(
            "finetune", tiny_clip, "--connector", "dci", "--data", data, "--dry-run", "--json"
        ).stdout
    )
    assert planned["layouts"] == {"question and answer": 5, "caption": 1, "texts": 1}
    assert planned["unread_pictures"] == {"depth": 4}
    assert [sample["layout"] for sample in planned["samples"]][-2:] == ["caption", "texts"]


def test_other_columns_are_another_training(tiny_clip: Path, folder: Path, tmp_path: Path) -> None:
    from dcsurgery.errors import RequestError
    from dcsurgery.training.finetune import finetune_connector
    from dcsurgery.training.settings import TrainingSettings

    rows = [asked(n, image=f"{n}.png", other="blue") for n in range(4)]
    data = write(folder, "two.jsonl", rows)

    def stop(step: int, steps: int, words: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    settings = TrainingSettings(batch_size=2, max_steps=3, save_steps=1)
    given: dict[str, Any] = {"settings": settings, "connector": "dci"}
    with pytest.raises(KeyboardInterrupt):
        finetune_connector(tiny_clip, data, tmp_path / "out", progress=stop, **given)
    with pytest.raises(RequestError, match="another training: columns differ"):
        finetune_connector(
            tiny_clip, data, tmp_path / "out", columns={"answer": "other"}, resume=True, **given
        )


def test_eval_warns_loudly_where_no_row_has_a_picture(
    run: Run, tiny_clip: Path, folder: Path, tmp_path: Path
) -> None:
    data = write(folder, "text-test.jsonl", [asked(n) for n in range(3)])
    given = ("eval", tiny_clip, "--data", data, "--max-new-tokens", "1", "-q", "--json")
    result = run(*given, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "warning: none of the 3 rows has a picture" in words(result.stderr)
    report = json.loads(result.stdout)
    assert (report["rows_with_pictures"], report["rows_without_pictures"]) == (0, 3)
    assert report["warnings"] and "has a picture" in report["warnings"][0]


def test_eval_reports_pictures_and_keys_it_did_not_read(
    run: Run, tiny_clip: Path, folder: Path, tmp_path: Path
) -> None:
    rows = [asked(n, img=f"{n}.png", masks=[[f"{n}.png"]], say="blue") for n in range(3)]
    data = write(folder, "test.jsonl", [*rows, asked(3, say="red")])
    given = ("eval", tiny_clip, "--data", data, "--max-new-tokens", "1", "-o", tmp_path / "out")
    result = run(*given)
    assert result.exit_code == 0, result.stderr
    assert "4 rows of" in words(result.stdout) and "3 rows with, 1 without" in words(result.stdout)
    assert "'masks' looks like a picture and is not read, in 3" in words(result.stdout)
    assert "warning" not in result.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["unread_pictures"], report["warnings"]) == ({"masks": 3}, [])
    result = run(*given, "--columns", "answer=say")
    assert result.exit_code == 1 and "other source" in words(result.stderr)


def test_wrong_columns_list_those_found(run: Run, tiny_clip: Path, folder: Path) -> None:
    data = write(folder, "columns.jsonl", [asked(0, image="0.png")])
    for command in ("finetune", "eval"):
        result = run(command, tiny_clip, "--data", data, "--columns", "answer=label", "-o", "out")
        assert result.exit_code == 1
    result = run("eval", tiny_clip, "--data", data, "--columns", "answer=label", "-o", "out")
    assert "--columns answer=label: the data has no column 'label'" in words(result.stderr)
    assert "its columns: id, question, answer, image" in words(result.stderr)
