"""InternVL: a tower with CLS, pixel shuffle, LayerNorm; tiles and frames are a batch of squares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import dcsurgery
from dcsurgery.connectors.request import Connector
from dcsurgery.errors import AnatomyError
from tests.architectures.cases import TinyModel, make_case
from tests.architectures.fresh import check_whole_way, save_fresh
from tests.architectures.inputs import image_inputs
from tests.architectures.internvl import InternVLContract
from tests.closeness import assert_near
from tests.surgery import random_matrix
from tests.tiny.internvl import internvl_config, write_internvl, write_tiny_internvl


class TestInternVL(InternVLContract):
    @classmethod
    def tiny(cls, folder: Path, shards: int) -> TinyModel:
        return TinyModel(write_tiny_internvl(folder, shards=shards), image_inputs(4, 16))


def other_config(**vision: Any) -> dict[str, Any]:
    config = internvl_config(0.25, depth=3, width=24, image_size=48, patch_size=6)
    config["vision_config"] |= vision
    return config


def test_a_fresh_model_like_the_large_tower(tmp_path: Path) -> None:
    """InternViT-6B: RMS norms, normed queries and keys."""
    config = other_config(norm_type="rms_norm", use_qk_norm=True, attention_bias=False)
    folder = save_fresh(tmp_path / "base", config)
    anatomy = dcsurgery.inspect(folder).anatomy
    assert (anatomy.feature_layers, anatomy.feature_width, anatomy.normed) == ((3,), 384, False)
    check_whole_way(InternVLContract(), folder, image_inputs(4, 48), tmp_path / "out")


def test_a_fresh_model_with_a_last_norm(tmp_path: Path) -> None:
    folder = save_fresh(tmp_path / "base", other_config(use_mean_pooling=False))
    assert dcsurgery.inspect(folder).anatomy.normed
    check_whole_way(InternVLContract(), folder, image_inputs(4, 48), tmp_path / "out")


@pytest.mark.parametrize("layer", [3, 1])
def test_a_named_layer_is_read_without_the_last_norm(layer: int, tmp_path: Path) -> None:
    """Only -1 means the tower's output: the last state by its number has not passed the norm."""
    config = {**other_config(use_mean_pooling=False), "vision_feature_layer": layer}
    folder = save_fresh(tmp_path / "base", config)
    anatomy = dcsurgery.inspect(folder).anatomy
    assert (anatomy.feature_layers, anatomy.normed) == ((layer,), False)
    tiny = TinyModel(folder, image_inputs(4, 48))
    case = make_case(tiny, Connector("sci", layers=((0, 2),)))
    InternVLContract().test_site_reads_the_feature_layer(case, case.attached())


def test_pixel_sizes_may_be_lists_or_numbers(tmp_path: Path) -> None:
    config = internvl_config()
    assert config["vision_config"]["image_size"] == [16, 16]
    listed = dcsurgery.inspect(write_internvl(tmp_path / "lists", config)).anatomy
    path = tmp_path / "lists" / "config.json"
    config["vision_config"] |= {"image_size": 16, "patch_size": 4}
    path.write_text(json.dumps(config))
    assert dcsurgery.inspect(tmp_path / "lists").anatomy == listed
    assert (listed.tower.grid, listed.image_tokens) == (4, 4)


def test_tiles_of_one_picture_are_told_apart(tmp_path: Path) -> None:
    """The image processor gives as many squares as a picture's shape asks for."""
    tiny = TestInternVL.tiny(tmp_path / "base", 1)
    case = make_case(tiny, Connector("dci"))
    model = case.attached(random_matrix(case.plan))
    tiles = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        together = model.get_image_features(tiles).pooler_output
        alone = [model.get_image_features(tile[None]).pooler_output for tile in tiles]
    assert together.shape == (3, 4, 24)
    assert_near(together, torch.cat(alone))


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("vision_feature_layer", [-2, -1], "reads one layer"),
        ("vision_feature_select_strategy", "full", "not a square grid"),
        ("downsample_ratio", 0, "downsample_ratio is 0"),
        ("downsample_ratio", "0.5", "downsample_ratio is '0.5'"),
        ("downsample_ratio", 0.25, "reads 64 channels"),
    ],
)
def test_configs_its_code_cannot_compute_are_refused(
    key: str, value: Any, reason: str, tmp_path: Path
) -> None:
    folder = write_tiny_internvl(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    config[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(AnatomyError, match=reason):
        dcsurgery.inspect(folder)
