"""Processors that write another number of image tokens than the model makes.

Oracle: plain transformers, which loads the output and runs a picture and a question through it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

import dcsurgery
from dcsurgery.data.processor import load_processor
from dcsurgery.errors import RequestError
from dcsurgery.surgery.processor_fit import fit_processor
from dcsurgery.tiny.llava import write_tiny_llava
from dcsurgery.tiny.llava_next import write_tiny_llava_next
from dcsurgery.verification.agreement import NAME
from tests.architectures.cases import load
from tests.tiny.llava_onevision import write_tiny_llava_onevision
from tests.tiny.vipllava import write_tiny_vipllava
from tests.training.data import write_data
from tests.training.pictures import save_picture

pytestmark = pytest.mark.slow

PROCESSOR, IMAGES = "processor_config.json", "preprocessor_config.json"
WRITERS: dict[str, Callable[..., Path]] = {
    "llava": write_tiny_llava,
    "llava siglip": lambda folder: write_tiny_llava(folder, "siglip"),
    "llava_next": write_tiny_llava_next,
    "vipllava": write_tiny_vipllava,
    "llava_onevision": write_tiny_llava_onevision,
}


def edit(folder: Path, name: str, **changes: Any) -> None:
    """Change keys of a JSON file; None takes one out."""
    path = folder / name
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def lacking(*keys: str) -> Callable[[Path], None]:
    return lambda folder: edit(folder, PROCESSOR, **dict.fromkeys(keys))


def stating(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder, PROCESSOR, **changes)


def without_file(folder: Path) -> None:
    (folder / PROCESSOR).unlink()


KINDS: dict[str, Callable[[Path], None]] = {
    "no patch size": lacking("patch_size", "num_image_tokens"),
    "no strategy": lacking("vision_feature_select_strategy"),
    "no additional tokens": lacking("num_additional_image_tokens"),
    "none of them": lacking(
        "patch_size", "num_image_tokens", "vision_feature_select_strategy",
        "num_additional_image_tokens",
    ),
    "no file": without_file,
    "another patch size": stating(patch_size=2, num_image_tokens=7),
    "the other strategy": stating(vision_feature_select_strategy="full"),
    "default for a tower without CLS": stating(vision_feature_select_strategy="default"),
    "too many": stating(num_additional_image_tokens=3),
    "null": lambda folder: edit_null(folder, "patch_size"),
}  # fmt: skip


def edit_null(folder: Path, key: str) -> None:
    path = folder / PROCESSOR
    path.write_text(json.dumps({**json.loads(path.read_text()), key: None}))


def answers(folder: Path) -> bool:
    """Whether plain transformers runs a picture and a question through a folder."""
    processor = load_processor(folder)
    model = load(folder)
    token = getattr(processor, "image_token", "<image>")
    picture = Image.new("RGB", (40, 30), (200, 30, 30))
    try:
        inputs = processor(text=[f"{token}\nWhat?"], images=[[picture]], return_tensors="pt")
        with torch.no_grad():
            model(**inputs)
    except (TypeError, ValueError):
        return False
    return True


@pytest.mark.parametrize("family", WRITERS)
@pytest.mark.parametrize("kind", KINDS)
def test_convert_makes_the_processor_count(family: str, kind: str, tmp_path: Path) -> None:
    base = WRITERS[family](tmp_path / "base")
    before = json.loads((base / PROCESSOR).read_text()) if (base / PROCESSOR).is_file() else {}
    assert dcsurgery.convert(base, tmp_path / "sound").plan.processor_changes == {}
    KINDS[kind](base)
    stock = dcsurgery.convert(base, tmp_path / "stock")
    delta = dcsurgery.convert(base, tmp_path / "delta", form="delta")
    assert stock.plan.processor_changes == delta.plan.processor_changes
    # VipLLaVA has a delta alone: transformers asks it through ask, below.
    assert stock.plan.form == "delta" or answers(tmp_path / "stock")
    for out in (tmp_path / "stock", tmp_path / "delta"):
        report = dcsurgery.verify(out)
        assert report.passed, [check for check in report.checks if not check.passed]
        assert any(check.name == NAME for check in report.checks)
        picture = save_picture(tmp_path / "p.png", 40, 30)
        assert dcsurgery.ask(out, "What?", [picture], max_new_tokens=1).image_tokens > 0
    fit = dcsurgery.inspect(base).processor
    assert fit is not None and fit.problems == ()
    changed = fit.written != fit.made
    assert bool(stock.plan.processor_changes) == changed
    if changed:
        (note,) = [note for note in stock.plan.notes if "the base's processor" in note]
        assert f"the model makes {fit.made}" in note
        written = json.loads((tmp_path / "stock" / PROCESSOR).read_text())
        assert kind != "none of them" or written == before


BROKEN = {
    "no patch size": "it cannot be loaded",
    "no strategy": "17 written, 16 made",
    "no additional tokens": "15 written, 16 made",
    "too many": "18 written, 16 made",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_verify_does_not_pass_what_cannot_run(kind: str, tmp_path: Path) -> None:
    """Base and output alike, as a conversion before left them: both directions of the count."""
    base = write_tiny_llava(tmp_path / "base")
    outs = {form: tmp_path / form for form in ("stock", "delta")}
    for form, out in outs.items():
        dcsurgery.convert(base, out, form=form)
    KINDS[kind](base)
    KINDS[kind](outs["stock"])
    for out in outs.values():
        failed = [check for check in dcsurgery.verify(out).checks if not check.passed]
        assert [check.name for check in failed] == [NAME]
    (check,) = failed
    assert check.measured == BROKEN[kind]
    assert not answers_or_refuses(outs["stock"])
    data = write_data(tmp_path / "data")
    limits = dcsurgery.EvalSettings(limit=1, max_new_tokens=1, max_bad=1)
    training = dcsurgery.TrainingSettings(train="connector", batch_size=4, max_steps=1)
    for call in (
        lambda: dcsurgery.evaluate([outs["stock"]], data, tmp_path / "e", settings=limits),
        lambda: dcsurgery.finetune(outs["delta"], data, tmp_path / "f", settings=training),
    ):
        with pytest.raises(RequestError, match=r"cannot (answer|count)|the model makes 16"):
            call()


def answers_or_refuses(folder: Path) -> bool:
    try:
        return answers(folder)
    except RequestError as error:
        assert "cannot count image tokens" in error.message and "convert" in (error.hint or "")
        return False


@pytest.mark.parametrize(
    ("images", "told"),
    [
        ({"crop_size": {"height": 8, "width": 8}, "size": {"shortest_edge": 8}}, "of 8 x 8, the"),
        ({"do_center_crop": False, "size": {"shortest_edge": 16}}, "keeps the shape of pictures"),
    ],
)
def test_what_cannot_be_filled_is_named(images: dict[str, Any], told: str, tmp_path: Path) -> None:
    base = write_tiny_llava(tmp_path / "base")
    edit(base, IMAGES, **images)
    plan = dcsurgery.convert(base, tmp_path / "out").plan
    assert plan.processor_changes == {}
    assert any(told in note for note in plan.notes)
    fit = dcsurgery.inspect(base).processor
    assert fit is not None and told in fit.problems[0]


def test_words_that_no_config_decides_are_named(tmp_path: Path) -> None:
    base = write_tiny_llava(tmp_path / "base")
    edit(base, PROCESSOR, patch_size="four")
    plan = dcsurgery.convert(base, tmp_path / "out").plan
    assert plan.processor_changes == {"patch_size": {"from": "four", "to": 4}}


@pytest.mark.parametrize("place", ["none", "tokenizer"])
def test_a_missing_chat_template_is_said(place: str, tmp_path: Path) -> None:
    base = write_tiny_llava(tmp_path / "base")
    (base / "chat_template.json").unlink()
    text = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    edit(base, "tokenizer_config.json", chat_template=text if place == "tokenizer" else None)
    notes = "\n".join(dcsurgery.convert(base, tmp_path / "out").plan.notes)
    wanted = {"none": "no chat template: ask,", "tokenizer": "tokenizer's, which knows no pictures"}
    assert wanted[place] in notes
    picture = save_picture(tmp_path / "p.png", 40, 30)
    assert dcsurgery.ask(tmp_path / "out", "What?", [picture], max_new_tokens=1).image_tokens == 16


def test_connectors_that_change_the_count_start_from_repaired_words(tmp_path: Path) -> None:
    for kind in ("none of them", "no file"):
        base = write_tiny_llava(tmp_path / f"base {kind}")
        KINDS[kind](base)
        out = tmp_path / f"out {kind}"
        dcsurgery.convert(base, out, pool=2)
        assert dcsurgery.verify(out).passed
        assert AutoProcessor.from_pretrained(out).patch_size == 8


def test_a_processor_that_needs_nothing_is_left_alone(tmp_path: Path) -> None:
    """Other words, the same count: what works stays as it is."""
    base = write_tiny_llava(tmp_path / "base")
    edit(base, PROCESSOR, vision_feature_select_strategy="full", num_additional_image_tokens=0)
    assert dcsurgery.convert(base, tmp_path / "out").plan.processor_changes == {}
    assert dcsurgery.verify(tmp_path / "out").passed


def test_the_command_line_says_it(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from dcsurgery.cli.main import app

    base = write_tiny_llava(tmp_path / "base")
    sound = CliRunner().invoke(app, ["inspect", str(base)]).stdout
    sound = " ".join(sound.split())
    assert "writes 16 image tokens for a picture, as many as the model makes" in sound
    KINDS["no additional tokens"](base)
    shown = " ".join(CliRunner().invoke(app, ["inspect", str(base)]).stdout.split())
    assert "writes 15 image tokens for a picture, the model makes 16" in shown
    planned = CliRunner().invoke(app, ["convert", str(base), "--dry-run"]).stdout
    assert "num_additional_image_tokens: null -> 1" in planned


def test_nothing_is_said_of_a_model_without_a_processor(tmp_path: Path) -> None:
    from dcsurgery.architectures import find_architecture
    from dcsurgery.checkpoint.contents import open_checkpoint

    base = write_tiny_llava(tmp_path / "base")
    for name in (PROCESSOR, IMAGES):
        (base / name).unlink()
    checkpoint = open_checkpoint(base)
    architecture = find_architecture(checkpoint.config)
    anatomy = architecture.dissect(checkpoint.config, checkpoint.tensors)
    assert fit_processor(checkpoint, architecture, anatomy) is None
    dcsurgery.convert(base, tmp_path / "out")
    report = dcsurgery.verify(tmp_path / "out")
    (check,) = [check for check in report.checks if check.name == NAME]
    assert check.passed and check.measured.startswith("not compared: there is no processor")
