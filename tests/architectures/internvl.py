"""What InternVL and the families built like it share."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tests.architectures.contract import Contract


class InternVLContract(Contract):
    def rows(self, model: Any, state: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        patches = state[:, 1:]
        side = int(patches.shape[1] ** 0.5)
        grid = patches.reshape(len(patches), side, side, -1)
        shuffled: Tensor = model.model.pixel_shuffle(grid, model.config.downsample_ratio)
        return shuffled.flatten(1, 2)

    def loud_norms(self, model: Any) -> tuple[nn.Module, ...]:
        return (model.model.multi_modal_projector.layer_norm, model.model.vision_tower.layernorm)
