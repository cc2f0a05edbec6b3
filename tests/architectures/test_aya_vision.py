"""Aya Vision: one hidden state, pixel shuffle, LayerNorm, SwiGLU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import dcsurgery
from dcsurgery.errors import AnatomyError
from tests.architectures.cases import TinyModel
from tests.architectures.contract import Contract
from tests.architectures.fresh import check_whole_way, save_fresh
from tests.architectures.inputs import image_inputs
from tests.tiny.aya_vision import aya_vision_config, write_tiny_aya_vision
from tests.tiny.parts import vision_section


class TestAyaVision(Contract):
    @classmethod
    def tiny(cls, folder: Path, shards: int) -> TinyModel:
        return TinyModel(write_tiny_aya_vision(folder, shards=shards), image_inputs(4, 16))

    def rows(self, model: Any, state: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        cut = 1 if model.config.vision_config.model_type == "clip_vision_model" else 0
        shuffled: Tensor = model.model.multi_modal_projector.pixel_shuffle(state[:, cut:])
        return shuffled

    def loud_norms(self, model: Any) -> tuple[nn.Module, ...]:
        return (model.model.multi_modal_projector.layernorm,)


def test_a_fresh_model_that_reads_an_earlier_layer(tmp_path: Path) -> None:
    config = aya_vision_config(3, depth=5, width=24, image_size=36, patch_size=6)
    config["vision_feature_layer"] = -2
    folder = save_fresh(tmp_path / "base", config)
    assert dcsurgery.inspect(folder).anatomy.feature_layers == (4,)
    check_whole_way(TestAyaVision(), folder, image_inputs(4, 36), tmp_path / "out")


def test_a_fresh_model_with_a_clip_tower(tmp_path: Path) -> None:
    config = aya_vision_config()
    config["vision_config"] = {**vision_section(), "model_type": "clip_vision_model"}
    config["vision_feature_select_strategy"] = "default"
    folder = save_fresh(tmp_path / "base", config)
    check_whole_way(TestAyaVision(), folder, image_inputs(4, 16), tmp_path / "out")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("vision_feature_layer", [-2, -1], "reads one layer"),
        ("vision_feature_layer", 9, "outside the tower's states"),
        ("vision_feature_select_strategy", "default", "not a square grid"),
    ],
)
def test_configs_its_code_cannot_compute_are_refused(
    key: str, value: Any, reason: str, tmp_path: Path
) -> None:
    folder = write_tiny_aya_vision(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    config[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(AnatomyError, match=reason):
        dcsurgery.inspect(folder)
