"""`finetune` on the command line: what it says before, while and after."""

from __future__ import annotations

import json
import os
import signal
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from dcsurgery.cli.output import Output
from dcsurgery.data.batches import TrainingDataset
from dcsurgery.training import finetune
from dcsurgery.training.order import EpochOrder
from dcsurgery.training.settings import TrainingSettings
from tests.training.data import write_data

from .conftest import Run

FAST = ("--batch-size", "4", "--max-steps", "3", "--connector-lr", "1e-2", "--save-steps", "1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("rows"))


def test_every_setting_has_an_option(run: Run) -> None:
    text = run("finetune", "--help").stdout
    for field in fields(TrainingSettings):
        assert f"--{field.name.replace('_', '-')} " in text


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
        "question  <image>",
        "answer    red",
        "USER: <image>(x64) \nWhich colour? ASSISTANT:[[ red</s>]]",
    ):
        assert fact in result.stdout
    assert "nothing was trained" in result.stderr and not list(tmp_path.iterdir())


def test_interrupted_by_ctrl_c_it_leaves_with_130_and_says_how_to_go_on(
    run: Run, tiny_clip: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, progress: Any, **options: Any) -> Any:
        def both(step: int, steps: int, words: str) -> None:
            progress(step, steps, words)
            if step == 1:
                os.kill(os.getpid(), signal.SIGINT)

        return real(*args, progress=both, **options)

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
        ("-o OUT --connector dense", "1 choose dci"),
        ("-o OUT --connector dci --warmup 2", "1 warmup 2.0 is out of range"),
        ("-o OUT --connector dci --stage 3", "1 stage 3"),
        ("-o OUT --connector dci --max-bad 101%", "1 max_bad '101%': a percentage from 0 to 100"),
        ("-o OUT --groups 0", "2 needs --connector"),
        ("-o OUT --connector dci --form reference", "1 ends in the stock or the delta form"),
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


@pytest.mark.parametrize(
    "options",
    [
        "--connector dci --groups 0",
        "--connector dci --groups -1",
        "--connector dci --groups 99",
        "--connector dci --pool 0",
        "--connector mix --pool 3",
        "--connector dci --layers ",
        "--connector dci --layers -99",
        "--connector sci --layers 1,x",
        "--connector dci --init ",
        "--connector dci --form ",
        "--connector ",
        "--connector sti --norm",
    ],
)
def test_a_connector_is_refused_as_in_convert(
    run: Run, tiny_clip: Path, data: Path, tmp_path: Path, options: str
) -> None:
    given = options.split(" ")
    wanted = run("convert", tiny_clip, "-o", tmp_path / "out", *given)
    found = run("finetune", tiny_clip, "--data", data, "-o", tmp_path / "out", *given)
    assert (found.exit_code, found.stderr) == (wanted.exit_code, wanted.stderr)
    assert wanted.exit_code == 1 and not list(tmp_path.iterdir())


def test_what_is_lost_is_said_before_while_and_after(
    run: Run, tiny_clip: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row of the eight has a question behind its answer; one is cut inside its answer."""
    rows = json.loads(data.read_text())
    for row in rows:
        row["conversations"].append({"from": "human", "value": "and?"})
    rows[2]["conversations"][1]["value"] = "x" * 99
    lost = data.with_name("lost.json")
    lost.write_text(json.dumps(rows))
    given = ("finetune", tiny_clip, "--connector", "dci", "--data", lost, "--max-length", "90")
    result = run(*given, "--dry-run")
    assert result.exit_code == 0, result.stderr
    shown, said = (" ".join(text.split()) for text in (result.stdout, result.stderr))
    assert "8, 8 looked at closely" in shown
    assert (
        "1 row of 8 that were looked at cut to --max-length 90, 1 of them inside an answer" in shown
    )
    assert (
        "8 rows of 8 that were looked at: the question after the last answer is left out" in shown
    )
    assert "8 rows in batches of 128 make 1 update" in said and "--epochs 50" in said
    words: list[str] = []
    bar = contextmanager(lambda *_: iter([lambda done, total, text: words.append(text)]))
    monkeypatch.setattr(Output, "stepping", bar)
    small = ("--batch-size", "4", "-o", tmp_path / "out")
    result = run(*given, *small)
    shown, said = (" ".join(text.split()) for text in (result.stdout, result.stderr))
    assert result.exit_code == 0, result.stderr
    assert len(words) == 2 and sum("1 of 4 rows cut" in text for text in words) == 1
    assert "8 rows in batches of 4 make 2 updates" in said and "1 row of 8 that were" in said
    assert "lost 1 row cut to --max-length 90, 1 of them inside an answer" in shown
    assert "8 rows: the question after the last answer is left out" in shown
    planned = json.loads(run(*given, "--dry-run", "--json").stdout)
    dropped = {"question after the last answer": 8}
    losses = {"cut_rows": 1, "cut_answers": 1, "dropped": dropped}
    assert planned["measured"] == {"rows": 8, "bad": 0, "losses": losses}
    assert len(planned["advice"]) == 3


def test_what_never_had_a_gradient_is_said(
    run: Run, tiny_clip: Path, data: Path, tmp_path: Path
) -> None:
    rows = json.loads(data.read_text())
    # The one row with a picture comes last in the order of the first epoch.
    blind, last = data.with_name("blind.json"), list(EpochOrder(4, seed=0))[-1]
    blind.write_text(json.dumps([rows[0] if n == last else rows[-1] for n in range(4)]))
    given = ("finetune", tiny_clip, "--connector", "dci", "--data", blind, "--train", "lora",
             "--batch-size", "1", "--max-steps", "3", "--lr", "1e-3")  # fmt: skip
    result = run(*given, "-o", tmp_path / "out")
    shown = " ".join(result.stdout.split())
    assert "untrained connector: 1 of 1 tensor, never had a gradient" in shown
    assert "projector: 4 of 4 tensors, never had a gradient" in shown
    done = json.loads(run(*given, "-o", tmp_path / "json", "--json").stdout)
    assert set(done["untouched"]) == {"connector", "projector"}
    assert done["record"]["untouched"][0] == "dense_connector.weight"


def test_a_stop_at_bad_rows_says_how_to_go_on(
    run: Run, tiny_clip: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = json.loads(data.read_text())
    rows[3]["conversations"][0]["value"] = "<image>" + "y" * 150
    late = data.with_name("late.json")
    late.write_text(json.dumps(rows))
    given = ("finetune", tiny_clip, "--connector", "dci", "--data", late, "-o", tmp_path / "out",
             "--max-length", "120", "--batch-size", "1", "--max-steps", "8")  # fmt: skip
    monkeypatch.setattr(TrainingDataset, "measure", lambda self: None)
    result = run(*given)
    said = " ".join(result.stderr.split())
    assert result.exit_code == 1 and "1 of 8 rows cannot be used" in said
    assert "keeps the training after step" in said and "--resume" in said
    assert "allow longer rows with --max-length" in said and "--max-bad 13%" in said
    result = run(*given, "--resume", "--max-bad", "13%")
    assert result.exit_code == 0, result.stderr
    shown = " ".join(result.stdout.split())
    assert "resumed at step" in shown and "8 rows, 1 skipped" in shown
