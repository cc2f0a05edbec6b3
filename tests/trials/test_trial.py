"""Trials from end to end, on a model whose first state alone tells what is asked."""

from __future__ import annotations

import json
import os
import re
import shutil
from html import escape
from pathlib import Path
from typing import Any

import pytest

import dcsurgery
from dcsurgery.demo.lesson import write_lesson
from dcsurgery.errors import OutputExistsError, PlanError, RequestError
from dcsurgery.evaluation.trial_report import TrialReport, read_trial
from dcsurgery.surgery.convert import plan_conversion
from dcsurgery.training.settings import TrainingSettings
from dcsurgery.trials.checks import check_ours, work_folder
from dcsurgery.trials.page import render_page
from dcsurgery.trials.plan import TrialPlan
from tests.training.data import write_data
from tests.trials.planted import write_model, write_rows
from tests.trials.reports import trial_of

SETTINGS = TrainingSettings(
    max_steps=15, batch_size=8, micro_batch=8, connector_lr=1e-2, projector_lr=1e-2, save_steps=5
)
ARMS = ("control", "repeated", "chosen")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/, train.json and test.json that tell colours, random.json that does not."""
    folder = tmp_path_factory.mktemp("trial")
    write_model(folder / "model")
    write_rows(folder, "train", 60, seed=0)
    write_rows(folder, "test", 40, seed=1)
    write_rows(folder, "random", 60, seed=2, told=False)
    write_rows(folder, "unseen", 40, seed=3, told=False)
    return folder


def tried(place: Path, **options: Any) -> Any:
    said: list[str] = options.pop("said", [])
    given = {
        "data": place / "train.json", "test": place / "test.json", "work_dir": place / "work",
        "arms": ARMS, "seeds": 1, "probe_rows": 100, "max_new_tokens": 4, "settings": SETTINGS,
    }  # fmt: skip
    return dcsurgery.trial(place / "model", **{**given, **options}, say=said.append)


@pytest.fixture(scope="module")
def report(place: Path) -> TrialReport:
    found = tried(place)
    assert isinstance(found, TrialReport)
    return found


@pytest.mark.slow
def test_a_state_that_carries_the_answer_is_worth_it(report: TrialReport) -> None:
    assert report.decision == "worth it" and report.judged == "chosen"
    assert report.verdict.startswith("worth it: chosen minus control +")
    chosen, control = report.arm("chosen"), report.arm("control")
    assert chosen is not None and control is not None
    assert chosen.blocks == [[0]] and report.probe is not None and report.probe.operate
    # Half of the colours are guessed.
    assert chosen.by_type["colour"].mean > 0.9 and control.by_type["colour"].mean < 0.7
    assert report.comparisons[0].by_type["colour"].low > 0
    assert (report.rows, report.pictures, report.skipped_rows) == (80, 40, 0)
    assert report.shared_pictures == 0


@pytest.mark.slow
def test_arms_start_alike_and_the_control_keeps_its_matrix_at_zero(
    report: TrialReport, place: Path
) -> None:
    from safetensors.torch import load_file

    assert len({arm.runs[0].first_loss for arm in report.arms}) == 1
    still = load_file(place / "work/control-0/dense_connector/model.safetensors")
    moved = load_file(place / "work/chosen-0/dense_connector/model.safetensors")
    assert not still["dense_connector.weight"].any() and moved["dense_connector.weight"].any()
    assert len(report.projector_sha256) == 4
    # Deltas: no arm holds the model.
    whole = (place / "model/model.safetensors").stat().st_size
    assert (place / "work/chosen-0/dense_connector/model.safetensors").stat().st_size < whole / 3


@pytest.mark.slow
def test_nothing_is_done_twice_and_what_is_lost_is_done_again(
    report: TrialReport, place: Path
) -> None:
    work, said = place / "again", list[str]()
    shutil.copytree(place / "work", work)
    again = tried(place, work_dir=work, said=said)
    assert sum(line.endswith(": done before") for line in said) == 1 + 3 * len(ARMS)
    assert not any(line.endswith(" ...") for line in said)
    assert again.comparisons == report.comparisons and again.verdict == report.verdict
    shutil.rmtree(work / "chosen-0")
    (work / "answers/control-0-exact/report.json").unlink()
    anew, said = tried(place, work_dir=work, said=said), [s for s in said if s.endswith(" ...")]
    # On a CPU the same training gives the same weights, whose answers are known.
    assert [line.split("] ")[1] for line in said] == [
        "control-0 exact ...",
        "chosen-0 training ...",
    ]
    assert anew.arm("chosen").runs[0].weights == report.arm("chosen").runs[0].weights  # type: ignore[union-attr]
    assert anew.comparisons == report.comparisons


@pytest.mark.slow
def test_it_goes_on_inside_a_training_that_was_stopped(
    report: TrialReport, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dcsurgery.trials import units

    train, work = units.finetune_connector, place / "stopped"

    def stop(*arguments: Any, **options: Any) -> Any:
        def progress(step: int, steps: int, words: str) -> None:
            if step == 12:
                raise KeyboardInterrupt

        return train(*arguments, **{**options, "progress": progress})

    options = {"work_dir": work, "arms": ("control",)}
    monkeypatch.setattr(units, "finetune_connector", stop)
    with pytest.raises(KeyboardInterrupt):
        tried(place, **options)
    assert (work / "control-0.training/checkpoint-10").is_dir()
    resumed = []

    def watch(*arguments: Any, **options: Any) -> Any:
        done = train(*arguments, **options)
        resumed.append(done.result.resumed_at)
        return done

    monkeypatch.setattr(units, "finetune_connector", watch)
    found = tried(place, **options)
    assert resumed == [10] and found.decision == "no verdict"
    mine, whole = found.arm("control"), report.arm("control")
    assert mine is not None and whole is not None
    assert mine.runs[0].weights == whole.runs[0].weights
    assert mine.runs[0].steps == 15 and mine.runs[0].seconds > 0


@pytest.mark.slow
def test_the_page_needs_nothing_else(report: TrialReport, place: Path) -> None:
    page = (place / "work/trial.html").read_text()
    assert escape(report.verdict) in page and "colour" in page
    assert not re.search(r'(src|href)="(?!data:)', page) and "<script" not in page
    (differences,) = report.differences
    assert differences.won > 10 and f"<td>{differences.won}</td>" in page
    shown = [example.kind for example in differences.examples]
    assert shown == ["won"] + ["lost"] * (differences.lost > 0)
    assert page.count("<figcaption>") == len(shown)
    assert page.count("data:image/png") == len(shown) + 1  # and the drawing
    assert (place / "work/trial.png").read_bytes().startswith(b"\x89PNG")
    assert read_trial(place / "work/trial.json") == report
    assert report.estimate is not None and "not measured" in report.estimate.formula


@pytest.mark.slow
def test_where_no_state_carries_the_answer_it_is_not_worth_it(place: Path) -> None:
    options = {"data": place / "random.json", "test": place / "unseen.json"}
    said: list[str] = []
    arms = (*ARMS, "dci")
    report = tried(place, **options, work_dir=place / "no", arms=arms, said=said)
    assert report.decision in ("not shown", "do not") and report.judged == "dci"
    assert report.left_out["chosen"].startswith("do not operate")
    assert report.probe is not None and not report.probe.operate
    with pytest.raises(PlanError, match="no arm is left"):
        tried(place, **options, work_dir=place / "no", arms=("chosen",))
    heeded = tried(place, **options, work_dir=place / "no", arms=arms, heed_probe=True)
    assert heeded.decision == "not shown" and "nothing was trained" in heeded.verdict
    assert [arm.name for arm in heeded.arms] == ["base"]


def test_a_dry_run_writes_nothing(place: Path) -> None:
    plan = tried(place, work_dir=place / "dry", dry_run=True, arms=("base", *ARMS), seeds=2)
    assert isinstance(plan, TrialPlan) and not (place / "dry").exists()
    assert (plan.trainings, plan.left, plan.left_tests, plan.steps) == (6, 6, 7, 15)
    assert plan.unknown == ("chosen",) and plan.arms == {
        "base": "",
        "control": "",
        "repeated": "3;3",
    }
    assert plan.test_rows == 80 and plan.seconds > 0
    assert "the probe's" in str(plan) and "the probe comes on top" in str(plan)
    said: list[str] = []
    plan = tried(place, work_dir=place / "dry", dry_run=True, layers="2", said=said)
    assert "the probe" not in str(plan)
    assert "warning: --probe-rows 100 is not used: no probe runs" in said


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"test": "DATA"}, RequestError, "the test is the training data"),
        ({"arms": ("dci", "nothing")}, RequestError, "no arm 'nothing'"),
        ({"arms": ()}, RequestError, "no arm to try"),
        ({"seeds": 0}, RequestError, "--seeds 0"),
        ({"metric": "bleu"}, RequestError, "--metric bleu"),
        ({"layers": "9"}, PlanError, "9"),
        ({"connector": "dci", "layers": "@nowhere.json"}, RequestError, "nowhere.json"),
        ({"settings": TrainingSettings(train="connector")}, RequestError, "--train connector"),
        ({"settings": TrainingSettings(connector_lr=0)}, RequestError, "rate of 0"),
        ({"limit": 0}, RequestError, "--limit 0"),
        ({"eval_batch": 0}, RequestError, "--eval-batch 0"),
        ({"probe_rows": 0}, RequestError, "--probe-rows 0"),
        ({"test_images": "nowhere"}, RequestError, "--test-images nowhere"),
        ({"arms": ("control", "dci"), "layers": "1"}, RequestError, "--layers 1"),
        ({"arms": ("control", "dci"), "connector": "sci"}, RequestError, "--connector sci"),
        ({"arms": ("control", "dci"), "heed_probe": True}, RequestError, "--heed-probe"),
        ({"layers": "2", "heed_probe": True}, RequestError, "--heed-probe"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_runs(
    place: Path, tmp_path: Path, options: dict[str, Any], error: type[Exception], told: str
) -> None:
    if options.get("test") == "DATA":
        options = {"test": place / "train.json"}
    with pytest.raises(error, match=re.escape(told)):
        tried(place, work_dir=tmp_path / "work", **options)
    assert not (tmp_path / "work").exists()


def test_a_converted_model_is_told_its_base(place: Path, tmp_path: Path) -> None:
    base = shutil.copytree(place / "model", tmp_path / "my model")
    dcsurgery.convert(base, tmp_path / "converted", form="delta")
    with pytest.raises(PlanError, match="has a dci connector already") as found:
        dcsurgery.trial(tmp_path / "converted", place / "train.json", place / "test.json")
    assert f"'{base}'" in found.value.hint


def test_nothing_is_made_inside_the_model(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shutil.copytree(place / "model", tmp_path / "model")
    before = sorted(path.name for path in model.iterdir())
    monkeypatch.chdir(model)
    with pytest.raises(RequestError, match=r"work folder model\.trial would be inside") as found:
        dcsurgery.trial(".", place / "train.json", place / "test.json")
    assert "--work-dir" in found.value.hint
    assert sorted(path.name for path in model.iterdir()) == before
    monkeypatch.chdir(tmp_path)
    assert work_folder("model/", None) == work_folder("./model", None) == Path("model.trial")
    assert work_folder("org/name", None) == Path("name.trial")


def test_after_a_damaged_report_is_moved_away_the_picture_is_still_known(
    place: Path, tmp_path: Path
) -> None:
    report = trial_of(plan_conversion(place / "model", form="delta").plan, differences=[])
    (tmp_path / "trial.png").write_bytes(b"png")
    (tmp_path / "trial.html").write_text(render_page(report, {}, None))
    check_ours(tmp_path)
    (tmp_path / "trial.html").unlink()
    with pytest.raises(OutputExistsError, match=r"trial\.png exists"):
        check_ours(tmp_path)


def scaled(model: Path, folder: Path) -> Path:
    """A copy of a model in which only values of the projector, in the middle of a file, differ."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "multi_modal_projector.linear_2.weight" in name)
    tensors[name] = tensors[name] * 1.5
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    save_file(tensors, path, metadata={"format": "pt"})
    os.utime(path, ns=times)
    return folder


@pytest.mark.slow
def test_another_projector_is_another_model(tmp_path: Path) -> None:
    lesson = write_lesson(tmp_path / "lesson")
    other = scaled(lesson / "model", tmp_path / "other")
    said: list[str] = []
    given: dict[str, Any] = {
        "arms": ("control",), "seeds": 1, "limit": 2, "max_new_tokens": 2,
        "settings": TrainingSettings(max_steps=1, batch_size=2), "say": said.append,
    }  # fmt: skip
    data = (lesson / "train.json", lesson / "test.json", tmp_path / "work")
    dcsurgery.trial(lesson / "model", *data, **given)
    with pytest.raises(OutputExistsError, match=r"is a trial of .*model, another model") as found:
        dcsurgery.trial(other, *data, **given)
    assert "--work-dir" in found.value.hint
    (tmp_path / "work/trial.json").unlink()
    said.clear()
    dcsurgery.trial(other, *data, **given)
    assert not any(line.endswith(": done before") for line in said)
    assert any("training: done before with other settings, data or model" in s for s in said)


def test_the_work_folder_of_another_model_is_refused(place: Path, tmp_path: Path) -> None:
    plan = plan_conversion(place / "model", form="delta").plan
    (tmp_path / "trial.json").write_text(trial_of(plan).model_dump_json())
    assert isinstance(tried(place, work_dir=tmp_path, dry_run=True), TrialPlan)
    shutil.copytree(place / "model", tmp_path / "copy")
    for folder in (tmp_path / "copy", scaled(place / "model", tmp_path / "scaled")):
        with pytest.raises(OutputExistsError, match="a trial of /home/me/llava, another model"):
            dcsurgery.trial(
                folder, place / "train.json", place / "test.json", tmp_path, dry_run=True
            )


@pytest.mark.parametrize(
    ("metric", "spoilt", "told"),
    [("choice", "answer", "is not a letter"), ("exact", "", "no reference answer")],
)
def test_a_test_that_the_metric_cannot_use_is_refused_before_a_training(
    place: Path, tmp_path: Path, metric: str, spoilt: str, told: str
) -> None:
    rows = json.loads((place / "test.json").read_text())
    test = place / f"spoilt-{metric}.json"
    test.write_text(json.dumps([{**row, "answer": spoilt and "a red one"} for row in rows]))
    with pytest.raises(RequestError, match=told):
        tried(place, test=test, work_dir=tmp_path / "work", metric=metric, dry_run=True)
    with pytest.raises(RequestError, match=told):
        tried(place, test=test, work_dir=tmp_path / "work", metric=metric)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("name", ["dci-0/mine.txt", "dci-0.training/mine.txt"])
def test_files_of_others_in_an_arms_folder_are_found_before_a_training(
    place: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputExistsError, match=name.split("/")[0]):
        tried(place, work_dir=tmp_path, arms=("control", "dci"))
    assert [path.name for path in tmp_path.iterdir()] == [name.split("/")[0]]


@pytest.mark.parametrize(("arms", "none"), [(("dci",), True), (("control", "chosen"), False),
                                            (("base", "control"), True)])  # fmt: skip
def test_arms_of_which_no_verdict_can_come_are_said_at_once(
    place: Path, tmp_path: Path, arms: tuple[str, ...], none: bool
) -> None:
    said: list[str] = []
    plan = tried(place, work_dir=tmp_path / "work", arms=arms, dry_run=True, said=said)
    told = "no verdict will come of these arms"
    assert any(told in line for line in said) is none and (told in str(plan)) is none
    assert bool(plan.no_verdict) is none


@pytest.mark.parametrize("name", ["trial.json", "trial.html", "trial.png", "probe.json"])
def test_files_of_others_are_not_replaced(place: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputExistsError, match=name):
        tried(place, work_dir=tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_pictures_of_the_training_in_the_test_are_said(place: Path, tmp_path: Path) -> None:
    rows = json.loads((place / "test.json").read_text())
    rows[0]["image"] = rows[1]["image"] = "train/3.png"
    test = place / "shared.json"
    test.write_text(json.dumps(rows))
    said: list[str] = []
    plan = tried(place, test=test, work_dir=tmp_path / "work", dry_run=True, said=said)
    assert plan.shared_pictures == 1 and any("1 of the test's pictures" in line for line in said)


@pytest.mark.slow
def test_dcis_own_states_are_not_tried_twice(tmp_path: Path) -> None:
    lesson = write_lesson(tmp_path / "lesson")
    said: list[str] = []
    plan = dcsurgery.trial(
        lesson / "model", lesson / "train.json", lesson / "test.json", tmp_path / "work",
        layers="0-3;4-7", dry_run=True, say=said.append,
    )  # fmt: skip
    assert isinstance(plan, TrialPlan)
    assert plan.left_out == {"chosen": "it would be the dci arm again: these are dci's own states"}
    assert list(plan.arms) == ["base", "control", "repeated", "dci"]


@pytest.mark.slow
def test_a_connector_that_changes_tokens_has_no_repeated_arm(
    tiny_clip: Path, tmp_path: Path
) -> None:
    data, test = write_data(tmp_path / "a", 9), write_data(tmp_path / "b", 7)
    report = dcsurgery.trial(
        tiny_clip, data, test, tmp_path / "work", connector="sti", seeds=1, metric="loss",
        settings=TrainingSettings(max_steps=1, batch_size=2, max_bad=50),
    )  # fmt: skip
    assert isinstance(report, TrialReport)
    assert "changes the image tokens" in report.left_out["repeated"]
    assert report.judged == "chosen" and report.differences == []
    assert report.decision != "worth it" and report.metric == "loss"
    assert "one seed" in " ".join(report.warnings)
