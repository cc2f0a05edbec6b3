"""`finetune` on the command line: what it says before, while and after."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from dcsurgery.cli.training_options import SettingOptions
from dcsurgery.training import finetune
from dcsurgery.training.settings import TrainingSettings
from tests.training.data import write_data

from .conftest import Run

FAST = ("--batch-size", "4", "--max-steps", "3", "--connector-lr", "1e-2", "--save-steps", "1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("rows"))


def test_every_setting_has_an_option() -> None:
    assert {field.name for field in fields(SettingOptions)} == set(TrainingSettings.model_fields)


def test_dry_run_shows_rows_as_they_are_read_with_what_is_learnt(
    run: Run, model: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = run("finetune", model, "--connector", "dci", "--data", data, "-o", out, "--dry-run")
    assert result.exit_code == 0, result.stderr
    for fact in (
        "for 1 step",
        "trains  connector: 768 in 1 tensor",
        "projector: 1,008 in 4 tensors",
        "rates   connector: 0.0002",
        "128 rows: 4 at a time x 32 before an update x 1 process",
        "memory",
        "images  7 rows with, 1 without",
        "row-0: ",
        "layout    conversations, from conversations, image",
        "question  <image>Which colour?",
        "answer    red",
        "USER: <image>(x64) Which colour? ASSISTANT:[[ red</s>]]",
    ):
        assert fact in result.stdout
    assert "nothing was trained" in result.stderr and not list(tmp_path.iterdir())


def test_interrupted_by_ctrl_c_it_leaves_with_130_and_says_how_to_go_on(
    run: Run, tiny_clip: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, watch: Any, **options: Any) -> Any:
        def both(row: dict[str, Any]) -> None:
            watch(row)
            if row["step"] == 1:
                os.kill(os.getpid(), signal.SIGINT)

        return real(*args, watch=both, **options)

    real = finetune.finetune_connector
    out = tmp_path / "out"
    arguments = ("finetune", tiny_clip, "--connector", "dci", "--data", data, "-o", out, *FAST)
    with monkeypatch.context() as patch:
        patch.setattr(finetune, "finetune_connector", interrupted)
        result = run(*arguments)
    assert result.exit_code == 130 and result.stdout == "" and not out.exists()
    assert "out.training keeps the training after step 2" in " ".join(result.stderr.split())
    assert "--resume" in result.stderr
    result = run(*arguments, "--resume")
    assert result.exit_code == 0, result.stderr
    text = " ".join(result.stdout.split())
    assert "trained for 3 steps" in text and "resumed at step 2" in text
    assert "loss 6." in text and "8 rows" in text
    assert result.stderr == f"\nnext:\n  dcsurgery verify {out}\n"


def test_interrupted_while_it_prepares_it_does_not_speak_of_going_on(
    run: Run, tiny_clip: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(finetune, "start", interrupted)
    given = ("--connector", "dci", "--data", data, "-o", tmp_path / "out")
    result = run("finetune", tiny_clip, *given)
    assert result.exit_code == 130 and "before there was anything to keep" in result.stderr
    assert "--resume" not in result.stderr and not list(tmp_path.iterdir())


def test_json_has_the_record_and_the_plan(
    run: Run, tiny_clip: Path, data: Path, tmp_path: Path
) -> None:
    common = ("finetune", tiny_clip, "--connector", "sci", "--layers", "1", "--data", data, *FAST)
    planned = json.loads(run(*common, "--dry-run", "--json").stdout)
    result = run(*common, "-o", tmp_path / "out", "--train", "connector", "--json")
    assert result.stderr == "", result.stderr
    done = json.loads(result.stdout)
    assert (planned["dry_run"], done["dry_run"], planned["steps"]) == (True, False, 3)
    assert set(planned["trained"]) == {"connector", "projector"}
    assert done["trained"] == {
        "connector": {"parameters": 384, "tensors": ["dense_connector.weight"]}
    }
    assert done["plan"]["training"] == [done["record"]] or done["record"]["steps"] == 3
    assert done["plan"] == json.loads((tmp_path / "out/dense_connector/plan.json").read_text())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("", "2 say where to write"),
        ("-o OUT --groups 3", "2 needs --connector"),
        ("-o OUT --connector dense", "1 choose one of dci"),
        ("-o OUT --connector dci --warmup 2", "1 warmup 2.0: input should be"),
        ("-o OUT --connector dci --stage 3", "1 stage 3"),
    ],
)
def test_options_that_cannot_be_meant(
    run: Run, tiny_clip: Path, data: Path, tmp_path: Path, options: str, said: str
) -> None:
    given = [tmp_path / "out" if item == "OUT" else item for item in options.split()]
    result = run("finetune", tiny_clip, "--data", data, *given)
    code, _, words = said.partition(" ")
    assert result.exit_code == int(code) and words in " ".join(result.stderr.split())
    assert "bug" not in result.stderr and not list(tmp_path.iterdir())
