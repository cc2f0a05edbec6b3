"""Qianfan-OCR: InternVL whose files have other names than the loaded model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

import dcsurgery
from dcsurgery.connectors.request import Connector
from tests.architectures.cases import TinyModel, make_case
from tests.architectures.fresh import check_whole_way, save_fresh
from tests.architectures.inputs import image_inputs
from tests.architectures.internvl import InternVLContract
from tests.tiny.qianfan_ocr import qianfan_ocr_config, write_tiny_qianfan_ocr


class TestQianfanOCR(InternVLContract):
    @classmethod
    def tiny(cls, folder: Path, shards: int) -> TinyModel:
        return TinyModel(write_tiny_qianfan_ocr(folder, shards=shards), image_inputs(4, 16))


@pytest.mark.parametrize("original", [True, False], ids=["file names", "module names"])
@pytest.mark.slow
def test_a_fresh_model_of_other_sizes(original: bool, tmp_path: Path) -> None:
    config = qianfan_ocr_config(0.25, depth=3, width=24, image_size=48, patch_size=6)
    folder = save_fresh(tmp_path / "base", config, save_original_format=original)
    names = dcsurgery.inspect(folder).anatomy.projector.tensors
    assert ("mlp1.1.weight" in names) == original
    check_whole_way(InternVLContract(), folder, image_inputs(4, 48), tmp_path / "out")


@pytest.mark.parametrize(("layer", "normed"), [(-1, True), (3, True), (-2, False)])
def test_the_last_state_has_passed_the_last_norm(layer: int, normed: bool, tmp_path: Path) -> None:
    """Unlike InternVL's, this tower gives its output as the last hidden state."""
    config: dict[str, Any] = qianfan_ocr_config(depth=3)
    config["vision_config"]["use_mean_pooling"] = False
    config["vision_feature_layer"] = layer
    folder = save_fresh(tmp_path / "base", config)
    assert dcsurgery.inspect(folder).anatomy.normed is normed
    case = make_case(TinyModel(folder, image_inputs(4, 16)), Connector("sci", layers=((0, 2),)))
    base = case.attached()
    InternVLContract().test_site_reads_the_feature_layer(case, base)
    assert isinstance(base.model.vision_tower.layernorm, nn.LayerNorm)
