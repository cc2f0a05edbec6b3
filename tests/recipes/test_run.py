"""A recipe that runs: stamps, resume, what a change re-runs, report, lock and sweep."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dcsurgery.cli.recipe import run as cli_run
from dcsurgery.errors import DcSurgeryError, OutputExistsError, RequestError, VerificationError
from dcsurgery.recipes.catalog import load_recipe
from dcsurgery.recipes.lockfile import LOCK_FILE
from dcsurgery.recipes.recipe_report import compare
from dcsurgery.recipes.resolve import installed, missing, other_versions, pin_base, pinned
from dcsurgery.recipes.runner import RecipeRun, input_hash, plan_of, read_source, run_recipe
from dcsurgery.recipes.schema import Expected
from dcsurgery.recipes.stamps import Stamp, begin, merged_versions
from dcsurgery.recipes.steps import build_steps
from dcsurgery.recipes.sweep import run_sweep
from dcsurgery.surgery.plan_file import DELTA_FILE
from dcsurgery.training.workspace import MARK

pytestmark = pytest.mark.slow

SMALL = ("smoke.options={tower: clip, depth: 4}", "verify.logits=false")
QUICK = (*SMALL, "verify=null")
STEPS = ["convert", "finetune-1", "eval-colours", "export", "publish"]


def states(run: RecipeRun) -> dict[str, str]:
    return {step.name: step.state for step in run.steps}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RecipeRun:
    """The tiny recipe without its verifications, run once. Do not write into its folder."""
    return run_recipe("tiny", changes=QUICK, work_dir=tmp_path_factory.mktemp("recipe") / "run")


def test_a_run_ends_with_a_model_a_report_and_a_card(finished: RecipeRun) -> None:
    assert states(finished) == dict.fromkeys(STEPS, "done")
    work = finished.work
    report = json.loads((work / "report.json").read_text())
    assert list(report["steps"]) == STEPS
    assert report["smoke"] is True
    training = report["steps"]["finetune-1"]["result"]["training"]
    text = (work / "report.md").read_text()
    assert f"{training['trained_parameters']:,} parameters, 2 steps" in text
    assert "Smoke run" in text
    assert report["plots"] == [
        "finetune-1/dense_connector/training.png",
        "eval-colours/report.png",
    ]
    assert all(f"![{plot}]({plot})" in text for plot in report["plots"])
    assert set(report["data"]) == {"train.json", "test.json"}
    assert report["data"]["train.json"] in text
    assert report["steps"]["finetune-1"]["versions"]["torch"] == report["versions"]["torch"]
    assert (work / "export/config.json").is_file()
    assert "arXiv" in (work / "card.md").read_text()


def test_a_finished_run_does_nothing_twice_and_a_change_reruns_what_depends_on_it(
    finished: RecipeRun, tmp_path: Path
) -> None:
    again = run_recipe("tiny", changes=QUICK, work_dir=finished.work)
    assert states(again) == dict.fromkeys(STEPS, "resumed")
    told = plan_of(again)
    assert Path(told["report"]).name == "report.json"
    assert Path(told["lock"]).name == LOCK_FILE
    assert told["steps"][1]["result"]["training"]["steps"] == 2
    work = tmp_path / "copy"
    subprocess.run(["cp", "-r", finished.work, work], check=True)
    changed = (*QUICK, "eval.batch_size=2", "eval.prompt=v1", "eval.seed=5", "eval.dtype=float32")
    found = states(run_recipe("tiny", changes=changed, work_dir=work, until="eval"))
    assert found == {"convert": "resumed", "finetune-1": "resumed", "eval-colours": "done"}
    used = json.loads((work / "eval-colours/report.json").read_text())["settings"]
    assert (used["version"], used["seed"], used["dtype"]) == ("v1", 5, "float32")
    assert not (work / LOCK_FILE).exists(), "it was the lock of another run"
    data = work / "smoke/train.json"
    data.write_text(data.read_text().replace("red", "pink"))
    found = states(run_recipe("tiny", changes=changed, work_dir=work, until="finetune"))
    assert found == {"convert": "resumed", "finetune-1": "done"}
    (work / "convert" / DELTA_FILE).unlink()
    found = states(run_recipe("tiny", changes=changed, work_dir=work, until="convert"))
    assert found == {"convert": "done"}, "an output that is gone is made again"


def test_what_a_step_reads_decides_whether_it_runs_again() -> None:
    def hashed(*changes: str) -> dict[str, str]:
        recipe = read_source("tiny", ("verify.images=[a.png]", *changes)).recipe
        done: dict[str, Stamp] = {}
        for step in build_steps(recipe):
            read = dict.fromkeys(step.reads.values(), "0")
            inputs = input_hash(step, done, {}, read)
            done[step.name] = Stamp(step.name, inputs, {}, {}, 0)
        return {name: stamp.inputs_sha256 for name, stamp in done.items()}

    before = hashed()
    assert before == hashed()

    def again(*changes: str) -> set[str]:
        return {name for name, sha in hashed(*changes).items() if sha != before[name]}

    trained = set(before) - {"convert", "verify-convert"}
    assert again("finetune.images=others") == trained
    assert again("finetune.seed=7") == trained
    assert again("eval.images=others") == {"eval-colours"}
    assert again("title=another", "cost.hours=1") == set()


def test_a_base_folder_whose_values_change_is_another_base(
    finished: RecipeRun, tmp_path: Path
) -> None:
    recipe = finished.recipe
    shutil.copytree(finished.work / "smoke/base", tmp_path / "base")
    before = pin_base(recipe, tmp_path)
    assert pin_base(recipe, finished.work / "smoke") == before
    weights = tmp_path / "base/model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert pin_base(recipe, tmp_path) != before


def test_verification_images_are_asked_for_before_anything_runs(tmp_path: Path) -> None:
    recipe = load_recipe("tiny", ("verify.images=[absent.png]",))
    assert any("absent.png" in text for text in missing(recipe, build_steps(recipe), tmp_path))


def test_a_lock_is_replayed_at_its_commit(tmp_path: Path) -> None:
    recipe = load_recipe("llava-1.5-7b-dci")
    lock = {"base": {"commit": "c" * 40}}
    assert pinned(recipe, lock, tmp_path).base.revision == "c" * 40
    (tmp_path / recipe.base.model).mkdir(parents=True)
    assert pinned(recipe, lock, tmp_path).base.revision is None, "a folder has no commits"


def test_a_run_taken_up_with_another_version_names_both() -> None:
    stamps = [Stamp("a", "", {}, {}, 0, {"torch": v, "peft": "1"}) for v in ("2.0", "2.1", "2.0")]
    assert merged_versions(stamps) == {"torch": "2.0 and 2.1", "peft": "1"}
    lock = {"versions": {"torch": "0.1", "python": installed()["python"]}}
    assert [text.split()[0] for text in other_versions(lock)] == ["torch"]


def test_folders_that_are_not_the_run_s_are_not_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "convert/thesis.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(OutputExistsError, match="no recipe wrote it"):
        run_recipe("tiny", changes=QUICK, work_dir=tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["convert", "thesis.txt"]


@pytest.mark.parametrize("name", ["report.md", "card.md", LOCK_FILE, "stamps/a", "smoke/.complete"])
def test_a_folder_of_somebody_else_is_not_worked_in(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    with pytest.raises(OutputExistsError, match="no recipe wrote it"):
        run_recipe("tiny", changes=QUICK, work_dir=tmp_path)
    assert path.read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("place", ["convert", "export/dense_connector", "finetune-1", "smoke"])
def test_notes_in_a_run_s_folders_are_never_replaced(
    place: str, finished: RecipeRun, tmp_path: Path
) -> None:
    work = tmp_path / "copy"
    subprocess.run(["cp", "-r", finished.work, work], check=True)
    (work / place / "notes.txt").write_text("mine")
    # Other inputs for every step, and for the world they run in.
    changed = (*QUICK, "smoke.options={tower: clip, depth: 6}")
    with pytest.raises(OutputExistsError, match=r"did not write: .*notes\.txt") as caught:
        run_recipe("tiny", changes=changed, work_dir=work)
    assert "move it away" in caught.value.hint
    assert (work / place / "notes.txt").read_text() == "mine"


def test_what_is_unfinished_is_cleared_only_where_it_is_ours(tmp_path: Path) -> None:
    left = tmp_path / "finetune-1.training"
    (left / "checkpoint-1").mkdir(parents=True)
    (left / MARK).touch()
    (left / "checkpoint-1" / "notes.txt").write_text("mine")
    (tmp_path / "eval-x").mkdir()
    (tmp_path / "eval-x" / "answers.jsonl").write_text("my own answers\n")
    with pytest.raises(OutputExistsError, match=r"checkpoint-1/notes\.txt"):
        begin(tmp_path, "finetune-1", "new", "finetune-1.training")
    with pytest.raises(OutputExistsError, match=r"answers\.jsonl"):
        begin(tmp_path, "eval-x", "new", "eval-x/answers.jsonl")
    assert (left / "checkpoint-1" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "eval-x" / "answers.jsonl").read_text() == "my own answers\n"


def test_smoke_replaces_no_run_with_the_whole_model(tmp_path: Path) -> None:
    begin(tmp_path, "convert", "0" * 64)
    with pytest.raises(OutputExistsError, match="holds a run with the whole model"):
        run_recipe("llava-1.5-7b-dci", smoke=True, work_dir=tmp_path)


def test_what_was_left_unfinished_is_only_gone_on_with_by_the_same_inputs(tmp_path: Path) -> None:
    left = tmp_path / "finetune-1.training/checkpoint-1"
    left.mkdir(parents=True)
    (left.parent / MARK).touch()
    assert not begin(tmp_path, "finetune-1", "old")
    assert begin(tmp_path, "finetune-1", "old", "finetune-1.training")
    assert left.is_dir()
    assert not begin(tmp_path, "finetune-1", "new", "finetune-1.training")
    assert not left.exists()
    assert begin(tmp_path, "finetune-1", "new", "finetune-1.training")


def test_a_lock_replays_to_the_same_weights(finished: RecipeRun, tmp_path: Path) -> None:
    lock = finished.work / LOCK_FILE
    work = tmp_path / "replay"
    replayed = run_recipe(str(lock), work_dir=work, until=None)
    assert states(replayed) == dict.fromkeys(STEPS, "done")
    for step in ("convert", "finetune-1", "export"):
        first, second = (folder / step / DELTA_FILE for folder in (finished.work, work))
        assert first.read_bytes() == second.read_bytes(), step


def test_a_lock_is_exact(finished: RecipeRun, tmp_path: Path) -> None:
    values = yaml.safe_load((finished.work / LOCK_FILE).read_text())
    assert {"torch", "transformers", "dcsurgery"} <= set(values["versions"])
    with pytest.raises(RequestError, match="--set cannot change it"):
        run_recipe(str(finished.work / LOCK_FILE), changes=("name=x",), work_dir=tmp_path / "a")
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({**values, "data": {**values["data"], "train.json": "0" * 64}}))
    with pytest.raises(RequestError, match=r"train\.json is not the locked file"):
        run_recipe(str(other), work_dir=tmp_path / "b")
    other.write_text(yaml.safe_dump({**values, "outputs": None}))
    with pytest.raises(RequestError, match="outputs is wrong"):
        read_source(str(other))
    outputs = {**values["outputs"], "convert": {f"convert/{DELTA_FILE}": "0" * 64}}
    other.write_text(yaml.safe_dump({**values, "outputs": outputs}))
    with pytest.raises(DcSurgeryError, match="other weights than the lock: convert"):
        run_recipe(str(other), work_dir=finished.work)


def test_killed_at_each_step_a_run_still_completes(tmp_path: Path, finished: RecipeRun) -> None:
    work = tmp_path / "killed"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.recipes.killed", "tiny", str(work), *QUICK],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["codes"] == dict.fromkeys(STEPS, -signal.SIGKILL)
    assert found["last"] == 0
    # Every killed run left the stamps of the steps before; only the last step was still to do.
    assert found["states"] == {**dict.fromkeys(STEPS[:-1], "resumed"), STEPS[-1]: "done"}
    first, second = (folder / "finetune-1" / DELTA_FILE for folder in (finished.work, work))
    assert first.read_bytes() == second.read_bytes()


def test_a_sweep_runs_every_point_once_and_compares_them(tmp_path: Path) -> None:
    sweep = "sweep={connector.groups: [1, 2]}"
    cheap = ("connector.form=delta", "eval=[]", "export=null", "publish=null", "finetune=[]", sweep)
    source = read_source("tiny", (*QUICK, *cheap))

    def run() -> list[dict[str, str]]:
        pairs = run_sweep(
            source, tmp_path, Path("."), until=None, dry_run=False, say=lambda line: None
        )
        return [states(found) for _, found in pairs]

    assert run() == [{"convert": "done"}] * 2
    assert run() == [{"convert": "resumed"}] * 2
    rows = json.loads((tmp_path / "sweep.json").read_text())
    assert [row["point"] for row in rows] == ["groups-1", "groups-2"]
    assert rows[0]["new_parameters"] < rows[1]["new_parameters"]
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "sweep.md").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"did not write: sweep\.md"):
        run_sweep(source, tmp_path / "other", Path(), until=None, dry_run=False, say=print)
    with pytest.raises(RequestError, match="sweep of several runs"):
        run_recipe("table-1-ablation", work_dir=tmp_path / "x")


def test_a_dry_run_writes_nothing_and_names_what_is_missing(tmp_path: Path) -> None:
    run = run_recipe(
        "llava-1.5-7b-dci", work_dir=tmp_path / "work", data_dir=tmp_path, dry_run=True
    )
    assert not (tmp_path / "work").exists()
    assert set(states(run).values()) == {"to do"}
    assert any("blip_laion_cc_sbu_558k.json" in text for text in run.missing)
    with pytest.raises(DcSurgeryError, match="blip_laion") as caught:
        run_recipe("llava-1.5-7b-dci", work_dir=tmp_path / "work", data_dir=tmp_path)
    assert "--data-dir" in caught.value.hint
    with pytest.raises(RequestError, match="no step 'trian'"):
        run_recipe("tiny", work_dir=tmp_path / "work", until="trian")


def test_expected_numbers_stand_beside_what_was_measured() -> None:
    row = Expected(benchmark="GQA", value=63.8, tolerance=1.0, source="table 1", eval="gqa")
    models = [{"score": {"mean": 0.2}}, {"score": {"mean": 0.6301}}]
    stamp = Stamp("eval-gqa", "", {"eval": {"models": models}}, {}, 1.0)
    assert compare(row, {"eval-gqa": stamp}, smoke=False)["verdict"] == "within tolerance"
    assert compare(row, {"eval-gqa": stamp}, smoke=False)["measured"] == 63.01
    strict = row.model_copy(update={"tolerance": 0.5})
    assert compare(strict, {"eval-gqa": stamp}, smoke=False)["verdict"] == "outside tolerance"
    assert compare(row, {"eval-gqa": stamp}, smoke=True)["measured"] is None
    assert compare(row, {}, smoke=False)["verdict"] == "not measured here"


def test_every_stage_of_a_real_recipe_has_what_training_needs() -> None:
    first, second = load_recipe("llava-1.5-7b-dci").finetune
    one, two = first.settings().resolved(), second.settings().resolved()
    assert (one.batch_size, one.lr) == (256, 1e-3)
    assert (two.batch_size, two.lr, two.train) == (128, 2e-5, "full")


def test_a_run_that_does_not_verify_exits_with_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object, **options: object) -> RecipeRun:
        raise VerificationError("convert did not verify", hint="dcsurgery verify convert")

    monkeypatch.setattr("dcsurgery.recipes.runner.run_one", fail)
    assert cli_run("tiny", work_dir=tmp_path) == 3
    told = capsys.readouterr()
    assert "convert did not verify" in told.err and told.out == ""
