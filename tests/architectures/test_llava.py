"""LLaVA-1.5 in the Hugging Face layout, with each of its towers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from dcsurgery.connectors.request import Connector
from dcsurgery.tiny import llava_config, write_tiny_llava
from dcsurgery.tiny.llava import Tower, write_llava
from tests.architectures.cases import TinyModel
from tests.architectures.contract import StockContract
from tests.architectures.inputs import llava_inputs


class LlavaContract(StockContract):
    tower: Tower
    thorough = True
    specs = (Connector("dci"), Connector("dci", groups=3), Connector("sci"))

    @classmethod
    def tiny(cls, folder: Path, shards: int) -> TinyModel:
        write_tiny_llava(folder, cls.tower, shards=shards)
        return TinyModel(folder, llava_inputs)


class TestClip(LlavaContract):
    tower = "clip"

    def rows(self, model: Any, state: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        return state[:, 1:]


class TestSiglip(LlavaContract):
    tower = "siglip"


class TestPixtral(LlavaContract):
    tower = "pixtral"


class CroppedContract(LlavaContract):
    specs = (Connector("dci"), Connector("sci"))
    thorough = False

    def rows(self, model: Any, state: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        return state[:, 1:]


class TestDinov2(CroppedContract):
    tower = "dinov2"


class TestDinov2WithRegisters(CroppedContract):
    tower = "dinov2_with_registers"


class TestDinov3(CroppedContract):
    tower = "dinov3_vit"


class TestBaseThatReadsSeveralLayers(StockContract):
    """A base whose config lists layers already, out of order; SigLIP, patch tokens only."""

    specs = (Connector("dci"), Connector("sci", layers=((0, 3),)))

    @classmethod
    def tiny(cls, folder: Path, shards: int) -> TinyModel:
        config = llava_config(
            "siglip", depth=4, width=16, image_size=16, patch_size=4, feature_layer=-2
        )
        config["vision_feature_layer"] = [-2, 1]
        return TinyModel(write_llava(folder, config, shards=shards), llava_inputs)
