"""`trial` on the command line: what it shows and prints, and its errors."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.main import get_command

from dcsurgery.cli.main import app
from dcsurgery.cli.output import Output
from dcsurgery.cli.trial import show_trial
from dcsurgery.fields import told_fields
from dcsurgery.surgery.convert import plan_conversion
from dcsurgery.training.settings import TrainingSettings
from tests.docs.pages import PAGES, keys
from tests.training.data import write_data
from tests.trials.reports import trial_of

from .conftest import Run

# Described under other commands, or data.
ELSEWHERE = {"settings", "versions", "base", "left_out", "by_type", "loss_by_type", "weights"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_data(folder / "train", 9)
    write_data(folder / "test", 7)
    return folder


def words_of(place: Path) -> tuple[object, ...]:
    return ("--data", place / "train/rows.json", "--test", place / "test/rows.json")


def test_it_takes_every_option_of_finetunes_settings() -> None:
    options = {item.name for item in get_command(app).commands["trial"].params}
    assert set(told_fields(TrainingSettings)) <= options


@pytest.mark.slow
def test_it_tries_shows_and_prints_the_same(run: Run, tiny_clip: Path, place: Path) -> None:
    words = ("trial", tiny_clip, *words_of(place), "--work-dir", place / "work", "--seeds", 1,
             "--max-steps", 1, "--batch-size", 2, "--layers", "0;1", "--max-bad", "50%",
             "--max-new-tokens", 2)  # fmt: skip
    result = run(*words)
    assert result.exit_code == 0, result.stderr
    for fact in (f"trial of {tiny_clip}", "control", "repeated", "chosen minus control",
                 "one A100, estimated", "chosen minus control +0.0 points"):  # fmt: skip
        assert fact in result.stdout, fact
    assert "[5/5] chosen-0 loss" in result.stderr and "trial.html" in result.stderr
    assert "warning: one seed" in result.stderr
    printed = json.loads(run(*words, "--json").stdout)
    written = json.loads((place / "work/trial.json").read_text())
    assert {**printed, "seconds": 0} == {**written, "seconds": 0}
    plan = json.loads(run(*words, "--dry-run", "--json").stdout)
    assert (plan["left"], plan["left_tests"], plan["trainings"]) == (0, 0, 4)


def test_the_json_page_names_every_key(tiny_clip: Path) -> None:
    from dcsurgery.evaluation.trial_report import Estimate, Probed
    from dcsurgery.trials.plan import TrialPlan

    report = trial_of(plan_conversion(tiny_clip, form="delta").plan)
    probe = Probed(verdict="", operate=True, layers="0", expected=report.arms[0].score, seconds=1.0)
    guess = Estimate(device="A100", hours=1.0, flop=1.0, formula="")
    report = report.model_copy(update={"probe": probe, "estimate": guess})
    printed = {k: v for k, v in report.model_dump(mode="json").items() if k not in ELSEWHERE}
    inner = {name for arm in report.arms for run in arm.runs for name in run.weights}
    told = {key for key in keys(printed) if key not in ELSEWHERE | inner} | printed.keys()
    fields = set(TrialPlan.__dataclass_fields__) | {"seconds", "dry_run"}
    page = PAGES["docs/json.md"].section("trial")
    named = {word for code in re.findall(r"`([^`]+)`", page) for word in re.findall(r"\w+", code)}
    assert (told | fields) - named - {"schema_version", "colour"} == set()


def test_lost_types_and_left_out_arms_are_shown(
    tiny_clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_conversion(tiny_clip, form="delta").plan
    report = trial_of(plan, lost=["colour"], left_out={"chosen": "do not operate"})
    show_trial(report, Output())
    shown = capsys.readouterr().out
    assert "without chosen: do not operate" in shown and "lost: colour" in shown
    assert "seed 0: dci won 9 and lost 4 of 500 rows against control" in shown


def test_a_stop_says_how_it_goes_on(
    run: Run, tiny_clip: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dcsurgery.trials import trial

    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trial, "try_model", stop)
    result = run("trial", tiny_clip, *words_of(place))
    assert result.exit_code == 130 and "the same command goes on" in result.stderr
    result = run("trial", tiny_clip, *words_of(place), "--dry-run")
    assert result.exit_code == 130 and "goes on" not in result.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--arms", "nothing"), "no arm 'nothing'"),
        (("--seeds", 0), "--seeds 0"),
        (("--layers", "99"), "99"),
        (("--connector", "xyz"), "xyz"),
        (("--metric", "bleu"), "--metric bleu"),
        (("--train", "connector"), "--train connector"),
        (("--test", "nowhere.json"), "nowhere.json"),
        (("--dtype", "int7"), "--dtype int7"),
        (("--tower", "x=y"), "--tower"),
        (("--work-dir", "/dev/null/work"), "/dev/null"),
    ],
)
def test_errors_are_for_people(
    run: Run, tiny_clip: Path, place: Path, tmp_path: Path, options: tuple[object, ...], told: str
) -> None:
    work = ("--work-dir", tmp_path / "work", "--arms", "control,dci", "--max-bad", "50%")
    result = run("trial", tiny_clip, *words_of(place), *work, *options)
    assert result.exit_code == 1, result.stdout
    assert told in result.stderr and "hint: " in result.stderr
    assert "Traceback" not in result.stderr and "this is a bug" not in result.stderr
    assert not (tmp_path / "work").exists()
