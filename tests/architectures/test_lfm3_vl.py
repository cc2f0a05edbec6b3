"""LFM3-VL: packed patches through convolutions and attention, norm and merge in the projector."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import transformers
from torch import Tensor, nn

from tests.architectures.packed import VideoContract
from tests.tiny.lfm3_vl import write_tiny_lfm3_vl


@pytest.mark.skipif(
    not hasattr(transformers, "Lfm3VlForConditionalGeneration"), reason="newer transformers"
)
class TestLfm3VL(VideoContract):
    write = staticmethod(write_tiny_lfm3_vl)
    other_sizes: ClassVar = {"depth": 6, "width": 32, "patch_size": 6, "merge": 4}
    typed = False

    @classmethod
    def tower(cls, model: Any) -> Any:
        return model.model.vision_tower

    @classmethod
    def patch_weight(cls, model: Any) -> Tensor:
        weight: Tensor = cls.tower(model).patch_embed.weight
        return weight

    def projected(self, model: Any) -> Any:
        return model.model.multi_modal_projector

    def rows(self, model: Any, state: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        return state.reshape(-1, model.model.multi_modal_projector.merged_hidden_size)

    def loud_norms(self, model: Any) -> tuple[nn.Module, ...]:
        return (model.model.multi_modal_projector.layer_norm,)
