"""VideoLLaMA 3: bilinear merge by a factor that every picture brings along."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tests.architectures.packed import Picture, VideoContract
from tests.tiny.video_llama_3 import write_tiny_video_llama_3

# Merge size of each picture: published image processors say 1, video processors 2.
MERGES = (2, 1, 2, 2)


class TestVideoLlama3(VideoContract):
    write = staticmethod(write_tiny_video_llama_3)
    other_sizes: ClassVar = {"depth": 6, "width": 32, "patch_size": 6}
    typed = False

    @classmethod
    def tower(cls, model: Any) -> Any:
        return model.model.vision_model

    @classmethod
    def patch_weight(cls, model: Any) -> Tensor:
        weight: Tensor = cls.tower(model).embeddings.patch_embedding.weight
        return weight

    @classmethod
    def merge(cls, model: Any, index: int) -> int:
        return MERGES[index]

    @classmethod
    def packed(cls, model: Any, pictures: list[Picture]) -> dict[str, Tensor]:
        merges = torch.tensor([picture.merge for picture in pictures])
        kind = "video" if pictures[0].video else "image"
        return {**super().packed(model, pictures), f"{kind}_merge_sizes": merges}

    def projected(self, model: Any) -> Any:
        return model.model.projector

    def states(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        output = self.tower(model)(
            inputs["pixel_values"].to(model.dtype),
            inputs["image_grid_thw"],
            inputs["image_merge_sizes"],
            output_hidden_states=True,
        )
        return tuple(output.hidden_states)

    def rows(self, model: Any, state: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        grids, merges = inputs["image_grid_thw"], inputs["image_merge_sizes"]
        merged: Tensor = self.tower(model).pixel_unshuffle(state, grids, merges)
        return merged

    def loud_norms(self, model: Any) -> tuple[nn.Module, ...]:
        return (model.model.vision_model.post_layernorm,)
