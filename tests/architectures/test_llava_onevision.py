"""LLaVA-OneVision: tiles shrunk when there are many, several images, videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

import dcsurgery
from dcsurgery.connectors.request import Connector
from tests.architectures.cases import TinyModel, load, make_case
from tests.architectures.contract import StockContract
from tests.architectures.fresh import check_fresh_model
from tests.architectures.published import dissect, llava_shapes
from tests.architectures.tiles import Tiles, Videos, check_counts, pixels, tile_inputs
from tests.closeness import assert_near
from tests.surgery import random_matrix, write_folded
from tests.tiny.llava_onevision import llava_onevision_config, write_tiny_llava_onevision


class TestImages(Tiles, StockContract):
    specs = (Connector("dci"),)

    @classmethod
    def tiny(cls, folder: Path, shards: int) -> TinyModel:
        return TinyModel(write_tiny_llava_onevision(folder, shards=shards), tile_inputs)


class TestVideos(Videos):
    """Frames are pooled after the projector; an odd grid, another depth and width."""

    specs = (Connector("sci", layers=((0, 2),)),)

    @staticmethod
    def write(folder: Path, shards: int) -> Path:
        sizes = {"depth": 6, "width": 12, "image_size": 15, "patch_size": 3}
        return write_tiny_llava_onevision(folder, shards=shards, **sizes)


def test_published_config() -> None:
    """llava-onevision-qwen2-0.5b-ov-hf: SigLIP-so400m cut to 26 blocks, all patches."""
    vision = {"hidden_size": 1152, "image_size": 384, "intermediate_size": 4304,
              "model_type": "siglip_vision_model", "num_attention_heads": 16,
              "num_hidden_layers": 26, "patch_size": 14, "vision_use_head": False}  # fmt: skip
    config: dict[str, Any] = {"architectures": ["LlavaOnevisionForConditionalGeneration"]}
    shapes = llava_shapes(26, 1152, 896, 1152)
    found = dissect({**config, "vision_config": vision, "vision_feature_layer": -1}, shapes)
    assert (found.feature_layers, found.image_tokens, found.dropped_tokens) == ((26,), 729, 0)
    assert found.language_model == "qwen2"
    assert found == dissect(config, shapes)


@pytest.mark.slow
def test_model_saved_by_transformers(tmp_path: Path) -> None:
    config = llava_onevision_config("clip", depth=3, feature_layer=-2)
    check_fresh_model(config, tmp_path, TinyModel(tmp_path, tile_inputs))


def test_shrunk_tiles_and_several_images(tmp_path: Path) -> None:
    """Branch and fold agree where tiles are interpolated, and where images are not cut at all."""
    base = write_tiny_llava_onevision(tmp_path / "base")
    case = make_case(TinyModel(base, tile_inputs), Connector("dci"))
    weight = random_matrix(case.plan)
    write_folded(base, tmp_path / "stock", weight)
    model, stock = case.attached(weight), load(tmp_path / "stock")
    many = {"pixel_values": pixels(model, 1, 5), "image_sizes": torch.tensor([[30, 31]])}
    three = {"pixel_values": pixels(model, 3, 1), "image_sizes": torch.tensor([[16, 32]] * 3)}
    for inputs, lengths in (
        ({**many, "vision_aspect_ratio": "anyres_max_1"}, [16 + 4 * 5]),
        ({**three, "batch_num_images": torch.tensor([3])}, [17, 17, 17]),
    ):
        with torch.no_grad():
            found, folded = (m.get_image_features(**inputs).pooler_output for m in (model, stock))
        assert [len(part) for part in found] == lengths
        assert_near(torch.cat(found), torch.cat(folded))


@pytest.mark.parametrize(("image", "patch"), [(16, 4), (15, 3), (28, 4)])
def test_pool_gives_as_many_tokens_as_the_processor_counts(
    image: int, patch: int, tmp_path: Path
) -> None:
    sizes = {"image_size": image, "patch_size": patch}
    base = write_tiny_llava_onevision(tmp_path / "base", **sizes)
    plan = dcsurgery.convert(base, tmp_path / "out", pool=2).plan
    assert plan.image_tokens == (image // patch // 2) ** 2
    check_counts(LlavaOnevisionProcessor, tmp_path / "out")
