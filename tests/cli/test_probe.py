"""`probe` on the command line: what it shows, writes and refuses, and the way on to `convert`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.main import get_command

from dcsurgery.cli.main import app
from dcsurgery.demo.lesson import write_lesson
from dcsurgery.surgery.plan_file import read_plan
from dcsurgery.training.settings import READING, TrainingSettings
from tests.docs.pages import PAGES, keys
from tests.training.data import write_data

from .conftest import Run


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has much to learn from its rows."""
    return write_lesson(tmp_path_factory.mktemp("probe") / "lesson")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of random pictures with answers that have nothing to do with them."""
    return write_data(tmp_path_factory.mktemp("rows"), 29)


def test_every_setting_it_follows_has_the_options_name() -> None:
    command = get_command(app).commands["probe"]
    options = {item.name for item in command.params}
    assert {"seed", *READING} <= options & set(TrainingSettings.__dataclass_fields__)


def test_it_draws_the_gains_and_its_answer_can_be_converted(
    run: Run, lesson: Path, tmp_path: Path
) -> None:
    answer, out = tmp_path / "probe.json", tmp_path / "out"
    model, rows = lesson / "model", lesson / "train.json"
    result = run("probe", model, "--data", rows, "--rows", 80, "-o", answer)
    assert result.exit_code == 0, result.stderr
    for fact in (
        f"probe of {model} on {rows}",
        "rows         80 with 80 pictures",
        "in all of the data 240 rows with, 0 without",
        "reads today  hidden state 7",
        "control: today's feature",
        "of other pictures",
        "dci     0..3;4..7",
        "sci     2;4",
        "operate: hidden state",
    ):
        assert fact in result.stdout, fact
    bars = re.findall(r"^ +(\d) +(█*) +[+-]\d", result.stdout, re.M)
    assert [int(state) for state, _ in bars] == list(range(9))
    assert max(len(bar) for _, bar in bars) == 30
    assert f"dcsurgery convert {model} -o OUT --layers @{answer}" in result.stderr
    recommended = json.loads(answer.read_text())["recommended"]
    planned = run("convert", model, "--layers", f"@{answer}", "--dry-run", "--json")
    layout = json.loads(planned.stdout)["plan"]["layout"]
    assert [block["layers"] for block in layout["blocks"]] == recommended["blocks"]
    assert run("convert", model, "-o", out, "--layers", f"@{answer}").exit_code == 0
    plan = read_plan(out)
    assert [list(group) for group in plan.layout.groups] == recommended["blocks"]
    assert plan.kind == "dci"
    named = run("convert", model, "-o", tmp_path / "b", "--layers", recommended["layers"])
    assert named.exit_code == 0 and read_plan(tmp_path / "b").layout == plan.layout


def test_it_says_no_and_the_conversion_asks_for_states_by_hand(
    run: Run, tiny_clip: Path, data: Path, tmp_path: Path
) -> None:
    answer = tmp_path / "probe.json"
    result = run("probe", tiny_clip, "--data", data, "-o", answer)
    assert result.exit_code == 0, result.stderr
    assert "do not operate: today's feature already holds it" in result.stdout
    assert "no evidence" in result.stdout and "next:" not in result.stderr
    refused = run("convert", tiny_clip, "-o", tmp_path / "out", "--layers", f"@{answer}")
    assert refused.exit_code == 1 and "says: do not operate" in refused.stderr
    assert "hint: to operate all the same, name the hidden states" in refused.stderr
    assert run("convert", tiny_clip, "-o", tmp_path / "out", "--layers", "0,1").exit_code == 0


def test_the_json_page_names_every_key(run: Run, lesson: Path, tmp_path: Path) -> None:
    options = ("--data", lesson / "train.json", "--rows", 40, "-o", tmp_path / "p.json", "--json")
    result = run("probe", lesson / "model", *options)
    printed = json.loads(result.stdout)
    assert printed == json.loads((tmp_path / "p.json").read_text())
    # What a model's plan says too is told under convert.
    told = {key for key in {**printed, "base": 0} if key != "base"}
    page = PAGES["docs/json.md"].section("probe")
    missing = sorted(
        {*told, *(key for name in told for key in keys(printed[name]) if name not in ("settings",
         "versions", "skipped", "expected_by_type", "layouts", "unread_pictures"))}
        - set(re.findall(r"`\.?(\w+)(?:\[\])?`", page)) - {"schema_version"}
    )  # fmt: skip
    assert missing == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--rows", 2), "--rows 2 is too few"),
        (("--folds", 2), "--folds 2 is too few"),
        (("--data", "nowhere.json"), "there is no data file nowhere.json"),
        (("--columns", "picture=x"), "picture"),
        (("--images", "nowhere"), "is not a folder"),
        (("--prompt", "poem"), "prompt"),
        (("--precision", "fp16"), "fp16 needs a GPU"),
        (("--max-bad", "many"), "percentage"),
        (("-o", "/dev/null/probe.json"), "/dev/null"),
    ],
)
def test_errors_are_for_people(
    run: Run, tiny_clip: Path, data: Path, options: tuple[object, ...], told: str
) -> None:
    result = run("probe", tiny_clip, *("--data", data), *options)
    assert result.exit_code == 1, result.stdout
    assert told in result.stderr and "hint: " in result.stderr
    assert "Traceback" not in result.stderr and "this is a bug" not in result.stderr


def test_a_file_that_exists_is_kept(run: Run, tiny_clip: Path, data: Path, tmp_path: Path) -> None:
    mine = tmp_path / "notes.json"
    mine.write_text("mine")
    for more in ((), ("--overwrite",)):
        result = run("probe", tiny_clip, "--data", data, "-o", mine, *more)
        assert result.exit_code == 1 and mine.read_text() == "mine"
        assert "notes.json" in result.stderr
