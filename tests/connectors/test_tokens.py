"""Connectors that change the number of image tokens: sti appends some, pool leaves a quarter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor

import dcsurgery
from dcsurgery.data.pictures import sample_photo
from dcsurgery.errors import PlanError, RequestError
from dcsurgery.tiny import llava_config, write_tiny_llava
from dcsurgery.tiny.llava import write_llava
from tests.architectures.cases import load
from tests.closeness import PAPER, assert_near
from tests.surgery import random_matrix, write_delta

pytestmark = pytest.mark.slow

# (image size, patch size) -> grids of 4, 5 and 9 patches a side.
GRIDS = {4: (16, 4), 5: (20, 4), 9: (27, 3)}


@pytest.fixture(scope="module", params=[(t, g) for t in ("clip", "siglip") for g in GRIDS], ids=str)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tower, grid = request.param
    image, patch = GRIDS[grid]
    folder = tmp_path_factory.mktemp("base") / f"{tower}{grid}"
    return write_tiny_llava(folder, tower, image_size=image, patch_size=patch)


def features(model: Any, pixels: Tensor) -> Tensor:
    """Projected image features [B, N, H]."""
    with torch.no_grad():
        found = model.get_image_features(pixel_values=pixels).pooler_output
    return torch.stack(list(found)) if isinstance(found, (tuple, list)) else found


def pixels_for(model: Any, count: int = 2) -> Tensor:
    side = model.config.vision_config.image_size
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(3))


def states(model: Any, pixels: Tensor) -> list[Tensor]:
    """Patch tokens of every hidden state, by transformers itself."""
    with torch.no_grad():
        found = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    prefix = model.config.vision_config.model_type == "clip_vision_model"
    return [state[:, int(prefix) :] for state in found]


def test_sti_appends_pooled_states_and_keeps_the_rest(base: Path, tmp_path: Path) -> None:
    plan = dcsurgery.convert(base, tmp_path / "out", connector="sti", layers="1,2").plan
    plain, model = load(base), dcsurgery.load(tmp_path / "out")
    pixels = pixels_for(plain)
    before, after = features(plain, pixels), features(model, pixels)
    count = before.shape[1]
    assert torch.equal(after[:, :count], before)
    whole = count // 8 * 8
    tokens = [states(plain, pixels)[i][:, :whole].unflatten(1, (-1, 8)).mean(2) for i in (1, 2)]
    with torch.no_grad():
        expected = plain.model.multi_modal_projector(torch.cat(tokens, dim=1))
    assert_near(after[:, count:], expected)
    assert plan.image_tokens == after.shape[1] == count + 2 * (count // 8)
    assert plan.new_parameters == 0 and plan.delta == []


def test_pool_is_the_mean_of_every_window(base: Path, tmp_path: Path) -> None:
    plan = dcsurgery.convert(base, tmp_path / "zero", pool=2).plan
    plain, model = load(base), dcsurgery.load(tmp_path / "zero")
    pixels = pixels_for(plain)
    before, after = features(plain, pixels), features(model, pixels)
    side = plan.anatomy.tower.grid
    half = side // 2
    grid = before.unflatten(1, (side, side))[:, : 2 * half, : 2 * half]
    expected = grid.unflatten(2, (half, 2)).unflatten(1, (half, 2)).mean(dim=(2, 4)).flatten(1, 2)
    assert_near(after, expected)
    assert plan.image_tokens == half**2 == after.shape[1]
    assert any("odd" in note for note in plan.notes) == bool(side % 2)


@pytest.mark.parametrize(
    "options",
    [{"connector": "sti"}, {"pool": 2}, {"connector": "sti", "pool": 2}],
    ids=["sti", "pool", "both"],
)
def test_processor_and_model_agree_end_to_end(
    base: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    plan = dcsurgery.convert(base, tmp_path / "out", **options).plan
    assert not (tmp_path / "out" / "config.json").exists()
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    model = dcsurgery.load(tmp_path / "out")
    with Image.open(sample_photo()) as photo:
        pictures = [photo.convert("RGB"), photo.convert("RGB").rotate(90, expand=True)]
    prompts = ["USER: <image> What is this? <image> And this?", "USER: <image> Who?"]
    inputs = processor(images=[pictures, pictures[:1]], text=prompts, padding=True,
                       return_tensors="pt")  # fmt: skip
    found = (inputs["input_ids"] == model.config.image_token_id).sum(dim=1).tolist()
    assert found == [2 * plan.image_tokens, plan.image_tokens]
    answer = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert answer.shape[1] == inputs["input_ids"].shape[1] + 3
    alone = processor(images=pictures[:1], text=prompts[1:], return_tensors="pt")
    with torch.no_grad():
        batch = model(**inputs).logits[1, -1]
        single = model(**alone).logits[0, -1]
    assert_near(batch, single, PAPER)
    report = dcsurgery.verify(tmp_path / "out", logits=True)
    assert report.passed, report.checks


def test_random_connector_with_pool_is_verified(base: Path, tmp_path: Path) -> None:
    plan = dcsurgery.convert(base, tmp_path / "zero", pool=2).plan
    write_delta(base, tmp_path / "out", random_matrix(plan), pool=2)
    report = dcsurgery.verify(tmp_path / "out", logits=True)
    assert report.passed, report.checks


def test_processor_keeps_every_other_key(tiny_clip: Path, tmp_path: Path) -> None:
    plan = dcsurgery.convert(tiny_clip, tmp_path / "out", pool=2).plan
    before = json.loads((tiny_clip / "processor_config.json").read_text())
    after = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    assert list(after) == list(before)
    assert {k for k in before if before[k] != after[k]} == set(plan.processor_changes)
    for name in ("tokenizer.json", "preprocessor_config.json", "chat_template.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tiny_clip / name).read_bytes()


def test_base_without_processor_says_how_many_tokens(tmp_path: Path) -> None:
    base = write_tiny_llava(tmp_path / "base", processor=False)
    plan = dcsurgery.convert(base, tmp_path / "out", connector="sti").plan
    assert any("repeat the image token 20 times" in note for note in plan.notes)


@pytest.mark.parametrize("options", [{"connector": "sti"}, {"pool": 2}], ids=["sti", "pool"])
def test_refused_where_tokens_are_no_square_grid(
    options: dict[str, Any], tiny_pixtral: Path, tmp_path: Path
) -> None:
    config = llava_config("clip", depth=4, width=16, image_size=16, patch_size=4, feature_layer=-2)
    config["vision_feature_select_strategy"] = "full"
    for base in (tiny_pixtral, write_llava(tmp_path / "full", config)):
        with pytest.raises(PlanError, match="square grid"):
            dcsurgery.convert(base, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()


def test_sti_is_refused_where_the_projector_reads_several_states(tmp_path: Path) -> None:
    config = llava_config("siglip", feature_layer=[-2, 1])
    base = write_llava(tmp_path / "base", config)
    with pytest.raises(PlanError, match="reads 2 hidden states"):
        dcsurgery.convert(base, tmp_path / "out", connector="sti")
    assert not (tmp_path / "out").exists()


def test_requests_that_cannot_be_meant(tiny_clip: Path, tmp_path: Path) -> None:
    refused: list[tuple[type[Exception], dict[str, Any]]] = [
        (RequestError, {"pool": 3}),
        (RequestError, {"pool": 0}),
        (RequestError, {"norm": True}),
        (RequestError, {"norm": True, "connector": "sti"}),
        (PlanError, {"pool": 2, "form": "stock"}),
        (PlanError, {"connector": "sti", "form": "stock"}),
        (PlanError, {"connector": "sci", "norm": True, "form": "stock"}),
        (PlanError, {"connector": "sti", "layers": "0-1;2-3"}),
    ]
    for error, options in refused:
        with pytest.raises(error):
            dcsurgery.convert(tiny_clip, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()
