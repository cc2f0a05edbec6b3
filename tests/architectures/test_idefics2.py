"""Idefics2: two first matrices, pictures of different sizes padded to one, a perceiver behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import dcsurgery
from dcsurgery.architectures import named
from dcsurgery.verification.models import image_features
from tests.architectures.cases import TinyModel, load, make_case
from tests.architectures.contract import Contract
from tests.architectures.fresh import check_whole_way, save_fresh
from tests.architectures.inputs import idefics2_inputs
from tests.closeness import assert_near
from tests.surgery import random_matrix
from tests.tiny.idefics2 import idefics2_config, write_tiny_idefics2


class Idefics2Contract(Contract):
    @classmethod
    def tiny(cls, folder: Path, shards: int) -> TinyModel:
        return TinyModel(write_tiny_idefics2(folder, shards=shards), idefics2_inputs)

    def states(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        pixels = inputs["pixel_values"].flatten(0, 1)
        return tuple(model.model.vision_model(pixels, output_hidden_states=True).hidden_states)

    def loud_norms(self, model: Any) -> tuple[nn.Module, ...]:
        return (model.model.vision_model.post_layernorm,)


class TestIdefics2(Idefics2Contract):
    def test_both_matrices_have_rows_of_their_own(self, tiny_model: TinyModel) -> None:
        """D is one stack: gate's rows, then up's; either half alone changes the features."""
        case = make_case(tiny_model, self.specs[0])
        assert [site.out_features for site in case.anatomy.projector.sites] == [48, 48]
        weight = random_matrix(case.plan)
        assert weight.shape == (96, 2 * 16)
        found = []
        for half in (slice(0, 48), slice(48, 96)):
            own = torch.zeros_like(weight)
            own[half] = weight[half]
            model = case.attached(own)
            inputs = idefics2_inputs(model, 1, 1)
            with torch.no_grad():
                found.append(case.tiny.forward(model, inputs))
        base = load(tiny_model.folder)
        with torch.no_grad():
            plain = case.tiny.forward(base, idefics2_inputs(base, 1, 1))
        assert all((item - plain).abs().max() > 0.05 for item in found)
        assert (found[0] - found[1]).abs().max() > 0.05

    def test_padding_pictures_are_left_out(self, tiny_model: TinyModel) -> None:
        """Prompts with one and two pictures share a tensor; the missing one is zeros."""
        case = make_case(tiny_model, self.specs[0])
        model = case.attached(random_matrix(case.plan))
        inputs = idefics2_inputs(model, 2, 2)
        pixels, mask = inputs["pixel_values"], inputs["pixel_attention_mask"]
        pixels[1, 1], mask[1, 1] = 0, False
        with torch.no_grad():
            found = self.features(model, pixels, mask).split([8, 4])
            for index, count in enumerate((2, 1)):
                own = (slice(index, index + 1), slice(count))
                alone = self.features(model, pixels[own], mask[own])
                assert_near(found[index], alone)

    def features(self, model: Any, pixels: Tensor, mask: Tensor) -> Tensor:
        inputs = {"pixel_values": pixels, "pixel_attention_mask": mask}
        return image_features(model, named("idefics2"), inputs)

    def test_processor_and_generate(self, tiny_model: TinyModel, tmp_path: Path) -> None:
        """Pictures of different shapes through the published processor, cut in five each."""
        from transformers import AutoProcessor

        dcsurgery.convert(tiny_model.folder, tmp_path / "out")
        model = dcsurgery.load(tmp_path / "out")
        processor = AutoProcessor.from_pretrained(tiny_model.folder)
        pictures = [Image.new("RGB", size, "teal") for size in ((64, 40), (30, 60))]
        given = processor(
            text=["<image>what is this?", "<image>and this?"],
            images=[[picture] for picture in pictures],
            return_tensors="pt",
            padding=True,
        )
        assert given["pixel_values"].shape[:2] == (2, 5)
        assert (given["input_ids"] == model.config.image_token_id).sum() == 2 * 5 * 4
        settings = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
        answer = model.generate(**given, **settings)
        assert torch.equal(answer, load(tiny_model.folder).generate(**given, **settings))


@pytest.mark.slow
def test_a_fresh_model_of_other_sizes(tmp_path: Path) -> None:
    config = idefics2_config(latents=3, depth=3, width=24, image_size=18, patch_size=6)
    folder = save_fresh(tmp_path / "base", config)
    check_whole_way(Idefics2Contract(), folder, idefics2_inputs, tmp_path / "out")
    assert dcsurgery.inspect(folder).anatomy.image_tokens == 3
