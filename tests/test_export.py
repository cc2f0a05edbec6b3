"""export: a trained connector as a checkpoint that plain transformers loads."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import dcsurgery
from dcsurgery.convert import convert_checkpoint
from dcsurgery.export import export_checkpoint
from dcsurgery.records import DELTA_FILE, read_plan
from tests.architectures.cases import load
from tests.surgery import digests
from tests.training.trained import logits, stage_one, train_lora

FIRST = "multi_modal_projector.linear_1.weight"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def mixed(tiny_siglip: Path, work: Path) -> Path:
    """A trained delta of a learned mix, in three shards. Do not write into it."""
    convert_checkpoint(tiny_siglip, work / "zero", form="delta", connector="mix")
    stage_one(work / "zero", work / "mixed")
    return work / "mixed"


@pytest.fixture(scope="module")
def adapted(tiny_clip: Path, work: Path) -> tuple[Any, Path]:
    """A delta with a LoRA adapter, and peft's model of it. Leave both as they are."""
    convert_checkpoint(tiny_clip, work / "plain", form="delta")
    model = train_lora(work / "plain", work / "adapted", work / "peft")
    return model, work / "adapted"


def test_a_trained_delta_folds_into_what_plain_transformers_loads(
    mixed: Path, tiny_siglip: Path, tmp_path: Path
) -> None:
    done = export_checkpoint(mixed, tmp_path / "OUT")
    assert done.plan.form == "stock" and read_plan(tmp_path / "OUT") == done.plan
    branch = logits(dcsurgery.load_model(mixed))
    torch.testing.assert_close(logits(load(tmp_path / "OUT")), branch, atol=1e-4, rtol=0)
    assert (branch - logits(load(tiny_siglip))).abs().max() > 0.05
    before, after = digests(tiny_siglip), digests(tmp_path / "OUT")
    moved = {name for name in before if after[name] != before[name]}
    assert moved == {n for n in before if n.startswith("multi_modal_projector.")}
    assert moved == {record.name for record in done.plan.changed}
    assert (tmp_path / "OUT" / DELTA_FILE).read_bytes() == (mixed / DELTA_FILE).read_bytes()


def test_training_goes_on_from_either_form_to_the_same_tensors(mixed: Path, tmp_path: Path) -> None:
    export_checkpoint(mixed, tmp_path / "stock")
    for form, folder in (("delta", mixed), ("stock", tmp_path / "stock")):
        _, plan = stage_one(folder, tmp_path / f"{form}-2")
        assert plan.form == form and len(plan.training) == 2
    found = [load_file(tmp_path / f"{form}-2" / DELTA_FILE) for form in ("delta", "stock")]
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    branch = logits(dcsurgery.load_model(tmp_path / "delta-2"))
    fold = logits(load(tmp_path / "stock-2"))
    torch.testing.assert_close(fold, branch, atol=1e-4, rtol=0)
    # A stock form that was trained is what the trained delta exports to.
    export_checkpoint(tmp_path / "delta-2", tmp_path / "again")
    assert digests(tmp_path / "again") == digests(tmp_path / "stock-2")


def test_an_adapter_is_loaded_as_it_was_trained(adapted: tuple[Any, Path]) -> None:
    model, folder = adapted
    found = dcsurgery.load_model(folder)
    assert type(found).__name__ == "LlavaForConditionalGeneration"
    torch.testing.assert_close(logits(found), logits(model), atol=1e-6, rtol=0)
    with model.disable_adapter():
        assert (logits(found) - logits(model)).abs().max() > 0.05


def test_merging_is_what_peft_merges(
    adapted: tuple[Any, Path], tiny_clip: Path, tmp_path: Path
) -> None:
    model, folder = adapted
    done = export_checkpoint(folder, tmp_path / "OUT")
    plain = load(tmp_path / "OUT")
    torch.testing.assert_close(logits(plain), logits(model), atol=1e-4, rtol=0)
    merged = copy.deepcopy(model).merge_and_unload().state_dict()
    base, found = load(tiny_clip).state_dict(), plain.state_dict()
    changed = {n for n in base if "language_model" in n and not torch.equal(base[n], found[n])}
    assert len(changed) == 6 and {n.rsplit(".", 2)[1] for n in changed} == {
        "q_proj",
        "v_proj",
        "down_proj",
    }
    for name in changed:
        torch.testing.assert_close(found[name], merged[name], atol=1e-6, rtol=0)
    assert done.plan.adapter is not None and done.plan.adapter.merged
    assert dcsurgery.verify_checkpoint(tmp_path / "OUT", logits=True).passed


def test_an_adapter_can_be_kept_beside_the_weights(
    adapted: tuple[Any, Path], tmp_path: Path
) -> None:
    model, folder = adapted
    done = export_checkpoint(folder, tmp_path / "OUT", keep_lora=True)
    assert done.plan.adapter is not None and not done.plan.adapter.merged
    plain = load(tmp_path / "OUT")
    with model.disable_adapter():
        torch.testing.assert_close(logits(plain), logits(model), atol=1e-4, rtol=0)
    # As the README beside it says, with transformers and peft alone.
    plain.load_adapter(str(tmp_path / "OUT" / "dense_connector" / "lora"))
    torch.testing.assert_close(logits(plain), logits(model), atol=1e-4, rtol=0)
    loaded = dcsurgery.load_model(tmp_path / "OUT")
    assert torch.equal(logits(loaded), logits(plain))
    assert dcsurgery.verify_checkpoint(tmp_path / "OUT", logits=True).passed
    # And merged after all, from the stock form.
    export_checkpoint(tmp_path / "OUT", tmp_path / "merged")
    export_checkpoint(folder, tmp_path / "at-once")
    assert digests(tmp_path / "merged") == digests(tmp_path / "at-once")
