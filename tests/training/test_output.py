"""A trained connector, written down: what is in OUT, what it loads as, what is refused."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import dcsurgery
from dcsurgery.checkpoint.checks import WRITTEN
from dcsurgery.checkpoint.contents import open_checkpoint
from dcsurgery.connectors.attach import attach
from dcsurgery.connectors.request import Connector
from dcsurgery.errors import (
    CheckpointNotFoundError,
    OutputExistsError,
    RequestError,
    TrainingError,
)
from dcsurgery.loading.load import load_for_training
from dcsurgery.surgery.convert import convert_checkpoint
from dcsurgery.surgery.plan import make_plan
from dcsurgery.surgery.plan_file import DELTA_FILE, SurgeryPlan, read_plan
from dcsurgery.tiny import write_tiny_llava
from dcsurgery.training.trained_files import checkpoint_names, write_trained
from tests.architectures.cases import load
from tests.surgery import digest, digests
from tests.training.trained import MATRIX, a_record, logits, move, of_stage_one, stage_one

FIRST = "multi_modal_projector.linear_1.weight"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("output")


@pytest.fixture(scope="module")
def converted(tiny_siglip: Path, work: Path) -> Path:
    """A delta of a learned mix, in three shards. Do not write into it."""
    convert_checkpoint(tiny_siglip, work / "mix", form="delta", connector="mix")
    return work / "mix"


@pytest.fixture(scope="module")
def once(converted: Path, work: Path) -> tuple[Any, Path]:
    """A trained model and the OUT that was written of it. Leave both as they are."""
    model, _ = stage_one(converted, work / "once")
    return model, work / "once"


def test_what_was_trained_is_what_is_loaded(once: tuple[Any, Path], tiny_siglip: Path) -> None:
    model, out = once
    found = dcsurgery.load(out)
    assert torch.equal(logits(found), logits(model))
    assert (logits(found) - logits(load(tiny_siglip))).abs().max() > 0.05
    assert torch.equal(found.dense_connector.mix, model.dense_connector.mix)


def test_the_delta_names_every_trained_tensor_as_the_base_does(
    once: tuple[Any, Path], tiny_siglip: Path
) -> None:
    _, out = once
    plan, base, held = read_plan(out), digests(tiny_siglip), load_file(out / DELTA_FILE)
    own = {MATRIX, "dense_connector.mix"}
    moved = {name for name in base if name.startswith("multi_modal_projector.")}
    assert held.keys() == own | moved and FIRST in moved
    assert [item.trained for item in plan.training] == [sorted(own | moved)]
    for record in plan.delta:
        assert record.file == DELTA_FILE and record.sha256 == digest(held[record.name])
        assert record.base_sha256 == base.get(record.name) != record.sha256
        assert record.base_shape == (None if record.name in own else record.shape)
    assert {path.name for path in out.iterdir()} == {"README.md", "dense_connector", WRITTEN}
    told = "Trained (projector): 300 steps on `rows.json`, 6 tensors.\n"
    assert told in (out / "README.md").read_text()


def test_training_goes_on_and_leaves_alone_what_it_does_not_train(
    once: tuple[Any, Path], tmp_path: Path
) -> None:
    _, first = once
    # In bf16 the projector's values are rounded in memory: they must not reach the disk so.
    model, plan = load_for_training(first, dtype=torch.bfloat16)
    assert len(plan.training) == 1
    trained = move(model, [MATRIX])
    done = write_trained(
        tmp_path / "twice",
        plan=plan,
        model=model,
        trained=trained,
        record=a_record(train="connector"),
        source=first,
    )
    before, after = load_file(first / DELTA_FILE), load_file(tmp_path / "twice" / DELTA_FILE)
    assert {name for name in after if not torch.equal(before[name], after[name])} == {MATRIX}
    assert [item.train for item in done.plan.training] == ["projector", "connector"]
    assert done.plan.training[1].trained == [MATRIX]
    assert read_plan(tmp_path / "twice") == done.plan
    assert [item.name for item in done.plan.delta] == [item.name for item in plan.delta]


def test_a_model_that_was_attached_in_memory_can_be_written(
    tiny_clip: Path, tmp_path: Path
) -> None:
    plan = make_plan(open_checkpoint(tiny_clip), Connector(form="delta"))
    model = load(tiny_clip)
    attach(model, plan.anatomy, plan.layout)
    trained = move(model, [MATRIX])
    done = write_trained(
        tmp_path / "OUT", plan=plan, model=model, trained=trained, record=a_record()
    )
    assert all(done.plan.relies_on.values())
    assert torch.equal(logits(dcsurgery.load(tmp_path / "OUT")), logits(model))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_values_are_rounded_once_to_the_dtype_of_the_base(dtype: str, tmp_path: Path) -> None:
    base = write_tiny_llava(tmp_path / "base", "clip", dtype=dtype)
    convert_checkpoint(base, tmp_path / "zero", form="delta")
    model, plan = load_for_training(tmp_path / "zero", dtype=torch.float32)
    trained = move(model, of_stage_one(model))
    given = {"plan": plan, "model": model, "trained": trained, "record": a_record()}
    done = write_trained(tmp_path / "OUT", **given)
    held, parameters = load_file(tmp_path / "OUT" / DELTA_FILE), dict(model.named_parameters())
    for name in trained:
        value = held[name.removeprefix("model.")]
        assert value.dtype == getattr(torch, dtype)
        assert torch.equal(value, parameters[name].to(value.dtype))
    assert any("trained in float32, rounded to" in note for note in done.plan.notes)
    found = dcsurgery.load(tmp_path / "OUT")
    assert found.dtype == getattr(torch, dtype) and not logits(found).isnan().any()


def test_names_of_the_checkpoint(tiny_siglip: Path, once: tuple[Any, Path]) -> None:
    model, _ = once
    checkpoint = open_checkpoint(tiny_siglip)
    names = [name for name, _ in model.named_parameters()]
    found = checkpoint_names(model, checkpoint, names)
    assert list(found) == names
    assert found[MATRIX] == MATRIX
    assert found["model." + FIRST] == FIRST
    assert found["lm_head.weight"] == "language_model.lm_head.weight"
    assert set(found.values()) - checkpoint.tensors.keys() == {MATRIX, "dense_connector.mix"}
    # What peft makes of a name, around the model and around a module.
    wrapped = "base_model.model.model.multi_modal_projector.linear_1.base_layer.weight"
    assert checkpoint_names(model, checkpoint, [wrapped]) == {wrapped: FIRST}
    with pytest.raises(TrainingError, match="no parameter nonsense"):
        checkpoint_names(model, checkpoint, ["nonsense"])


def test_values_that_are_no_numbers_are_refused(converted: Path, tmp_path: Path) -> None:
    model, plan = load_for_training(converted)
    trained = move(model, [MATRIX])
    with torch.no_grad():
        model.dense_connector.weight[0, 0] = float("nan")
    with pytest.raises(TrainingError, match="weight has values that F32 cannot"):
        write_trained(tmp_path / "OUT", plan=plan, model=model, trained=trained, record=a_record())
    assert list(tmp_path.iterdir()) == []


def test_an_output_is_kept_unless_it_may_be_replaced(
    once: tuple[Any, Path], converted: Path, tmp_path: Path
) -> None:
    model, _ = once
    given = {"plan": read_plan(converted), "model": model, "trained": [MATRIX]}
    (tmp_path / "OUT").mkdir()
    (tmp_path / "OUT" / "mine").write_text("x")
    with pytest.raises(OutputExistsError):
        write_trained(tmp_path / "OUT", **given, record=a_record())
    assert (tmp_path / "OUT" / "mine").read_text() == "x"
    with pytest.raises(OutputExistsError, match="did not write: mine"):
        write_trained(tmp_path / "OUT", **given, record=a_record(), overwrite=True)
    (tmp_path / "OUT" / "mine").unlink()
    for _ in range(2):
        write_trained(tmp_path / "OUT", **given, record=a_record(), overwrite=True)
    with pytest.raises(RequestError, match="contain each other"):
        write_trained(converted / "OUT", **given, record=a_record(), source=converted)


def test_a_base_that_is_gone_is_named(converted: Path, tiny_siglip: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_siglip, base)
    convert_checkpoint(base, tmp_path / "stock")
    moved = base.rename(tmp_path / "moved")
    with pytest.raises(CheckpointNotFoundError) as caught:
        load_for_training(tmp_path / "stock")
    assert str(base) in caught.value.message and "base=FOLDER" in caught.value.hint
    model, plan = load_for_training(tmp_path / "stock", base=moved)
    assert plan.form == "stock" and hasattr(model, "dense_connector")
    with pytest.raises(CheckpointNotFoundError):
        load_for_training(tiny_siglip)


def test_plans_of_earlier_versions_load(converted: Path) -> None:
    values = copy.deepcopy(read_plan(converted).model_dump(mode="json"))
    del values["training"], values["adapter"]
    assert SurgeryPlan.model_validate(values) == read_plan(converted)
