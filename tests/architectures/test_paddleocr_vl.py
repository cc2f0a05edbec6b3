"""PaddleOCR-VL: raster order, a projector called image by image under another published name."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tests.architectures.cases import TinyModel, make_case
from tests.architectures.packed import GRIDS, PackedContract, Picture, packed_forward
from tests.closeness import assert_near
from tests.surgery import random_matrix
from tests.tiny.paddleocr_vl import write_tiny_paddleocr_vl


class TestPaddleOCRVL(PackedContract):
    write = staticmethod(write_tiny_paddleocr_vl)
    other_sizes: ClassVar = {"depth": 6, "width": 32, "patch_size": 6, "merge": 4, "grid": 8}

    @classmethod
    def packed(cls, model: Any, pictures: list[Picture]) -> dict[str, Tensor]:
        inputs = super().packed(model, pictures)
        shape = cls.patch_weight(model).shape[1:]
        return {**inputs, "pixel_values": inputs["pixel_values"].unflatten(1, shape)}

    @classmethod
    def patch_weight(cls, model: Any) -> Tensor:
        weight: Tensor = model.model.visual.vision_model.embeddings.patch_embedding.weight
        return weight

    def projected(self, model: Any) -> Any:
        return model.model.projector

    def states(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return super().states(
            model, {**inputs, "pixel_values": inputs["pixel_values"].unsqueeze(0)}
        )

    def rows(self, model: Any, state: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Windows of one picture, cut as a convolution does, then channels last."""
        m = model.config.vision_config.spatial_merge_size
        t, h, w = inputs["image_grid_thw"][0].tolist()
        maps = state.view(t, h, w, -1).permute(0, 3, 1, 2)
        windows = torch.nn.functional.unfold(maps, m, stride=m).unflatten(1, (-1, m * m))
        return windows.permute(0, 3, 2, 1).flatten(0, 1).flatten(1)

    def loud_norms(self, model: Any) -> tuple[nn.Module, ...]:
        return (model.model.visual.vision_model.post_layernorm, model.model.projector.pre_norm)

    def test_every_image_gets_its_own_rows(self, tiny_model: TinyModel) -> None:
        """The first matrix runs once per image: features of three are those of each alone."""
        case = make_case(tiny_model, self.specs[0])
        model = case.attached(random_matrix(case.plan))
        pictures = [Picture(grid, 2) for grid in GRIDS[:3]]
        inputs = self.prompts(model, [pictures])
        (together,) = self.features_of(model, lambda: packed_forward(model, inputs))
        patches = inputs["pixel_values"].split([picture.patches for picture in pictures])
        alone = []
        for part, grid in zip(patches, inputs["image_grid_thw"], strict=True):
            call = {"pixel_values": part, "image_grid_thw": grid[None]}
            alone += self.features_of(model, lambda c=call: model.model.get_image_features(**c))
        assert_near(together, torch.cat(alone))
