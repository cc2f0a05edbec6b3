"""ViP-LLaVA: several layers joined, then a LayerNorm over all of them; a branch only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import Tensor, nn
from transformers import AutoProcessor

import dcsurgery
from dcsurgery.connectors.request import Connector
from dcsurgery.data.pictures import sample_photo
from dcsurgery.errors import PlanError
from tests.architectures.cases import TinyModel
from tests.architectures.contract import Contract
from tests.architectures.fresh import check_fresh_model
from tests.architectures.published import dissect, llava_shapes
from tests.architectures.tiles import square_inputs
from tests.surgery import random_matrix, write_delta
from tests.tiny.vipllava import vipllava_config, write_tiny_vipllava


class VipLlavaContract(Contract):
    def rows(self, model: Any, state: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        return state[:, 1:]

    def loud_norms(self, model: Any) -> tuple[nn.Module, ...]:
        return (model.model.multi_modal_projector.projector_layernorm,)


class TestFiveLayers(VipLlavaContract):
    specs = (Connector("dci"),)

    @classmethod
    def tiny(cls, folder: Path, shards: int) -> TinyModel:
        return TinyModel(write_tiny_vipllava(folder, shards=shards), square_inputs)


class TestOneLayer(VipLlavaContract):
    specs = (Connector("sci"),)

    @classmethod
    def tiny(cls, folder: Path, shards: int) -> TinyModel:
        sizes = {"depth": 5, "width": 12, "image_size": 15, "patch_size": 5, "feature_layer": -2}
        return TinyModel(write_tiny_vipllava(folder, shards=shards, **sizes), square_inputs)


@pytest.mark.parametrize("key", ["vision_feature_layers", "vision_feature_layer", None])
def test_published_config(key: str | None) -> None:
    """transformers 4.x and 5.x name the layers differently; without them it is the default."""
    config: dict[str, Any] = {"architectures": ["VipLlavaForConditionalGeneration"]}
    config |= {key: [-2, -5, -8, -11, 6]} if key else {}
    found = dissect(config, llava_shapes(24, 1024, 4096, 5 * 1024))
    assert (found.feature_layers, found.feature_layer) == ((23, 20, 17, 14, 6), 23)
    assert (found.feature_width, found.dropped_tokens, found.image_tokens) == (1024, 1, 576)


def test_the_older_name_wins_as_in_transformers() -> None:
    config = {**vipllava_config(), "vision_feature_layer": [-1, -2, -3, 1, 0]}
    found = dissect(config, llava_shapes(4, 16, 24, 5 * 16))
    assert found.feature_layers == (3, 2, 1, 0, 2)


@pytest.mark.slow
def test_model_saved_by_transformers(tmp_path: Path) -> None:
    config = vipllava_config(depth=6, feature_layer=[-2, 1, 0])
    check_fresh_model(config, tmp_path, TinyModel(tmp_path, square_inputs))


def test_pool_end_to_end(tmp_path: Path) -> None:
    base = write_tiny_vipllava(tmp_path / "base")
    plan = dcsurgery.convert(base, tmp_path / "zero", pool=2).plan
    write_delta(base, tmp_path / "out", random_matrix(plan), pool=2)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    model = dcsurgery.load(tmp_path / "out")
    with Image.open(sample_photo()) as photo:
        inputs = processor(images=photo.convert("RGB"), text="<image> Who?", return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == plan.image_tokens == 4
    answer = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert answer.shape[1] == inputs["input_ids"].shape[1] + 3
    report = dcsurgery.verify(tmp_path / "out", logits=True)
    assert report.passed, report.checks


def test_stock_form_is_refused(tmp_path: Path) -> None:
    """Zero columns under the LayerNorm would change what every other column reads."""
    base = write_tiny_vipllava(tmp_path / "base")
    with pytest.raises(PlanError, match="no stock form"):
        dcsurgery.convert(base, tmp_path / "out", form="stock")
    assert not (tmp_path / "out").exists()
