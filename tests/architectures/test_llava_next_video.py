"""LLaVA-NeXT-Video: images as in LLaVA-NeXT, frames of videos pooled before the projector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.llava_next_video.processing_llava_next_video import LlavaNextVideoProcessor

import dcsurgery
from dcsurgery.connectors.request import Connector
from dcsurgery.errors import AnatomyError, PlanError
from dcsurgery.tiny.llava import write_llava
from tests.architectures.cases import TinyModel, load
from tests.architectures.contract import StockContract
from tests.architectures.fresh import check_fresh_model
from tests.architectures.published import dissect, llava_shapes
from tests.architectures.tiles import (
    FRAMES,
    Tiles,
    Videos,
    check_counts,
    grid,
    pixels,
    tile_inputs,
)
from tests.tiny.llava_next_video import llava_next_video_config, write_tiny_llava_next_video


class TestImages(Tiles, StockContract):
    specs = (Connector("dci"),)

    @classmethod
    def tiny(cls, folder: Path, shards: int) -> TinyModel:
        return TinyModel(write_tiny_llava_next_video(folder, shards=shards), tile_inputs)

    def rows(self, model: Any, state: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        return state[:, 1:]


class TestVideos(Videos):
    specs = (Connector("sci"),)
    write = write_tiny_llava_next_video

    def rows(self, model: Any, state: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        side = grid(model)
        maps = state[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        return functional.avg_pool2d(maps, 2).flatten(2).transpose(1, 2)


class TestWiderStride(Videos):
    """SigLIP without CLS, pooled by three; 6 x 6 patches."""

    specs = (Connector("dci", groups=3),)

    @staticmethod
    def write(folder: Path, shards: int) -> Path:
        sizes: dict[str, Any] = {"depth": 5, "width": 12, "image_size": 18, "patch_size": 3}
        config = llava_next_video_config("siglip", feature_layer=-1, **sizes)
        return write_llava(folder, {**config, "spatial_pool_stride": 3}, shards=shards)

    def rows(self, model: Any, state: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        maps = state.transpose(1, 2).unflatten(2, (grid(model), grid(model)))
        return functional.avg_pool2d(maps, 3).flatten(2).transpose(1, 2)


def test_published_config() -> None:
    config = {"architectures": ["LlavaNextVideoForConditionalGeneration"]}
    found = dissect(config, llava_shapes(24, 1024, 4096, 1024))
    assert (found.feature_layers, found.image_tokens, found.dropped_tokens) == ((23,), 576, 1)


@pytest.mark.parametrize("mode", ["max", "conv"])
def test_other_pooling_is_refused(mode: str) -> None:
    config = {**llava_next_video_config(), "spatial_pool_mode": mode}
    with pytest.raises(AnatomyError, match="spatial_pool_mode"):
        dissect(config, llava_shapes(4, 16, 24, 16))


@pytest.mark.slow
def test_model_saved_by_transformers(tmp_path: Path) -> None:
    config = llava_next_video_config(depth=3, width=8)
    check_fresh_model(config, tmp_path, TinyModel(tmp_path, tile_inputs))


@pytest.mark.parametrize("side", [4, 8])
def test_pool_gives_as_many_tokens_as_the_processor_counts(side: int, tmp_path: Path) -> None:
    base = write_tiny_llava_next_video(tmp_path / "base", image_size=4 * side)
    dcsurgery.convert(base, tmp_path / "out", pool=2)
    check_counts(LlavaNextVideoProcessor, tmp_path / "out")
    video = {"pixel_values_videos": pixels(load(base), 1, FRAMES)}
    model = dcsurgery.load(tmp_path / "out")
    with torch.no_grad():
        found = model.model.get_video_features(**video).pooler_output
    assert found.shape[1] == FRAMES * (side // 4) ** 2


def test_pool_is_refused_where_videos_would_be_miscounted(tmp_path: Path) -> None:
    base = write_tiny_llava_next_video(tmp_path / "base", image_size=24)
    with pytest.raises(PlanError, match="6 x 6 grid"):
        dcsurgery.convert(base, tmp_path / "out", pool=2)
    assert not (tmp_path / "out").exists()
