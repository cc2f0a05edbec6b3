"""--tower and --template wherever a model is opened: load, verify, ask, eval, finetune, inspect."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import dcsurgery
from dcsurgery.cli.main import app
from dcsurgery.errors import CheckpointNotFoundError, RequestError
from dcsurgery.surgery.plan_file import DELTA_FILE
from dcsurgery.tiny.llava import write_tiny_llava
from dcsurgery.tiny.mini_gemini import mini_gemini_config
from dcsurgery.tiny.original_llava import OriginalSizes, write_original_llava, write_tower
from dcsurgery.tiny.original_mini_gemini import (
    AUX_FOLDER,
    CLIP_FOLDER,
    write_original_mini_gemini,
    write_towers,
)
from dcsurgery.tiny.tokenizer import write_tokenizer
from tests.training.data import write_data
from tests.training.pictures import save_picture

pytestmark = pytest.mark.slow

SIZES = OriginalSizes(depth=4)
NAME = "ckpt/gone"


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tower(tmp_path_factory.mktemp("towers") / "own", SIZES)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An original that names a tower which is not there."""
    base = tmp_path_factory.mktemp("models") / "original"
    write_original_llava(base, SIZES, NAME, inside=False)
    write_tokenizer(base, ("<|im_start|>", "<|im_end|>"))
    return base


@pytest.fixture(scope="module")
def moved(original: Path, tower: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A delta whose base took its tower from a folder that is not there any more."""
    place = tmp_path_factory.mktemp("moved")
    shutil.copytree(tower, place / "before")
    out = place / "delta"
    dcsurgery.convert(original, out, form="delta", towers={NAME: str(place / "before")})
    shutil.rmtree(place / "before")
    return out


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("rows"))


@pytest.fixture(params=["original", "moved"])
def model(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("name", [NAME, "gone", "mm_vision_tower"])
def test_load_takes_towers(model: Path, tower: Path, name: str) -> None:
    with pytest.raises(CheckpointNotFoundError, match="tower"):
        dcsurgery.load(model)
    loaded = dcsurgery.load(model, towers={name: str(tower)})
    one = "encoder.layers.0.mlp.fc1.weight"
    (value,) = (p for n, p in loaded.named_parameters() if n.endswith(one))
    (wanted,) = (v for n, v in load_file(tower / "model.safetensors").items() if n.endswith(one))
    assert torch.equal(value, wanted)


def test_verify_takes_towers(moved: Path, tower: Path) -> None:
    with pytest.raises(CheckpointNotFoundError):
        dcsurgery.verify(moved)
    assert dcsurgery.verify(moved, towers={"gone": str(tower)}).passed
    with pytest.raises(RequestError, match="'other', which this checkpoint does not need"):
        dcsurgery.verify(moved, towers={"gone": str(tower), "other": str(tower)})


def test_ask_and_eval_take_towers(model: Path, tower: Path, data: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    save_picture(photo, 40, 30)
    towers = {"gone": str(tower)}
    answer = dcsurgery.ask(model, "What?", [photo], towers=towers, max_new_tokens=2)
    assert answer.image_tokens == 16
    other = write_tiny_llava(tmp_path / "other")
    settings = dcsurgery.EvalSettings(limit=2, max_new_tokens=2, max_bad=1)
    report = dcsurgery.evaluate(
        [model, other], data, tmp_path / "scores", settings=settings, towers=towers
    )
    assert report.rows == 2
    with pytest.raises(RequestError, match="'elsewhere', which no model here does"):
        dcsurgery.evaluate(
            [model, other], data, tmp_path / "no", settings=settings, towers={"elsewhere": "x"}
        )


def test_finetune_takes_towers(moved: Path, tower: Path, data: Path, tmp_path: Path) -> None:
    settings = dcsurgery.TrainingSettings(train="projector", batch_size=4, max_steps=1)
    towers = {"gone": str(tower)}
    done = dcsurgery.finetune(moved, data, tmp_path / "out", settings=settings, towers=towers)
    assert done.record.steps == 1
    assert dcsurgery.verify(tmp_path / "out", towers=towers).passed


def test_finetune_converts_an_original_on_the_way(
    original: Path, tower: Path, data: Path, tmp_path: Path
) -> None:
    settings = dcsurgery.TrainingSettings(train="connector", batch_size=4, max_steps=1)
    dcsurgery.finetune(
        original, data, tmp_path / "out", settings=settings, connector="dci",
        towers={"gone": str(tower)}, template="chatml_direct",
    )  # fmt: skip
    plan = dcsurgery.read_plan(tmp_path / "out")
    assert plan.base.template is not None and plan.base.template.name == "chatml_direct"
    assert dcsurgery.verify(tmp_path / "out").passed


def test_the_template_of_a_question_is_the_users(
    original: Path, tower: Path, data: Path, tmp_path: Path
) -> None:
    towers = {"gone": str(tower)}
    counts = {
        name: dcsurgery.ask(
            original, "What?", [], towers=towers, template=name, max_new_tokens=1
        ).prompt_tokens
        for name in ("v1", "chatml_direct")
    }
    # One token a letter here: v1's default system is the longer one.
    assert counts["v1"] > counts["chatml_direct"] > 0
    settings = dcsurgery.EvalSettings(limit=1, max_new_tokens=1, max_bad=1)
    for name in counts:
        report = dcsurgery.evaluate(
            [original], data, tmp_path / name, settings=settings, towers=towers, template=name
        )
        assert report.rows == 1


def test_the_command_line_takes_both(
    original: Path, moved: Path, tower: Path, data: Path, tmp_path: Path
) -> None:
    """Every command that opens an original, in words."""
    photo = tmp_path / "photo.png"
    save_picture(photo, 40, 30)
    place = ["--tower", f"gone={tower}"]
    both = [*place, "--template", "mpt"]
    rows = ["--data", str(data), "-o"]
    few = ["--batch-size", "4", "--max-steps", "1"]
    for command in (
        ["inspect", original, *both],
        ["convert", original, "-o", tmp_path / "c", *both, "--dry-run"],
        ["convert", original, "-o", tmp_path / "c", "--form", "delta", *both],
        ["verify", moved, *place],
        ["ask", original, photo, "What?", "--max-new-tokens", "1", *both],
        ["ask", moved, photo, "What?", "--against", original, "--max-new-tokens", "1", *both],
        ["eval", moved, original, *rows, tmp_path / "e", "--limit", "1", *both],
        ["finetune", moved, *rows, tmp_path / "f", *few, *place],
        ["finetune", original, "--connector", "dci", *rows, tmp_path / "g", *few, *both],
    ):
        result = CliRunner().invoke(app, list(map(str, command)))
        assert result.exit_code == 0, (command, result.output, result.exception)
    plan = json.loads((tmp_path / "g" / "dense_connector" / "plan.json").read_text())
    assert plan["base"]["template"] == {"name": "mpt", "text": None}


def test_a_template_for_a_converted_model_is_refused(
    moved: Path, tower: Path, data: Path, tmp_path: Path
) -> None:
    hints: dict[str, Any] = {"towers": {"gone": str(tower)}, "template": "v1"}
    calls = (
        lambda: dcsurgery.ask(moved, "What?", **hints),
        lambda: dcsurgery.evaluate([moved], data, tmp_path / "e", **hints),
        lambda: dcsurgery.finetune(moved, data, tmp_path / "f", **hints),
    )
    for call in calls:
        with pytest.raises(RequestError, match="--template is for models in an original format"):
            call()


def test_two_towers_may_move_apart(tmp_path: Path) -> None:
    """One is found where the plan says, the other where the user says."""
    towers = write_towers(tmp_path / "towers", mini_gemini_config())
    base = write_original_mini_gemini(tmp_path / "base", inside=False)
    places = {name: str(towers / name) for name in (CLIP_FOLDER, AUX_FOLDER)}
    dcsurgery.convert(base, tmp_path / "out", towers=places)
    (towers / AUX_FOLDER).rename(tmp_path / "new")
    assert dcsurgery.verify(tmp_path / "out", towers={AUX_FOLDER: str(tmp_path / "new")}).passed


def test_mining_is_trained_with_the_projector(data: Path, tmp_path: Path) -> None:
    towers = write_towers(tmp_path / "towers", mini_gemini_config())
    base = write_original_mini_gemini(tmp_path / "base", towers=towers)
    dcsurgery.convert(base, tmp_path / "delta")
    settings = dcsurgery.TrainingSettings(
        train="projector", batch_size=4, max_steps=2, projector_lr=1e-2, average=0.0
    )
    done = dcsurgery.finetune(tmp_path / "delta", data, tmp_path / "out", settings=settings)
    mining = {
        f"model.patch_info_mining.{part}.{layer}.{kind}"
        for part in ("query", "key", "value")
        for layer in ("norm", "proj")
        for kind in ("weight", "bias")
    }
    assert mining <= set(done.record.trained)
    stored = load_file(tmp_path / "out" / DELTA_FILE)
    before = dcsurgery.load(base).state_dict()
    moved = {name for name in mining if not torch.equal(stored[name], before[name])}
    # A constant added to every key changes no softmax.
    assert moved >= mining - {"model.patch_info_mining.key.proj.bias"}
    assert dcsurgery.verify(tmp_path / "out").passed
    after = dcsurgery.load(tmp_path / "out").state_dict()
    assert all(torch.equal(after[name], stored[name]) for name in mining)
    connector = dcsurgery.TrainingSettings(train="connector", batch_size=4, max_steps=1)
    done = dcsurgery.finetune(tmp_path / "delta", data, tmp_path / "own", settings=connector)
    assert not mining & set(done.record.trained)
