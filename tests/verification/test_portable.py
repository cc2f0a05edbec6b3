"""verify on portable folders: sound ones pass in another process, every damage fails one check."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import dcsurgery
from dcsurgery.surgery.portable import CODE_FILE
from tests.surgery import random_matrix, write_delta

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def portable(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained-like portable folder. Do not write into it."""
    work = tmp_path_factory.mktemp("portable")
    plan = dcsurgery.convert(tiny_clip, work / "zero", form="portable").plan
    write_delta(tiny_clip, work / "delta", random_matrix(plan))
    dcsurgery.export(work / "delta", work / "out", form="portable")
    return work / "out"


def matrix_of(folder: Path) -> tuple[dict[str, torch.Tensor], str]:
    tensors = load_file(folder / WEIGHTS)
    return tensors, next(n for n in tensors if n.endswith("multi_modal_projector.linear_1.weight"))


def change_value(folder: Path, column: int) -> None:
    tensors, name = matrix_of(folder)
    tensors[name][0, column] += 1
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def to_the_base(folder: Path) -> None:
    """What must never be: the matrix cut to the base's shape loads as the base."""
    tensors, name = matrix_of(folder)
    tensors[name] = tensors[name][:, : tensors[name].shape[1] // 3].contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def change_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["dense_connector"]["groups"][0].pop()
    (folder / "config.json").write_text(json.dumps(config))


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "another line in the code": (
        lambda f: (
            (f / CODE_FILE).write_text((f / CODE_FILE).read_text() + "\nimport os\n") and None
        ),
        "code file",
    ),
    "no code": (lambda f: (f / CODE_FILE).unlink(), "code file"),
    "a value of W": (lambda f: change_value(f, 0), "changed tensors are as planned"),
    "a value of D": (lambda f: change_value(f, -1), "changed tensors are as planned"),
    "the base's matrix": (to_the_base, "changed tensors are as planned"),
    "another group": (change_config, "config.json"),
    "a file beside": (lambda f: (f / "extra.py").write_text("x = 1\n") and None, "side files"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_every_damage_fails_its_check(portable: Path, tmp_path: Path, name: str) -> None:
    import shutil

    folder = shutil.copytree(portable, tmp_path / "out")
    damage, check = DAMAGES[name]
    damage(folder)
    report = dcsurgery.verify(folder)
    assert {item.name for item in report.checks if not item.passed} == {check}


@pytest.mark.slow
def test_a_sound_one_equals_the_branch_elsewhere(portable: Path) -> None:
    report = dcsurgery.verify(portable, logits=True)
    assert report.passed, report.checks
    names = {check.name for check in report.checks}
    assert "logits: plain transformers against branch" in names
    assert "the stock class refuses the folder" in names


def test_load_never_runs_the_folder_s_code(portable: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(portable, tmp_path / "out")
    (folder / CODE_FILE).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit\n")
    model = dcsurgery.load(folder, dtype=torch.float32)
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert model.dense_connector.weight.abs().max() > 0
    assert not (tmp_path / "ran").exists()


def test_other_forms_come_from_and_go_to_it(
    portable: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    dcsurgery.export(portable, tmp_path / "stock", form="stock")
    dcsurgery.export(tmp_path / "stock", tmp_path / "again", form="portable")
    first, second = load_file(portable / WEIGHTS), load_file(tmp_path / "again" / WEIGHTS)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("options", "why"),
    [({"connector": "sti"}, "image tokens"), ({"pool": 2}, "image tokens")],
)
def test_what_the_form_cannot_hold_is_refused(
    tiny_clip: Path, tmp_path: Path, options: dict[str, object], why: str
) -> None:
    with pytest.raises(dcsurgery.errors.PlanError, match=why):
        dcsurgery.convert(tiny_clip, tmp_path / "out", form="portable", **options)
    assert not (tmp_path / "out").exists()
