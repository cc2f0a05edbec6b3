"""The numeric checks see what the bytes cannot tell, and each of them can fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from dcsurgery.checkpoint.contents import open_checkpoint
from dcsurgery.connectors.attach import DenseConnector
from dcsurgery.connectors.request import Connector
from dcsurgery.data.pictures import open_images, sample_photo
from dcsurgery.errors import RequestError, VerificationError
from dcsurgery.features import FeatureBlock
from dcsurgery.surgery.convert import convert_checkpoint
from dcsurgery.surgery.plan import make_plan
from dcsurgery.surgery.plan_file import DELTA_FILE, SurgeryPlan
from dcsurgery.tiny import llava_config, write_tiny_llava
from dcsurgery.tiny.llava import Tower, write_llava
from dcsurgery.verification import verify_checkpoint
from dcsurgery.verification.inputs import PLAIN, prepare_inputs
from dcsurgery.verification.pair import Pair, open_pair
from dcsurgery.verification.parity import feature_checks, load_vision, logit_checks
from dcsurgery.verification.report import Check
from dcsurgery.verification.structure import structure_checks
from tests.surgery import random_matrix, write_delta, write_folded
from tests.verification.damage import copy_of, edit_plan, edit_tensors

PROJECTOR = "multi_modal_projector.linear_1.weight"
AGREE = "processor and model agree on image tokens"
RANGE = "hidden states stay in range"
BRANCH = "features: branch against base"
FORMULA = "features: branch against the formula"
FOLD = "features: fold against branch"
LOGITS = "logits: branch against base"
FINITE_LOGITS = "logits: branch is finite"
FOLD_LOGITS = "logits: fold against branch"


@pytest.fixture(scope="module")
def trained(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A delta with a random matrix and its fold, as one pair. Do not write into its folders."""
    work = tmp_path_factory.mktemp("parity")
    matrix = random_matrix(make_plan(open_checkpoint(tiny_clip), Connector()))
    write_delta(tiny_clip, work / "delta", matrix)
    write_folded(tiny_clip, work / "stock", matrix)
    return replace(open_pair(work / "delta", None), stock=open_checkpoint(work / "stock"))


@pytest.fixture(scope="module")
def fresh(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock conversion with a zero matrix. Do not write into it."""
    folder = tmp_path_factory.mktemp("parity") / "fresh"
    convert_checkpoint(tiny_clip, folder)
    return folder


def failed(checks: list[Check] | tuple[Check, ...]) -> set[str]:
    return {check.name for check in checks if not check.passed}


def names(checks: list[Check] | tuple[Check, ...]) -> set[str]:
    return {check.name for check in checks}


def features(pair: Pair) -> list[Check]:
    return feature_checks(pair, open_images([]))


def logits(pair: Pair) -> list[Check]:
    return logit_checks(pair, open_images([]))


def with_plan(pair: Pair, **values: Any) -> Pair:
    """The same pair under another plan."""
    return replace(pair, plan=SurgeryPlan.model_validate({**pair.plan.model_dump(), **values}))


def with_fold(pair: Pair, target: Path, edit: Callable[[dict[str, Tensor]], object]) -> Pair:
    """The same pair with another first matrix in the stock folder."""
    assert pair.stock is not None and pair.stock.ref.folder is not None
    folder = copy_of(pair.stock.ref.folder, target)
    edit_tensors(folder / "model.safetensors", edit)
    return replace(pair, stock=open_checkpoint(folder))


def swap_columns(tensors: dict[str, Tensor]) -> None:
    """Swap the columns of hidden states 0 and 2 (width 16), each in another group."""
    matrix = tensors[PROJECTOR]
    matrix[:, 0:16], matrix[:, 32:48] = matrix[:, 32:48].clone(), matrix[:, 0:16].clone()


def test_a_trained_delta_and_its_fold_agree(trained: Pair) -> None:
    checks = features(trained)
    assert failed(checks) == set() and names(checks) == {RANGE, FORMULA, FOLD, AGREE}
    checks = logits(trained)
    assert failed(checks) == set() and names(checks) == {FINITE_LOGITS, FOLD_LOGITS}


def test_a_delta_that_is_not_zero_is_reported_as_such(trained: Pair, fresh: Path) -> None:
    for pair, text in ((trained, "not zero"), (open_pair(fresh, None), "all zero")):
        checks = structure_checks(replace(pair, stock=None), deep=False)
        assert text in next(c.measured for c in checks if c.name == "connector is as planned")
    assert names(verify_checkpoint(fresh).checks) >= {BRANCH, FORMULA, FOLD, RANGE}


def test_swapped_columns_in_the_fold_fail(trained: Pair, tmp_path: Path) -> None:
    pair = with_fold(trained, tmp_path / "stock", swap_columns)
    assert failed(features(pair)) == {FOLD}
    assert failed(logits(pair)) == {FOLD_LOGITS}


def test_a_wrong_layer_in_the_plan_fails(trained: Pair) -> None:
    assert trained.plan.layout.groups == ((0, 1), (2, 3))
    for groups in (((0, 1), (2, 4)), ((0, 2), (1, 3)), ((2, 3), (0, 1))):
        layout = replace(trained.plan.layout, blocks=tuple(map(FeatureBlock, groups)))
        assert failed(features(with_plan(trained, layout=layout))) == {FOLD}


def test_a_small_error_in_the_fold_fails(trained: Pair, tmp_path: Path) -> None:
    pair = with_fold(trained, tmp_path / "stock", lambda tensors: tensors[PROJECTOR].mul_(1.001))
    assert failed(features(pair)) == {FOLD}


def test_a_nan_in_the_fold_fails(trained: Pair, tmp_path: Path) -> None:
    pair = with_fold(
        trained, tmp_path / "stock", lambda tensors: tensors[PROJECTOR].fill_(float("nan"))
    )
    assert failed(features(pair)) == {FOLD}
    assert failed(logits(pair)) == {FOLD_LOGITS}


def test_a_branch_that_disturbs_the_base_fails(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = DenseConnector.extend
    monkeypatch.setattr(
        DenseConnector, "extend", lambda self, site, output: real(self, site, output) + 1e-4
    )
    pair = open_pair(fresh, None)
    assert failed(features(pair)) >= {BRANCH, FORMULA}
    assert failed(logits(pair)) >= {LOGITS}


def test_a_branch_that_reads_another_state_fails(
    trained: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = DenseConnector.collect
    monkeypatch.setattr(
        DenseConnector,
        "collect",
        lambda self, state, hidden, block: real(self, (state + 1) % 4, hidden, block),
    )
    assert failed(features(trained)) == {FORMULA, FOLD}


def test_a_branch_that_gives_no_numbers_fails(
    trained: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DenseConnector, "extend", lambda self, site, output: output / 0)
    assert failed(logits(trained)) >= {FINITE_LOGITS, FOLD_LOGITS}


def overflowing(folder: Path) -> Path:
    """A fp16 LLaVA whose block 1 writes states that fp16 cannot hold."""
    config = llava_config("clip", depth=4, width=16, image_size=16, patch_size=4, feature_layer=-2)
    write_tiny_llava(folder, "clip", dtype="float16")
    tensors = load_file(folder / "model.safetensors")
    name = "vision_tower.vision_model.encoder.layers.1.mlp.fc2.bias"
    tensors[name] = torch.full_like(tensors[name], 60000.0)
    tensors[name.replace("layers.1", "layers.0")] = torch.full_like(tensors[name], 60000.0)
    return write_llava(folder, config, tensors=tensors, dtype="float16")


def test_states_that_overflow_are_found(tmp_path: Path) -> None:
    base = overflowing(tmp_path / "base")
    for form in ("stock", "delta"):
        convert_checkpoint(base, tmp_path / form, form=form)
        report = verify_checkpoint(tmp_path / form)
        assert RANGE in failed(report.checks) and not report.passed
        (check,) = [check for check in report.checks if check.name == RANGE]
        assert "F16" in check.limit


@pytest.mark.parametrize("kind", ["missing", "text", "cut", "size is text", "folder"])
def test_pictures_that_cannot_be_read_are_refused_first(
    kind: str, fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "picture.png"
    if kind == "text":
        path.write_text("no picture")
    if kind == "cut":
        Image.new("RGB", (300, 300), "red").save(path)
        path.write_bytes(path.read_bytes()[:60])
    if kind == "size is text":
        path.write_bytes(b"P6\n40 3x\n255\n")
    if kind == "folder":
        path.mkdir()

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("gigabytes were hashed before the pictures were looked at")

    monkeypatch.setattr("dcsurgery.verification.structure.structure_checks", refuse)
    with pytest.raises(RequestError) as caught:
        verify_checkpoint(fresh, images=[sample_photo(), path])
    assert str(path) in caught.value.message and "PNG" in caught.value.hint


def test_several_pictures_of_any_mode(fresh: Path, tmp_path: Path) -> None:
    paths = []
    for mode in ("L", "RGBA", "P", "1", "CMYK"):
        paths.append(tmp_path / f"{mode}.tiff")
        Image.new(mode, (40, 23)).save(paths[-1])
    report = verify_checkpoint(fresh, images=[*paths, sample_photo()], logits=True)
    assert report.passed


# --- bases without an image processor ---


@pytest.mark.parametrize("tower", ["clip", "siglip", "pixtral"])
def test_a_base_without_processor_is_verified_on_plain_squares(
    tower: Tower, tmp_path: Path
) -> None:
    base = write_tiny_llava(tmp_path / "base", tower, processor=False)
    assert not list(base.glob("*processor*"))
    convert_checkpoint(base, tmp_path / "out")
    report = verify_checkpoint(tmp_path / "out", logits=True)
    assert report.passed
    numeric = [c for c in report.checks if c.name.startswith(("features", "logits", RANGE))]
    assert numeric and all(PLAIN in check.measured for check in numeric)


def test_a_base_with_processor_says_nothing_of_squares(fresh: Path) -> None:
    assert not any(PLAIN in check.measured for check in verify_checkpoint(fresh).checks)


def test_plain_squares_are_between_minus_one_and_one(tmp_path: Path) -> None:
    base = write_tiny_llava(tmp_path / "base", "clip", processor=False)
    plan = make_plan(open_checkpoint(base), Connector())
    pictures = [Image.new("RGB", (30, 20), color) for color in ("black", "white", (255, 0, 0))]
    pixels = prepare_inputs(open_checkpoint(base), plan.anatomy, pictures).values["pixel_values"]
    assert pixels.shape == (3, 3, 16, 16) and pixels.dtype == torch.float32
    assert torch.equal(pixels[0], torch.full((3, 16, 16), -1.0))
    assert torch.equal(pixels[1], torch.full((3, 16, 16), 1.0))
    assert torch.equal(pixels[2, :, 0, 0], torch.tensor([1.0, -1.0, -1.0]))


def test_the_bases_own_processor_is_used(tiny_siglip: Path) -> None:
    from transformers import AutoImageProcessor

    plan = make_plan(open_checkpoint(tiny_siglip), Connector())
    pictures = open_images([])
    found = prepare_inputs(open_checkpoint(tiny_siglip), plan.anatomy, pictures)
    processor = AutoImageProcessor.from_pretrained(tiny_siglip)
    expected = processor(images=pictures, return_tensors="pt")["pixel_values"]
    assert torch.equal(found.values["pixel_values"], expected) and found.note == ""


def test_a_processor_inside_processor_config_is_used(tiny_clip: Path, tmp_path: Path) -> None:
    """transformers 5 saves both in one file."""
    base = copy_of(tiny_clip, tmp_path / "base")
    inner = json.loads((base / "preprocessor_config.json").read_text())
    outer = json.loads((base / "processor_config.json").read_text())
    (base / "preprocessor_config.json").unlink()
    outer["image_processor"] = inner
    (base / "processor_config.json").write_text(json.dumps(outer))
    plan = make_plan(open_checkpoint(base), Connector())
    found = prepare_inputs(open_checkpoint(base), plan.anatomy, open_images([]))
    wanted = prepare_inputs(open_checkpoint(tiny_clip), plan.anatomy, open_images([]))
    assert found.note == ""
    assert torch.equal(found.values["pixel_values"], wanted.values["pixel_values"])


BROKEN_PROCESSORS = {
    "not JSON": "{",
    "an unknown class": '{"image_processor_type": "NoSuchProcessor"}',
    "a list": "[]",
    "sizes of text": '{"image_processor_type": "CLIPImageProcessor", "size": "large"}',
    "no size at all": '{"image_processor_type": "CLIPImageProcessor", "size": {}}',
}


@pytest.mark.parametrize("name", BROKEN_PROCESSORS)
def test_a_broken_processor_is_an_error_with_a_hint(
    name: str, tiny_clip: Path, tmp_path: Path
) -> None:
    base = copy_of(tiny_clip, tmp_path / "base")
    (base / "preprocessor_config.json").write_text(BROKEN_PROCESSORS[name])
    convert_checkpoint(base, tmp_path / "out")
    with pytest.raises(VerificationError) as caught:
        verify_checkpoint(tmp_path / "out")
    assert "preprocessor_config.json" in caught.value.hint


# --- the language model stays unread ---


def test_features_need_no_block_of_the_language_model(tiny_clip: Path) -> None:
    model = load_vision(open_checkpoint(tiny_clip))
    assert len(model.model.language_model.layers) == 0
    assert len(model.model.vision_tower.encoder.layers) == 4


def test_a_plan_of_the_delta_alone_is_verified_too(trained: Pair) -> None:
    report = verify_checkpoint(trained.folder, logits=True)
    assert report.passed
    assert names(report.checks) >= {RANGE, FORMULA} and FOLD not in names(report.checks)


def test_a_matrix_and_its_plan_changed_together_fail_only_in_numbers(
    fresh: Path, tmp_path: Path
) -> None:
    """Someone trained the delta of a stock folder and forgot to fold it again."""
    import hashlib

    folder = copy_of(fresh, tmp_path / "out")
    edit_tensors(folder / DELTA_FILE, lambda tensors: tensors["dense_connector.weight"].fill_(0.5))
    raw = load_file(folder / DELTA_FILE)["dense_connector.weight"].numpy().tobytes()
    digest = hashlib.sha256(raw).hexdigest()
    edit_plan(lambda v: v["delta"][0].update(sha256=digest))(folder)
    assert failed(verify_checkpoint(folder).checks) == {"changed tensors are as planned"}
    assert failed(features(open_pair(folder, None))) == {FOLD}
