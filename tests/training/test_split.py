"""Processes that share a model (ZeRO-2, ZeRO-3, FSDP2, DDP) train the same model as one process.

FSDP2 is torch's own on gloo, prepared by accelerate as on GPUs; DeepSpeed runs where it is
installed (.ci/run does it).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from dcsurgery.errors import RequestError, TrainingError
from dcsurgery.surgery.plan_file import read_plan
from dcsurgery.tiny.llava import write_tiny_llava
from dcsurgery.training.finetune import finetune_connector
from dcsurgery.training.logs import read_log
from dcsurgery.training.settings import TrainingSettings
from dcsurgery.training.sharding import check_sharding
from tests.closeness import PAPER, assert_near
from tests.training.pictures import save_picture
from tests.training.split import asked

needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None,
    reason="DeepSpeed is not installed; .ci/run says which packages it needs here",
)
VALUES: dict[str, Any] = {
    "batch_size": 4, "micro_batch": 1, "max_steps": 5, "precision": "fp32", "lr": 1e-3,
    "connector_lr": 1e-2, "projector_lr": 1e-3, "warmup": 0.2, "save_steps": 2,
    "lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.0,
}  # fmt: skip
# Mixture and norm have parameters of their own, which are read at other places.
CONNECTORS: dict[str, dict[str, Any]] = {
    "connector": {"connector": "mix"},
    "projector": {"connector": "sci", "norm": True},
    "full": {"connector": "dci"},
    "lora": {"connector": "dci"},
}
FAR = 1e-5


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base and twelve rows, every other one text alone. Do not write into it."""
    folder = tmp_path_factory.mktemp("split")
    write_tiny_llava(folder / "base", tower="clip", depth=4)
    rows = []
    for number in range(12):
        said = [
            {"from": "human", "value": "Which colour?"},
            {"from": "gpt", "value": f"red {number}"},
        ]
        row: dict[str, Any] = {"id": f"row-{number}", "conversations": said}
        if number % 2:
            row["image"] = save_picture(folder / f"{number}.png", 32, 32, seed=number).name
            said[0]["value"] = "<image>\nWhich colour?"
        rows.append(row)
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder


def work(world: Path, out: Path, sharding: str, **values: Any) -> dict[str, Any]:
    """Return a training for tests.training.split."""
    processes = values.pop("processes", 2)
    given = {key: values.pop(key) for key in ("resume", "kill", "stop") if key in values}
    return {
        "base": str(world / "base"), "data": str(world / "rows.json"), "out": str(out),
        "connector": CONNECTORS[values["train"]], "sharding": sharding, "processes": processes,
        "settings": VALUES | values, **given,
    }  # fmt: skip


def carry_out(folder: Path, *trainings: dict[str, Any]) -> list[list[int]]:
    """Run trainings in processes of their own; return the exit codes of each."""
    file, root = folder / "work.json", Path(__file__).parents[2]
    file.write_text(json.dumps(trainings))
    env = {
        **os.environ,
        "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.split", file],
        cwd=root, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    codes: list[list[int]] = json.loads(done.stdout.splitlines()[-1])
    assert len(codes) == len(trainings)
    # One whose peer was killed may find that out before it is ended.
    if any(1 in found and -9 not in found for found in codes):
        pytest.fail(done.stderr[-6000:])
    return codes


def alone(world: Path, out: Path, **values: Any) -> Path:
    """Train in this process."""
    finetune_connector(
        world / "base", world / "rows.json", out,
        settings=TrainingSettings(**VALUES | values),
        connector=asked(CONNECTORS[values["train"]]),
    )  # fmt: skip
    return out


def assert_same(found: Path, wanted: Path) -> None:
    """Compare weights, curves and what the plan says of two trainings."""
    curves = [read_log(out / "dense_connector/training.jsonl") for out in (found, wanted)]
    for key in (
        key for key in curves[1][0] if key.startswith(("loss", "norm of", "lr ", "grad_norm"))
    ):
        values = [[row[key] for row in curve] for curve in curves]
        assert values[0] == pytest.approx(values[1], rel=FAR), key
    for key in ("rows", "supervised_tokens", "step"):
        assert [row[key] for row in curves[0]] == [row[key] for row in curves[1]]
    files = sorted(wanted.glob("dense_connector/**/*.safetensors"))
    assert files
    for file in files:
        values, expected = load_file(found / file.relative_to(wanted)), load_file(file)
        assert values.keys() == expected.keys()
        for name, value in expected.items():
            assert_near(values[name], value, PAPER, name)
    records = [read_plan(out).training[-1] for out in (found, wanted)]
    for name in ("trained", "untouched", "trained_parameters", "steps", "settings"):
        assert getattr(records[0], name) == getattr(records[1], name), name


SPLITS = [
    pytest.param("zero2", marks=needs_deepspeed),
    pytest.param("zero3", marks=needs_deepspeed),
    "fsdp2",
]


@pytest.mark.slow
@pytest.mark.parametrize("sharding", SPLITS)
def test_a_shared_model_trains_as_one_process_does(
    sharding: str, world: Path, tmp_path: Path
) -> None:
    """Half of the rows have no picture, so that often one process alone has one."""
    kinds = tuple(CONNECTORS)
    codes = carry_out(
        tmp_path, *(work(world, tmp_path / kind, sharding, train=kind) for kind in kinds)
    )
    assert codes == [[0, 0]] * len(kinds)
    for kind in kinds:
        assert_same(tmp_path / kind, alone(world, tmp_path / f"{kind}-one", train=kind))


CHAINS = {
    "fsdp2": [("none", 2), ("fsdp2", 4), ("fsdp2", 2), ("none", 1)],
    "zero": [("zero2", 2), ("zero3", 4), ("none", 2), ("zero3", 2), ("zero2", 1)],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp2", pytest.param("zero", marks=needs_deepspeed)])
def test_any_split_goes_on_where_any_other_was_killed_or_stopped(
    name: str, world: Path, tmp_path: Path
) -> None:
    values: dict[str, Any] = {"train": "full", "average": 0.3, "max_steps": 10}
    chain, ends, trainings = CHAINS[name], ["kill", "stop", "kill", "kill"], []
    for place, (sharding, processes) in enumerate(chain):
        end = {} if place == len(chain) - 1 else {ends[place]: 3 + 2 * place}
        given = {"processes": processes, "resume": place > 0, **end, **values}
        trainings.append(work(world, tmp_path / "out", sharding, **given))
    codes = carry_out(tmp_path, *trainings)
    assert all(-9 in found or set(found) == {130} for found in codes[:-1]), codes
    assert set(codes[-1]) == {0}
    assert_same(tmp_path / "out", alone(world, tmp_path / "one", **values))


REFUSED = {
    "version 1": {"ACCELERATE_USE_FSDP": "true"},
    "ZeRO stage 0": {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "0",
    },
    "does not say": {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": "absent.json",
    },
    "leave zero2 out": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_USE_CPU": "true"},
    "in bf16 by itself": {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_MIXED_PRECISION": "bf16",
    },
}


@pytest.mark.parametrize("words", REFUSED)
def test_a_split_that_would_train_something_else_is_refused_by_name(
    words: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in REFUSED[words].items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RequestError, match=words):
        alone(world, tmp_path / "out", train="connector")
    assert not (tmp_path / "out.training").exists()


@pytest.mark.parametrize("values", [{"precision": "fp16"}, {"quantize": "4bit"}])
def test_numbers_that_cannot_be_split_are_refused(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_sharding(TrainingSettings(**values))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(RequestError, match="zero2"):
        check_sharding(TrainingSettings(**values))


def test_sharding_that_accelerate_turns_off_is_an_error(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU it does so without a word: every process would train on its own."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(TrainingError, match="asked for fsdp2 and splits nothing"):
        alone(world, tmp_path / "out", train="connector")
