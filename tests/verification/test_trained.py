"""A trained output: what a training may have changed is proved, and each lie about it is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dcsurgery.errors import MalformedCheckpointError
from dcsurgery.loading.load import load_for_training, load_model
from dcsurgery.surgery.convert import convert_checkpoint
from dcsurgery.surgery.export import export_checkpoint
from dcsurgery.surgery.plan_file import DELTA_FILE, PLAN_FILE, read_plan
from dcsurgery.training.trained_files import write_trained
from dcsurgery.verification import verify_checkpoint
from tests.surgery import digest
from tests.training.trained import a_record, move, of_stage_one, with_lora
from tests.verification.checks import (
    BASE,
    BIAS,
    CHANGED,
    DELTA,
    NORM,
    OTHERS,
    PROJECTOR,
    failed,
    structure,
)
from tests.verification.damage import (
    Damage,
    copy_of,
    edit_delta,
    edit_json,
    edit_plan,
    edit_tensors,
    flip,
    flip_tensor,
    remove,
)

TRAINED, ADAPTER = "only trained tensors differ", "LoRA adapter is as planned"
LORA = "dense_connector/lora/adapter_model.safetensors"
ADAPTED = "language_model.model.layers.0.self_attn.q_proj.weight"
MLP = "language_model.model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def folders(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same training as a delta and as a stock form: projector, one matrix of the language
    model, LoRA. Do not write into them.
    """
    work = tmp_path_factory.mktemp("trained")
    convert_checkpoint(tiny_clip, work / "zero", form="delta")
    model, plan = load_for_training(work / "zero")
    names = [*of_stage_one(model), "model.language_model.layers.1.mlp.up_proj.weight"]
    trained = move(model, names)
    with_lora(model, work / "peft")
    write_trained(
        work / "delta",
        plan=plan,
        model=model,
        trained=[n.replace("base_layer.", "") for n in trained],
        record=a_record(train="lora"),
        adapter=work / "peft",
        source=work / "zero",
    )
    export_checkpoint(work / "delta", work / "stock")
    return {"delta": work / "delta", "stock": work / "stock"}


@pytest.mark.parametrize("form", ["delta", "stock"])
def test_a_trained_output_verifies_and_says_what_was_trained(
    form: str, folders: dict[str, Path]
) -> None:
    report = verify_checkpoint(folders[form], logits=True)
    assert failed(report) == set()
    names = {check.name for check in report.checks}
    assert {TRAINED, ADAPTER, "logits: branch is finite"} <= names
    assert "logits: branch against base" not in names
    assert ("features: fold against branch" in names) == (form == "stock")
    measured = {check.name: check.measured for check in report.checks}
    assert measured[TRAINED] == "lora, 300 steps: 5 of 96 tensors"
    where = "merged into" if form == "stock" else "beside"
    assert measured[ADAPTER] == f"6 matrices adapted, {where} the weights"


def rewrite(name: str) -> Damage:
    """Change a stock form's tensor and the hash the plan has of it: only the fold can tell."""

    def damage(folder: Path) -> None:
        def edit(tensors: dict[str, Tensor]) -> None:
            tensors[name][0, 0] += 0.01

        edit_tensors(folder / "model.safetensors", edit)
        value = digest(load_file(folder / "model.safetensors")[name])
        plan = json.loads((folder / PLAN_FILE).read_text())
        for record in plan["changed"]:
            if record["name"] == name:
                record["sha256"] = value
        (folder / PLAN_FILE).write_text(json.dumps(plan))

    return damage


def forget(name: str) -> Damage:
    """Take a name out of what the training says it trained."""
    return edit_plan(lambda v: v["training"][0]["trained"].remove(name))


def swap_targets(folder: Path) -> None:
    """Let two adapted matrices of one shape change places in the plan."""
    plan = json.loads((folder / PLAN_FILE).read_text())
    targets = plan["adapter"]["targets"]
    first, second = (f"model.language_model.layers.{i}.self_attn.q_proj" for i in (0, 1))
    targets[first], targets[second] = targets[second], targets[first]
    (folder / PLAN_FILE).write_text(json.dumps(plan))


ANY_DAMAGE: dict[str, tuple[Damage, str]] = {
    "a byte of the delta": (lambda f: flip(f / DELTA_FILE, -1), DELTA),
    "a tensor more in the delta": (edit_delta(lambda t: t.update(x=torch.ones(2))), DELTA),
    "a trained tensor nobody names": (forget(BIAS), TRAINED),
    "a trained tensor that is not there": (
        edit_plan(lambda v: v["training"][0]["trained"].append(NORM)), BASE),
    "another base's tensor": (
        edit_plan(lambda v: v["delta"][1].update(base_sha256="0" * 64)), TRAINED),
    "a byte of the adapter": (lambda f: flip(f / LORA, -1), ADAPTER),
    "the adapter's scale": (
        edit_json("dense_connector/lora/adapter_config.json", lambda v: v.update(lora_alpha=99)),
        ADAPTER),
    "the adapter removed": (remove(LORA), ADAPTER),
}  # fmt: skip
STOCK_DAMAGE: dict[str, tuple[Damage, str]] = {
    "a byte of an untouched tensor": (flip_tensor(NORM), OTHERS),
    "a byte of a trained tensor": (flip_tensor(MLP), CHANGED),
    "a byte of an adapted tensor": (flip_tensor(ADAPTED), CHANGED),
    "an adapted tensor and its hash": (rewrite(ADAPTED), CHANGED),
    "a folded tensor and its hash": (rewrite(PROJECTOR), CHANGED),
    "the plan's adapter": (edit_plan(lambda v: v.update(adapter=None)), BASE),
    "not merged": (edit_plan(lambda v: v["adapter"].update(merged=False)), BASE),
    "another target": (
        edit_plan(lambda v: v["adapter"]["targets"].popitem()), BASE),
    "swapped targets": (swap_targets, CHANGED),
    "a shape in the plan": (
        edit_plan(lambda v: v["changed"][-1].update(shape=[1, 2])), CHANGED),
}  # fmt: skip
DELTA_DAMAGE: dict[str, tuple[Damage, str]] = {
    "the plan's adapter": (edit_plan(lambda v: v.update(adapter=None)), ADAPTER),
    "a target more": (
        edit_plan(lambda v: v["adapter"]["targets"].update({"no.such": NORM})), ADAPTER),
    "a trained tensor's hash": (edit_plan(lambda v: v["delta"][1].update(sha256="0")), DELTA),
}  # fmt: skip
CASES = [
    *((form, name, *item) for name, item in ANY_DAMAGE.items() for form in ("delta", "stock")),
    *(("stock", name, *item) for name, item in STOCK_DAMAGE.items()),
    *(("delta", name, *item) for name, item in DELTA_DAMAGE.items()),
]


@pytest.mark.parametrize(
    ("form", "name", "damage", "check"), CASES, ids=[f"{case[0]}, {case[1]}" for case in CASES]
)
def test_damage_fails_its_check_alone(
    form: str, name: str, damage: Damage, check: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = copy_of(folders[form], tmp_path / "OUT")
    damage(folder)
    assert structure(folder) == {check}


def test_a_plan_cannot_send_a_reader_elsewhere(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copy_of(folders["stock"], tmp_path / "OUT")
    shutil.copy(folder / DELTA_FILE, tmp_path / "stranger.safetensors")
    edit_plan(lambda v: v["delta"][1].update(file="../stranger.safetensors"))(folder)
    for read in (read_plan, verify_checkpoint, load_model, load_for_training):
        with pytest.raises(MalformedCheckpointError, match="cannot be in"):
            read(folder)


def test_a_stock_form_keeps_a_trained_matrix_once(folders: dict[str, Path]) -> None:
    held = load_file(folders["stock"] / DELTA_FILE)
    assert MLP not in held and PROJECTOR in held
    assert MLP in load_file(folders["delta"] / DELTA_FILE)
