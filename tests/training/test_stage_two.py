"""Stage 2: the language model and the tower are trained too, under the checkpoint's own names."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import dcsurgery
from dcsurgery.architectures import named
from dcsurgery.checkpoint.contents import open_checkpoint
from dcsurgery.errors import TrainingError
from dcsurgery.loading.load import load_for_training
from dcsurgery.surgery.convert import convert_checkpoint
from dcsurgery.surgery.export import export_checkpoint
from dcsurgery.surgery.plan_file import DELTA_FILE, read_plan
from dcsurgery.training.trained_files import checkpoint_names, write_trained
from tests.architectures.cases import load
from tests.surgery import digests
from tests.training.trained import a_record, move

FAMILIES = ("llava", "llava_next", "paligemma", "qwen2_vl", "mllama", "mini_gemini")


def tiny(family: str, folder: Path, **options: Any) -> Path:
    """Write a family's tiny checkpoint."""
    home = "dcsurgery" if find_spec(f"dcsurgery.tiny.{family}") else "tests"
    module = importlib.import_module(f"{home}.tiny.{family}")
    base: Path = getattr(module, f"write_tiny_{family}")(folder, **options)
    return base


def same_parameters(found: Any, wanted: Any) -> None:
    """Every parameter and buffer of two models is equal."""
    mine, theirs = found.state_dict(), wanted.state_dict()
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(mine[name], value), name


@pytest.mark.parametrize(
    ("family", "options"),
    [
        *((family, {}) for family in FAMILIES),
        ("llava", {"tower": "dinov2"}),
        ("llava", {"tower": "dinov3_vit"}),
    ],
    ids=str,
)
def test_everything_that_is_trained_comes_back(
    family: str, options: dict[str, str], tmp_path: Path
) -> None:
    base = tiny(family, tmp_path / "base", **options)
    convert_checkpoint(base, tmp_path / "zero", form="delta")
    model, plan = load_for_training(tmp_path / "zero")
    names = [name for name, _ in model.named_parameters()]
    checkpoint = open_checkpoint(base)
    found = checkpoint_names(model, checkpoint, names)
    assert len(set(found.values())) == len(names)
    assert set(found.values()) <= checkpoint.tensors.keys() | {"dense_connector.weight"}
    trained = move(model, names)
    record = a_record(train="full")
    given = {"plan": plan, "model": model, "trained": trained, "record": record}
    done = write_trained(tmp_path / "OUT", source=tmp_path / "zero", **given)
    assert {item.name for item in done.plan.delta} >= set(found.values())
    same_parameters(dcsurgery.load(tmp_path / "OUT"), model)
    report = dcsurgery.verify(tmp_path / "OUT")
    assert report.passed, report.checks
    if "stock" not in named(plan.architecture).forms:
        return
    stock = export_checkpoint(tmp_path / "OUT", tmp_path / "stock").plan
    # The weight files hold what was trained; it is not stored a second time.
    held = load_file(tmp_path / "stock" / DELTA_FILE)
    assert held.keys() == {"dense_connector.weight", *plan.anatomy.projector.tensors}
    plain = load(tmp_path / "stock").state_dict()
    sites = {f"{site.module}.weight" for site in plan.anatomy.projector.sites}
    for name, value in model.state_dict().items():
        if not name.startswith("dense_connector") and not name.endswith(tuple(sites)):
            assert torch.equal(plain[name], value), name
    assert dcsurgery.verify(tmp_path / "stock").passed
    again, after = load_for_training(tmp_path / "stock")
    same_parameters(again, model)
    assert after == read_plan(tmp_path / "stock") == stock


def test_a_tied_matrix_that_is_stored_twice_is_replaced_twice(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    base = tiny("paligemma", tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    words = next(name for name in tensors if name.endswith("embed_tokens.weight"))
    head = words.replace("model.embed_tokens", "lm_head")
    tensors[head] = tensors[words].clone()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    convert_checkpoint(base, tmp_path / "zero", form="delta")
    model, plan = load_for_training(tmp_path / "zero")
    name = next(n for n, _ in model.named_parameters() if n.endswith("embed_tokens.weight"))
    done = write_trained(
        tmp_path / "OUT", plan=plan, model=model, trained=move(model, [name]), record=a_record()
    )
    held = load_file(tmp_path / "OUT" / DELTA_FILE)
    assert {words, head} <= held.keys() and torch.equal(held[words], held[head])
    assert done.plan.training[0].trained == sorted([words, head])
    same_parameters(dcsurgery.load(tmp_path / "OUT"), model)


def test_what_transformers_splits_is_refused_before_it_is_trained(tmp_path: Path) -> None:
    base = tiny("qianfan_ocr", tmp_path / "base")
    convert_checkpoint(base, tmp_path / "zero", form="delta")
    model, _ = load_for_training(tmp_path / "zero")
    checkpoint = open_checkpoint(base)
    names = [name for name, _ in model.named_parameters()]
    split = [name for name in names if ".attention.q_proj." in name]
    assert split
    with pytest.raises(TrainingError, match="is not one tensor of") as caught:
        checkpoint_names(model, checkpoint, names)
    assert "freeze it" in caught.value.hint
    language = [name for name in names if "language_model" in name]
    assert len(checkpoint_names(model, checkpoint, language)) == len(language)


def test_tensors_that_were_trained_are_all_that_differ(tiny_siglip: Path, tmp_path: Path) -> None:
    convert_checkpoint(tiny_siglip, tmp_path / "zero")
    model, plan = load_for_training(tmp_path / "zero")
    names = [n for n, _ in model.named_parameters() if "layers.1.mlp" in n]
    record = a_record(train="full")
    write_trained(
        tmp_path / "OUT",
        plan=plan,
        model=model,
        trained=move(model, names),
        record=record,
        source=tmp_path / "zero",
    )
    before, after = digests(tiny_siglip), digests(tmp_path / "OUT")
    moved = {name for name in before if before[name] != after[name]}
    first = "multi_modal_projector.linear_1.weight"
    assert moved - {first} == {name for name in before if "layers.1.mlp" in name}
    assert dcsurgery.verify(tmp_path / "OUT", logits=True).passed
