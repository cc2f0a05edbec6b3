"""Command A Vision: pixel shuffle straight into the first matrix."""

from __future__ import annotations

import json
from importlib.util import find_spec
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
from tests.tiny.cohere2_vision import cohere2_vision_config, write_tiny_cohere2_vision


class TestCohere2Vision(Contract):
    @classmethod
    def tiny(cls, folder: Path, shards: int) -> TinyModel:
        return TinyModel(write_tiny_cohere2_vision(folder, shards=shards), image_inputs(4, 16))

    def rows(self, model: Any, state: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        shuffled: Tensor = model.model.multi_modal_projector.pixel_shuffle(state)
        return shuffled

    def loud_norms(self, model: Any) -> tuple[nn.Module, ...]:
        return (model.model.vision_tower.post_layernorm,)


def test_a_fresh_model_that_joins_windows_of_nine(tmp_path: Path) -> None:
    config = cohere2_vision_config(3, depth=3, width=24, image_size=36, patch_size=6)
    folder = save_fresh(tmp_path / "base", config)
    check_whole_way(TestCohere2Vision(), folder, image_inputs(4, 36), tmp_path / "out")


def test_a_factor_the_matrix_contradicts_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_cohere2_vision(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    config["downsample_factor"] = 4
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(AnatomyError, match=r"reads 64 channels.* gives 256 \(4 x 4 patches of 16"):
        dcsurgery.inspect(folder)


def test_verify_does_without_an_image_processor_that_needs_torchvision(tmp_path: Path) -> None:
    """transformers has no other image processor for this family, and torchvision is optional."""
    folder = write_tiny_cohere2_vision(tmp_path / "base")
    processor = {
        "image_processor_type": "Cohere2VisionImageProcessor",
        "size": {"height": 16, "width": 16},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    dcsurgery.convert(folder, tmp_path / "out")
    report = dcsurgery.verify(tmp_path / "out")
    assert report.passed, report.checks
    noted = any("needs torchvision" in check.measured for check in report.checks)
    assert noted == (find_spec("torchvision") is None)
