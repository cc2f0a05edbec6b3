"""DeepSeek-VL: SigLIP inside a module called vision_model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dcsurgery.tiny.deepseek_vl import deepseek_vl_config, write_tiny_deepseek_vl
from tests.architectures.cases import TinyModel
from tests.architectures.contract import Contract
from tests.architectures.fresh import check_whole_way, save_fresh
from tests.architectures.inputs import image_inputs


class TestDeepseekVL(Contract):
    @classmethod
    def tiny(cls, folder: Path, shards: int) -> TinyModel:
        return TinyModel(write_tiny_deepseek_vl(folder, shards=shards), image_inputs(16, 16))

    def states(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        pixels = inputs["pixel_values"].to(model.dtype)
        return tuple(model.model.vision_model(pixels, output_hidden_states=True).hidden_states)

    def loud_norms(self, model: Any) -> tuple[nn.Module, ...]:
        return (model.model.vision_model.post_layernorm,)


def test_a_fresh_model_of_other_sizes(tmp_path: Path) -> None:
    config = deepseek_vl_config(depth=3, width=24, image_size=18, patch_size=6)
    folder = save_fresh(tmp_path / "base", config)
    check_whole_way(TestDeepseekVL(), folder, image_inputs(9, 18), tmp_path / "out")
