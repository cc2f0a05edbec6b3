"""ERNIE 4.5 VL: the first of two merging matrices reads windows of patches, the other frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import dcsurgery
from dcsurgery.architectures import named
from tests.architectures.cases import TinyModel, load, make_case
from tests.architectures.packed import PackedContract, Picture
from tests.closeness import assert_near
from tests.surgery import random_matrix
from tests.tiny.ernie4_5_vl import write_tiny_ernie4_5_vl


class TestErnie45VL(PackedContract):
    write = staticmethod(write_tiny_ernie4_5_vl)
    other_sizes: ClassVar = {"depth": 6, "width": 32, "patch_size": 6, "merge": 4}

    @classmethod
    def tower(cls, model: Any) -> Any:
        return model.model.vision_tower

    def projected(self, model: Any) -> Any:
        return model.model.resampler_model

    def rows(self, model: Any, state: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        return state.reshape(-1, model.model.resampler_model.spatial_dim)

    def loud_norms(self, model: Any) -> tuple[nn.Module, ...]:
        return (self.tower(model).ln,)

    def test_frames_are_read_before_they_are_merged(self, tiny_model: TinyModel) -> None:
        """Rows of the first matrix for every frame, half as many tokens for the language model."""
        case = make_case(tiny_model, self.specs[0])
        weight = random_matrix(case.plan)
        model, base = case.attached(weight), load(tiny_model.folder)
        video = self.packed(base, [Picture((4, 4, 8), 2, video=True)])
        inputs = {
            "pixel_values": video["pixel_values_videos"],
            "image_grid_thw": video["video_grid_thw"],
        }
        with torch.no_grad():
            states = self.states(base, inputs)
        blocks = [
            torch.stack([states[layer] for layer in block.layers]).mean(0)
            for block in case.layout.blocks
        ]
        more = torch.cat([self.rows(base, mean, inputs) for mean in blocks], dim=-1) @ weight.T
        site = base.model.resampler_model.spatial_linear.fc1
        handle = site.register_forward_hook(lambda module, args, output: output + more)
        call = {"pixel_values_videos": video["pixel_values_videos"]}
        call["video_grid_thw"] = video["video_grid_thw"]
        wanted = self.features_of(base, lambda: base.model.get_video_features(**call))
        handle.remove()
        seen = self.features_of(model, lambda: model.model.get_video_features(**call))
        plain = self.features_of(base, lambda: base.model.get_video_features(**call))
        assert len(more) == 4 * 4 * 8 // 4 == 2 * len(seen[0])
        assert_near(seen[0], wanted[0])
        assert (seen[0] - plain[0]).abs().max() > 0.05


def test_published_names(tmp_path: Path) -> None:
    folder = write_tiny_ernie4_5_vl(tmp_path / "base")
    projector = dcsurgery.inspect(folder).anatomy.projector
    assert projector.sites[0].weight == "model.resampler_model.spatial_linear.0.weight"
    names = dict(load(folder).named_parameters())
    for tensor in projector.tensors:
        assert named("ernie4_5_vl").parameter_name(tensor) in names
