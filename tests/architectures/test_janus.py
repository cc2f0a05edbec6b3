"""Janus: the connector serves understanding and leaves image generation alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dcsurgery.connectors.request import Connector
from tests.architectures.cases import TinyModel, load, make_case
from tests.architectures.contract import Contract
from tests.architectures.fresh import check_whole_way, save_fresh
from tests.architectures.inputs import image_inputs
from tests.surgery import random_matrix
from tests.tiny.janus import janus_config, write_tiny_janus


class TestJanus(Contract):
    @classmethod
    def tiny(cls, folder: Path, shards: int) -> TinyModel:
        return TinyModel(write_tiny_janus(folder, shards=shards), image_inputs(16, 16))

    def states(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        pixels = inputs["pixel_values"].to(model.dtype)
        return tuple(model.model.vision_model(pixels, output_hidden_states=True).hidden_states)

    def loud_norms(self, model: Any) -> tuple[nn.Module, ...]:
        return (model.model.vision_model.post_layernorm,)


@pytest.mark.slow
def test_a_fresh_model_of_other_sizes(tmp_path: Path) -> None:
    config = janus_config(depth=3, width=24, image_size=18, patch_size=6)
    config["vision_config"] |= {"depth": 3, "attention_bias": False}
    folder = save_fresh(tmp_path / "base", config)
    check_whole_way(TestJanus(), folder, image_inputs(9, 18), tmp_path / "out")


def test_image_generation_is_the_base(tmp_path: Path) -> None:
    tiny = TestJanus.tiny(tmp_path / "base", 1)
    case = make_case(tiny, Connector("dci"))
    drawn = []
    for model in (load(tiny.folder), case.attached(random_matrix(case.plan))):
        model.generation_config.generation_kwargs = {"boi_token_id": 5}
        inputs = tiny.inputs(model, 1, 0)
        drawn.append(
            model.generate(**inputs, generation_mode="image", do_sample=False, guidance_scale=2)
        )
    assert drawn[0].shape == (1, 16)
    assert torch.equal(*drawn)
