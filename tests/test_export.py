"""export: a trained connector as a checkpoint that plain transformers loads."""

from __future__ import annotations

import copy
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import dcsurgery
from dcsurgery.cli.main import app
from dcsurgery.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    DcSurgeryError,
    MalformedCheckpointError,
    PlanError,
    RequestError,
)
from dcsurgery.surgery.convert import convert_checkpoint
from dcsurgery.surgery.export import export_checkpoint
from dcsurgery.surgery.plan_file import DELTA_FILE, read_plan
from dcsurgery.tiny import write_tiny_llava
from dcsurgery.tiny.original_llava import OriginalSizes, write_original_llava, write_tower
from dcsurgery.verification import verify_checkpoint
from tests.architectures.cases import load
from tests.closeness import assert_near
from tests.surgery import digests
from tests.tiny.qwen2_vl import write_tiny_qwen2_vl
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
    branch = logits(dcsurgery.load(mixed))
    assert_near(logits(load(tmp_path / "OUT")), branch)
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
    branch = logits(dcsurgery.load(tmp_path / "delta-2"))
    fold = logits(load(tmp_path / "stock-2"))
    assert_near(fold, branch)
    # A stock form that was trained is what the trained delta exports to.
    export_checkpoint(tmp_path / "delta-2", tmp_path / "again")
    assert digests(tmp_path / "again") == digests(tmp_path / "stock-2")


def test_an_adapter_is_loaded_as_it_was_trained(adapted: tuple[Any, Path]) -> None:
    model, folder = adapted
    found = dcsurgery.load(folder)
    assert type(found).__name__ == "LlavaForConditionalGeneration"
    assert_near(logits(found), logits(model), 1e-6)
    with model.disable_adapter():
        assert (logits(found) - logits(model)).abs().max() > 0.05


def test_merging_is_what_peft_merges(
    adapted: tuple[Any, Path], tiny_clip: Path, tmp_path: Path
) -> None:
    model, folder = adapted
    done = export_checkpoint(folder, tmp_path / "OUT")
    plain = load(tmp_path / "OUT")
    assert_near(logits(plain), logits(model))
    merged = copy.deepcopy(model).merge_and_unload().state_dict()
    base, found = load(tiny_clip).state_dict(), plain.state_dict()
    changed = {n for n in base if "language_model" in n and not torch.equal(base[n], found[n])}
    assert len(changed) == 6 and {n.rsplit(".", 2)[1] for n in changed} == {
        "q_proj",
        "v_proj",
        "down_proj",
    }
    for name in changed:
        assert_near(found[name], merged[name], 1e-6)
    assert done.plan.adapter is not None and done.plan.adapter.merged
    assert verify_checkpoint(tmp_path / "OUT", logits=True).passed


def test_an_adapter_can_be_kept_beside_the_weights(
    adapted: tuple[Any, Path], tmp_path: Path
) -> None:
    model, folder = adapted
    done = export_checkpoint(folder, tmp_path / "OUT", keep_lora=True)
    assert done.plan.adapter is not None and not done.plan.adapter.merged
    plain = load(tmp_path / "OUT")
    with model.disable_adapter():
        assert_near(logits(plain), logits(model))
    # As the README beside it says, with transformers and peft alone.
    plain.load_adapter(str(tmp_path / "OUT" / "dense_connector" / "lora"))
    assert_near(logits(plain), logits(model))
    loaded = dcsurgery.load(tmp_path / "OUT")
    assert torch.equal(logits(loaded), logits(plain))
    assert verify_checkpoint(tmp_path / "OUT", logits=True).passed
    # And merged after all, from the stock form.
    export_checkpoint(tmp_path / "OUT", tmp_path / "merged")
    export_checkpoint(folder, tmp_path / "at-once")
    assert digests(tmp_path / "merged") == digests(tmp_path / "at-once")


def test_the_command_says_what_was_done(adapted: tuple[Any, Path], tmp_path: Path) -> None:
    _, folder = adapted
    out = tmp_path / "OUT"
    run = partial(CliRunner().invoke, app, prog_name="dcsurgery")
    result = run(["export", str(folder), "-o", str(out), "--keep-lora"])
    assert result.exit_code == 0, result.stderr
    text = " ".join(result.stdout.split())
    for fact in (
        "stock form",
        "lora: 300 steps, 5 tensors, on rows.json",
        f'model.load_adapter("{out}/dense_connector/lora")',
        "model.safetensors rewrite",
        "transformers >= 4.49.0",
    ):
        assert fact in text
    assert result.stderr == f"\nnext:\n  dcsurgery verify {out}\n"
    result = run(["export", str(folder), "-o", str(tmp_path / "merged"), "--json"])
    values = json.loads(result.stdout)
    assert values["plan"]["adapter"]["merged"] and values["plan"]["form"] == "stock"
    names = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert names >= {item["file"] for item in values["transfers"]}
    assert result.stderr == ""


def refused(kind: type[DcSurgeryError], said: str, *given: Any, **options: Any) -> None:
    """Exporting raises this error with a hint and leaves nothing."""
    with pytest.raises(kind, match=said) as caught:
        export_checkpoint(*given, **options)
    assert len(caught.value.hint) > 10
    assert not given[1].exists() and not given[1].with_name("OUT.partial").exists()


def test_what_cannot_be_exported_is_said_first(
    mixed: Path, adapted: tuple[Any, Path], tiny_clip: Path, tmp_path: Path
) -> None:
    out = tmp_path / "OUT"
    refused(RequestError, "form 'gguf' does not exist", mixed, out, form="gguf")
    refused(CheckpointNotFoundError, "plan.json", tiny_clip, out)
    refused(CheckpointNotFoundError, "is needed and was not", mixed, out, base=tmp_path / "gone")
    refused(MalformedCheckpointError, "is not the base", mixed, out, base=tiny_clip)
    base = write_tiny_qwen2_vl(tmp_path / "base")
    convert_checkpoint(base, tmp_path / "delta")
    refused(PlanError, "cannot name several hidden states", tmp_path / "delta", out)
    convert_checkpoint(tiny_clip, tmp_path / "normed", connector="sci", norm=True)
    refused(PlanError, "cannot be told of a norm", tmp_path / "normed", out)
    _, folder = adapted
    refused(RequestError, "contain each other", folder, folder / "OUT")
    shutil.copytree(folder, tmp_path / "torn")
    (tmp_path / "torn" / "dense_connector" / "lora" / "adapter_model.safetensors").unlink()
    refused(CheckpointError, "adapter_model.safetensors", tmp_path / "torn", out)


@pytest.mark.filterwarnings("ignore::peft.utils.warning.PeftWarning")
def test_an_adapter_that_is_more_than_a_product_is_kept_or_refused(
    tiny_clip: Path, tmp_path: Path
) -> None:
    convert_checkpoint(tiny_clip, tmp_path / "zero")
    out, work = tmp_path / "more", tmp_path / "peft"
    model = train_lora(tmp_path / "zero", out, work, lora_bias=True)
    plan = read_plan(out)
    assert plan.form == "stock" and plan.adapter is not None and not plan.adapter.merged
    assert any("lora_B.bias" in note for note in plan.notes)
    refused(PlanError, "cannot be merged: it has .*lora_B.bias", out, tmp_path / "OUT")
    assert_near(logits(dcsurgery.load(out)), logits(model))
    assert verify_checkpoint(out).passed


def test_an_adapter_that_transformers_loads_in_part_is_refused(
    tiny_clip: Path, tmp_path: Path
) -> None:
    """transformers loses DoRA's magnitudes: the model would compute something else."""
    convert_checkpoint(tiny_clip, tmp_path / "zero", form="delta")
    train_lora(tmp_path / "zero", tmp_path / "dora", tmp_path / "peft", use_dora=True)
    with pytest.raises(MalformedCheckpointError, match="cannot load all of") as caught:
        dcsurgery.load(tmp_path / "dora")
    assert "PeftModel" in caught.value.hint


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_merged_matrix_is_rounded_once(dtype: str, tmp_path: Path) -> None:
    base = write_tiny_llava(tmp_path / "base", "clip", dtype=dtype)
    convert_checkpoint(base, tmp_path / "zero")
    options = {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}
    model = train_lora(tmp_path / "zero", tmp_path / "OUT", tmp_path / "peft", **options)
    found = load_file(tmp_path / "OUT" / "model.safetensors")
    checked = 0
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            value = found[
                name.replace("base_model.model.model.", "").replace(
                    "language_model.", "language_model.model."
                )
                + ".weight"
            ]
            down, up = (module.lora_A["default"].weight, module.lora_B["default"].weight)
            exact = module.base_layer.weight.double()
            exact += module.scaling["default"] * up.double() @ down.double()
            nearest = exact.to(value.dtype).float()
            assert (value.float() == nearest).float().mean() > 0.99
            assert torch.allclose(value.float(), nearest, rtol=2 * torch.finfo(value.dtype).eps)
            checked += 1
    assert checked == 6
    assert verify_checkpoint(tmp_path / "OUT").passed


def test_the_reference_form_holds_what_was_trained(tmp_path: Path) -> None:
    sizes = OriginalSizes(words=64)
    named = write_tower(tmp_path / "tower", sizes)
    base = write_original_llava(tmp_path / "base", sizes, str(named), inside=False)
    convert_checkpoint(base, tmp_path / "zero", form="delta")
    model = train_lora(tmp_path / "zero", tmp_path / "trained", tmp_path / "peft")
    refused(
        RequestError,
        "no place for an adapter",
        tmp_path / "trained",
        tmp_path / "OUT",
        form="reference",
        keep_lora=True,
    )
    done = export_checkpoint(tmp_path / "trained", tmp_path / "OUT", form="reference")
    assert done.plan.form == "reference" and "own code" in done.plan.loader
    # Read back as what the reference saves: its widened matrix taken apart, LoRA merged.
    found = dcsurgery.load(tmp_path / "OUT").state_dict()
    wanted = model.merge_and_unload().state_dict()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert_near(found[name], value, 1e-6)
    export_checkpoint(tmp_path / "trained", tmp_path / "stock")
    assert verify_checkpoint(tmp_path / "stock").passed
