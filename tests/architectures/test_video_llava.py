"""Video-LLaVA: two towers, one projector; videos keep their CLS tokens, images do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor

import dcsurgery
from dcsurgery.connectors.request import Connector
from dcsurgery.data.pictures import sample_photo
from dcsurgery.errors import AnatomyError, PlanError
from tests.architectures.cases import TinyModel, load, make_case
from tests.architectures.contract import StockContract
from tests.architectures.fresh import check_fresh_model
from tests.architectures.published import dissect, llava_shapes
from tests.architectures.tiles import FRAMES, Videos, pixels, square_inputs
from tests.surgery import random_matrix
from tests.tiny.video_llava import video_llava_config, write_tiny_video_llava


class TestImages(StockContract):
    specs = (Connector("dci"),)

    @classmethod
    def tiny(cls, folder: Path, shards: int) -> TinyModel:
        return TinyModel(write_tiny_video_llava(folder, shards=shards), square_inputs)

    def states(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        tower = model.model.image_tower
        return tuple(tower(inputs["pixel_values"], output_hidden_states=True).hidden_states)

    def rows(self, model: Any, state: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        return state[:, 1:]


class TestVideos(Videos):
    """Another depth, width and grid."""

    specs = (Connector("sci", layers=((0, 2),)),)
    video_tower = "video_tower"

    @staticmethod
    def write(folder: Path, shards: int) -> Path:
        sizes = {"depth": 5, "width": 12, "image_size": 15, "patch_size": 5}
        return write_tiny_video_llava(folder, shards=shards, **sizes)


def shapes(depth: int = 24, video_depth: int = 24) -> dict[str, tuple[int, ...]]:
    towers = {"image_tower.vision_model.": depth, "video_tower.vision_model.": video_depth}
    found: dict[str, tuple[int, ...]] = {}
    for tower, count in towers.items():
        found |= llava_shapes(count, 1024, 4096, 1024, tower)
    return found


def test_published_config() -> None:
    config = {"architectures": ["VideoLlavaForConditionalGeneration"]}
    found = dissect(config, shapes())
    assert (found.feature_layers, found.image_tokens, found.dropped_tokens) == ((23,), 256, 1)
    assert [module for module, _ in found.tower.paths] == ["image_tower", "video_tower"]
    with pytest.raises(AnatomyError, match="24 and 12 blocks"):
        dissect(config, shapes(video_depth=12))


@pytest.mark.slow
def test_model_saved_by_transformers(tmp_path: Path) -> None:
    """Here every image keeps its CLS token."""
    config = {**video_llava_config(depth=3), "vision_feature_select_strategy": "full"}
    check_fresh_model(config, tmp_path, TinyModel(tmp_path, square_inputs))


def test_towers_do_not_mix(tmp_path: Path) -> None:
    """An image's features are the same whether or not the video tower ran in between."""
    base = write_tiny_video_llava(tmp_path / "base")
    case = make_case(TinyModel(base, square_inputs), Connector("dci"))
    model = case.attached(random_matrix(case.plan)).model
    with torch.no_grad():
        before = model.get_image_features(pixels(model, 1)).pooler_output
        video = model.get_video_features(pixels(model, 1, FRAMES)).pooler_output
        after = model.get_image_features(pixels(model, 1)).pooler_output
    assert torch.equal(before, after)
    assert video.shape[:2] == (FRAMES, 17) and before.shape[:2] == (1, 16)


def test_generate_from_the_image_processor_s_old_names(tmp_path: Path) -> None:
    """transformers' Video-LLaVA image processor says pixel_values_images."""
    base = write_tiny_video_llava(tmp_path / "base")
    dcsurgery.convert(base, tmp_path / "out", form="delta")
    model, plain = dcsurgery.load(tmp_path / "out"), load(base)
    processor = AutoImageProcessor.from_pretrained(base)
    with Image.open(sample_photo()) as photo:
        values = processor(images=[photo.convert("RGB")], return_tensors="pt")
    assert set(values) == {"pixel_values_images"}
    inputs = {**square_inputs(plain, 1, 1), **values}
    del inputs["pixel_values"]
    settings = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    assert torch.equal(model.generate(**inputs, **settings), plain.generate(**inputs, **settings))


@pytest.mark.parametrize("options", [{"connector": "sti"}, {"pool": 2}], ids=["sti", "pool"])
def test_other_token_counts_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    base = write_tiny_video_llava(tmp_path / "base")
    with pytest.raises(PlanError, match="video_llava cannot be told"):
        dcsurgery.convert(base, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
