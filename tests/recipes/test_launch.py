"""Recipes whose trainings run in several processes, started by accelerate's launcher."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from dcsurgery.errors import RequestError, TrainingError, VerificationError
from dcsurgery.recipes import launch as launching
from dcsurgery.recipes.adopt import adopt_step
from dcsurgery.recipes.catalog import load_recipe
from dcsurgery.recipes.launch import Launch
from dcsurgery.recipes.runner import RecipeRun, read_source, run_recipe
from dcsurgery.recipes.sweep import run_sweep
from dcsurgery.surgery.plan_file import DELTA_FILE
from dcsurgery.training.checkpoints import latest_checkpoint, step_of
from dcsurgery.training.logs import LOG_FILE, read_log
from dcsurgery.training.memory import held
from tests.closeness import PAPER, assert_near

CHANGES = ("smoke.options={tower: clip, depth: 4}", "verify=null")
TRAINED = "finetune-1"


def train(work: Path, *changes: str, **launch: Any) -> RecipeRun:
    return run_recipe(
        "tiny", changes=CHANGES + changes, work_dir=work, until="finetune", launch=Launch(**launch)
    )


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one process. Do not write into it."""
    work = tmp_path_factory.mktemp("one") / "run"
    train(work)
    return work


def assert_same_weights(found: Path, wanted: Path) -> None:
    values, expected = (load_file(work / TRAINED / DELTA_FILE) for work in (found, wanted))
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        assert_near(values[name], value, PAPER, name)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "zero2", "zero3"])
def test_a_run_in_two_processes_has_the_weights_of_one(
    sharding: str, one: Path, tmp_path: Path
) -> None:
    if sharding != "none" and find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed; .ci/run installs it")
    run = train(tmp_path / "run", f"finetune.sharding={sharding}", processes=2)
    assert [step.state for step in run.steps] == ["done", "done"]
    assert_same_weights(run.work, one)
    assert not (run.work / "stamps" / f"{TRAINED}.job").exists()
    again = train(run.work)
    assert [step.state for step in again.steps] == ["resumed", "resumed"], "how is no input"


@pytest.mark.parametrize(
    ("stage", "more", "processes", "deepspeed", "wanted"),
    [
        (1, (), 8, True, ("zero2", "as the reference in stage 1")),
        (2, (), 8, True, ("zero3", "as the reference in stage 2")),
        (2, ("finetune.train=lora",), 8, True, ("zero3", "as the reference in stage 2")),
        (2, (), 1, True, ("none", "")),
        (2, (), 8, False, ("none", "DeepSpeed is not installed; the reference takes zero3")),
        (2, ("finetune.sharding=zero2",), 8, False, ("zero2", "")),
        (2, ("finetune.quantize=4bit", "finetune.train=lora"), 8, True,
         ("none", "4bit is not trained under sharding")),
        (1, ("finetune.stage=null",), 8, True, ("none", "")),
    ],
)  # fmt: skip
def test_a_stage_is_shared_as_the_reference_shares_it(
    stage: int,
    more: tuple[str, ...],
    processes: int,
    deepspeed: bool,
    wanted: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """scripts/v1_5 of HJYao00/DenseConnector at 0f8936c: --deepspeed zero2.json, zero3.json."""
    found = load_recipe("llava-1.5-7b-dci", more).finetune[stage - 1]
    monkeypatch.setattr(launching, "find_spec", lambda name: True if deepspeed else None)
    launch = Launch(processes=processes)
    assert launch.way(found) == wanted
    command = " ".join(launch.command(found, Path("job")))
    assert ("--zero_stage" in command) == wanted[0].startswith("zero")
    if wanted[0].startswith("zero"):
        assert f"--zero_stage {wanted[0][-1]}" in command


@pytest.mark.slow
def test_the_two_stages_of_a_recipe_in_two_processes_have_the_weights_of_one(
    tmp_path: Path,
) -> None:
    if find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed; .ci/run installs it")
    said: list[str] = []
    options: dict[str, Any] = {"smoke": True, "until": "finetune", "say": said.append}
    works = [tmp_path / "one", tmp_path / "two"]
    for work, launch in zip(works, (None, Launch(processes=2)), strict=True):
        run_recipe("llava-1.5-7b-dci", changes=CHANGES, work_dir=work, launch=launch, **options)
    told = [line for line in said if "2 processes" in line]
    assert "zero2 (as the reference in stage 1)" in told[0]
    assert "zero3 (as the reference in stage 2)" in told[1]
    for stage in ("finetune-1", "finetune-2"):
        ones, twos = (
            {
                name: value
                for file in sorted((work / stage).rglob("*.safetensors"))
                for name, value in load_file(file).items()
            }
            for work in works
        )
        assert ones.keys() == twos.keys()
        for name, value in ones.items():
            assert_near(twos[name], value, PAPER, f"{stage}: {name}")


@pytest.mark.slow
def test_a_sweep_trains_in_the_processes_too(tmp_path: Path) -> None:
    said: list[str] = []
    sweep = "sweep={connector.groups: [1, 2]}"
    source = read_source("tiny", (*CHANGES, sweep, "eval=[]", "export=null", "publish=null"))
    launch = Launch(processes=2)
    options: dict[str, Any] = {"until": None, "dry_run": False, "launch": launch}
    runs = run_sweep(source, tmp_path / "run", tmp_path, say=said.append, **options)
    assert all(run.finished for _, run in runs)
    assert sum("2 processes, sharding: none" in line for line in said) == 2


@pytest.mark.slow
def test_two_machines_train_together_in_one_work_folder(one: Path, tmp_path: Path) -> None:
    port = 20000 + os.getpid() % 20000
    command = [
        *(sys.executable, "-m", "dcsurgery", "recipe", "run", "tiny", "--until", "finetune"),
        *("--work-dir", str(tmp_path / "run"), "--processes", "2", "--machines", "2"),
        *("--main-address", "127.0.0.1", "--main-port", str(port), "--machine-rank"),
    ]
    changes = [part for change in CHANGES for part in ("--set", change)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), *changes], stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for rank in (1, 0)
    ]
    told = [process.communicate()[1].decode() for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], told
    assert "with the first machine" in told[0]
    assert_same_weights(tmp_path / "run", one)


def _begun(process: subprocess.Popen[str], work: Path, beyond: int = 0) -> int:
    """Wait for a checkpoint of a later step; return the first worker's process id."""
    assert process.stderr is not None
    folder, log = work / f"{TRAINED}.training", work / "stamps" / f"{TRAINED}.log"
    while process.poll() is None:
        kept = latest_checkpoint(folder)
        if kept is not None and step_of(kept) > beyond:
            found = re.search(r"pid (\d+)", log.read_text())
            assert found is not None
            return int(found[1])
        time.sleep(0.2)
    pytest.fail(process.stderr.read())


def _long(work: Path) -> subprocess.Popen[str]:
    """Start the same recipe with many more steps."""
    code = (
        "import sys\nfrom dcsurgery.recipes import smoke\n"
        "smoke.SMALL['max_steps'] = 400\nsmoke.SMALL['save_steps'] = 2\n"
        "from dcsurgery.cli.main import main\nsys.exit(main())"
    )
    command = [sys.executable, "-c", code, "recipe", "run", "tiny", "--work-dir", str(work)]
    changes = [part for change in CHANGES for part in ("--set", change)]
    return subprocess.Popen(
        [*command, "--processes", "2", "--until", "finetune", *changes],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ctrl-c", "dead worker"])
def test_all_processes_end_and_the_same_command_goes_on(how: str, tmp_path: Path) -> None:
    work = tmp_path / "run"
    process = _long(work)
    first = _begun(process, work)
    if how == "ctrl-c":
        process.send_signal(signal.SIGINT)
    else:
        os.kill(first, signal.SIGKILL)
    said = process.communicate()[1]
    assert process.returncode == (130 if how == "ctrl-c" else 1), said
    assert not _alive(first)
    if how == "dead worker":
        assert "the log is" in said and "  | " in said
    kept = latest_checkpoint(work / f"{TRAINED}.training")
    assert kept is not None
    process = _long(work)
    _begun(process, work, step_of(kept))
    process.send_signal(signal.SIGINT)
    process.communicate()
    log = read_log(work / f"{TRAINED}.training" / LOG_FILE)
    assert [row["step"] for row in log] == list(range(1, len(log) + 1)), "it went on"
    assert len(log) > step_of(kept)


def test_what_cannot_be_started_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for launch, words in (
        ({"processes": 3}, "evenly"),
        ({"processes": 2, "machines": 2}, "must know the first one"),
        ({"processes": 2, "machine_rank": 1}, "no machine 1 of 1"),
        ({"config": tmp_path / "absent.yaml"}, "no file"),
    ):
        with pytest.raises(RequestError, match=words):
            train(tmp_path / "run", **launch)
    with pytest.raises(RequestError, match="FSDP out where there is no GPU"):
        train(tmp_path / "run", "finetune.sharding=fsdp2", processes=2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(RequestError) as refused:
        train(tmp_path / "run")
    assert refused.value.hint == "dcsurgery recipe run tiny --processes 4"
    assert not (tmp_path / "run" / "stamps").exists()


@pytest.mark.slow
def test_a_refusal_of_a_worker_is_that_of_the_run(one: Path, tmp_path: Path) -> None:
    del one
    with pytest.raises(TrainingError, match="12 of 12 rows cannot be used"):
        train(tmp_path / "run", "finetune.max_length=1", processes=2)


def test_a_dry_run_reads_stamps(one: Path, tmp_path: Path) -> None:
    shutil.copytree(one, tmp_path / "run")
    before = sorted(path.name for path in (tmp_path / "run").rglob("*"))

    def look(*changes: str) -> dict[str, str]:
        run = run_recipe("tiny", changes=CHANGES + changes, work_dir=tmp_path / "run", dry_run=True)
        return {step.name: step.state for step in run.steps}

    found = look()
    assert found["convert"] == found[TRAINED] == "resumed" and found["export"] == "to do"
    assert look("finetune.seed=3")[TRAINED] == "to do"
    assert look("connector.groups=1") == dict.fromkeys(found, "to do")
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == before


def test_a_smoke_run_says_what_it_overrides(one: Path) -> None:
    said: list[str] = []
    run_recipe("tiny", changes=CHANGES, work_dir=one, until="finetune", say=said.append)
    line = next(line for line in said if line.startswith("smoke: finetune-1"))
    assert "max_steps 2 (not set in the recipe)" in line and "lora_rank 4 (recipe: 128)" in line


def test_a_stage_trained_elsewhere_is_adopted_when_it_is_that_stage(
    one: Path, tmp_path: Path
) -> None:
    work = tmp_path / "run"
    run_recipe("tiny", changes=CHANGES, work_dir=work, until="convert")
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(one / TRAINED, elsewhere)
    for changes, words in (
        (("finetune.seed=3",), "seed was 0, not 3"),
        (("finetune.train=connector",), "train was projector"),
    ):
        with pytest.raises(RequestError, match=words):
            adopt_step("tiny", TRAINED, elsewhere, changes=CHANGES + changes, work_dir=work)
    with pytest.raises(RequestError, match="convert is not done"):
        adopt_step(
            "tiny", TRAINED, elsewhere, changes=(*CHANGES, "connector.groups=1"), work_dir=work
        )
    with pytest.raises(RequestError, match="never trained"):
        adopt_step("tiny", TRAINED, work / "convert", changes=CHANGES, work_dir=work)
    with pytest.raises(RequestError, match="no training"):
        adopt_step("tiny", "export", elsewhere, changes=CHANGES, work_dir=work)
    stamp = adopt_step("tiny", TRAINED, elsewhere, changes=CHANGES, work_dir=work)
    assert stamp.result["adopted"] == str(elsewhere)
    run = run_recipe("tiny", changes=CHANGES, work_dir=work)
    assert {step.name: step.state for step in run.steps}[TRAINED] == "resumed"
    assert str(elsewhere) in (work / "report.md").read_text()
    broken = elsewhere / DELTA_FILE
    raw = bytearray(broken.read_bytes())
    raw[-1] ^= 1
    broken.write_bytes(raw)
    with pytest.raises(VerificationError, match="not what its plan says"):
        adopt_step("tiny", TRAINED, elsewhere, changes=CHANGES, work_dir=work)


def test_what_is_held_is_as_zero_splits_it() -> None:
    """ZeRO's table (arXiv 1910.02054, figure 1) with fp32 weights and gradients: 16 bytes each."""
    seven = int(7e9)
    found = [held(4 * seven, seven, way, 8) / 1e9 for way in ("none", "zero1", "zero2", "zero3")]
    assert found == pytest.approx([112, 63, 38.5, 14])
    assert held(4 * seven, seven, "fsdp2", 8) == held(4 * seven, seven, "zero3", 8)
    assert held(4 * seven, seven, "zero3", 8, average=True) / 1e9 == pytest.approx(42)
