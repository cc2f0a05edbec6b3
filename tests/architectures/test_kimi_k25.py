"""Kimi K2.5: packed patches in raster order, the frames of a video averaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import transformers
from torch import Tensor, nn

import dcsurgery
from dcsurgery.architectures import named
from tests.architectures.cases import TinyModel, load, make_case
from tests.architectures.fresh import save_fresh
from tests.architectures.packed import PackedContract, Picture
from tests.closeness import assert_near
from tests.surgery import random_matrix
from tests.tiny.kimi_k25 import kimi_k25_config, write_tiny_kimi_k25


@pytest.mark.skipif(
    not hasattr(transformers, "Kimi_K25ForConditionalGeneration"), reason="newer transformers"
)
class TestKimiK25(PackedContract):
    forms = ("delta",)
    write = staticmethod(write_tiny_kimi_k25)
    other_sizes: ClassVar = {"depth": 6, "width": 32, "patch_size": 6, "merge": 4}
    typed = False

    @classmethod
    def tower(cls, model: Any) -> Any:
        return model.model.vision_tower

    @classmethod
    def merge(cls, model: Any, index: int) -> int:
        return int(model.config.vision_config.merge_kernel_size[0])

    @classmethod
    def packed(cls, model: Any, pictures: list[Picture]) -> dict[str, Tensor]:
        """Patches are small pictures here, not rows of numbers."""
        size = cls.patch_weight(model).shape[1:]
        return {
            key: value.unflatten(1, size) if key.startswith("pixel") else value
            for key, value in super().packed(model, pictures).items()
        }

    def projected(self, model: Any) -> Any:
        return model.model.mm_projector

    def rows(self, model: Any, state: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """The model's older way, which it keeps: picture by picture."""
        merged: Tensor = self.tower(model).temporal_patch_merger(state, inputs["image_grid_thw"])
        return merged.flatten(1)

    def loud_norms(self, model: Any) -> tuple[nn.Module, ...]:
        return (self.tower(model).final_layernorm, model.model.mm_projector.pre_norm)

    def test_published_processor_files(self, tiny_model: TinyModel) -> None:
        """Patches cut without them are those of the published order: rows, columns, colours."""
        from PIL import Image

        preprocess = named("kimi_k25").preprocess
        assert preprocess is not None
        config = kimi_k25_config()
        picture = Image.linear_gradient("L").resize((128, 128)).convert("RGB")
        found = preprocess(config, [picture])
        assert found["pixel_values"].shape == (32 * 32, 3, 4, 4)
        assert found["image_grid_thw"].tolist() == [[1, 32, 32]]
        pixel = found["pixel_values"][32 * 5 + 2][:, 3, 1]
        wanted = torch.tensor(picture.getpixel((2 * 4 + 1, 5 * 4 + 3))) / 127.5 - 1
        assert torch.allclose(pixel, wanted)

    def test_frames_of_a_video_are_averaged(self, tiny_model: TinyModel) -> None:
        """Restated from all states: the mean of the group, then of the frames, then the matrix.

        Tower and projector are called one after the other: transformers' get_video_features counts
        every frame and fails where there are several.
        """
        case = make_case(tiny_model, self.specs[0])
        weight = random_matrix(case.plan)
        model, base = case.attached(weight), load(tiny_model.folder)
        inputs = self.packed(base, [Picture((3, 4, 8), 2)])
        arguments = (inputs["pixel_values"], inputs["image_grid_thw"])

        def project(inner: Any) -> Any:
            return inner.mm_projector(inner.vision_tower(*arguments).pooler_output)

        with torch.no_grad():
            states = self.states(base, inputs)
        added = []
        for block in case.layout.blocks:
            mean = torch.stack([states[layer] for layer in block.layers]).mean(0)
            frames = mean.view(3, 2, 2, 4, 2, -1).mean(0).transpose(1, 2)
            added.append(frames.reshape(8, -1))
        more = torch.cat(added, dim=-1) @ weight.T
        site = base.model.mm_projector.in_proj
        handle = site.register_forward_hook(
            lambda module, args, output: output + more.reshape(output.shape)
        )
        with torch.no_grad():
            wanted, seen = project(base.model), project(model.model)
            handle.remove()
            plain = project(base.model)
        assert_near(seen, wanted)
        assert (seen - plain).abs().max() > 0.05


def test_published_names_and_those_of_the_modules(tmp_path: Path) -> None:
    published = write_tiny_kimi_k25(tmp_path / "published")
    projector = dcsurgery.inspect(published).anatomy.projector
    assert projector.sites[0].weight == "mm_projector.proj.0.weight"
    model = load(published)
    names = dict(model.named_parameters())
    for tensor in projector.tensors:
        assert any(name.endswith(named("kimi_k25").parameter_name(tensor)) for name in names)
    fresh = save_fresh(tmp_path / "fresh", kimi_k25_config(), save_original_format=False)
    assert dcsurgery.inspect(fresh).anatomy.tower.depth == 4
