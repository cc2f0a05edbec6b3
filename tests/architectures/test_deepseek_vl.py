"""DeepSeek-VL: SigLIP inside a module called vision_model, alone and beside SAM."""

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
from tests.architectures.inputs import Inputs, image_inputs
from tests.surgery import random_matrix
from tests.tiny.deepseek_vl import (
    deepseek_vl_config,
    deepseek_vl_hybrid_config,
    write_tiny_deepseek_vl,
    write_tiny_deepseek_vl_hybrid,
)


def two_resolutions(tokens: int, side: int) -> Inputs:
    """Every picture twice, the second time of 32 pixels for SAM."""
    plain = image_inputs(tokens, side)

    def inputs(model: Any, batch: int, images: int) -> dict[str, Tensor]:
        values = plain(model, batch, images)
        if images:
            draw = torch.Generator().manual_seed(5)
            pixels = torch.randn(batch * images, 3, 32, 32, generator=draw)
            values["high_res_pixel_values"] = pixels.to(model.dtype)
        return values

    return inputs


class DeepseekVLContract(Contract):
    def states(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        pixels = inputs["pixel_values"].to(model.dtype)
        return tuple(model.model.vision_model(pixels, output_hidden_states=True).hidden_states)

    def loud_norms(self, model: Any) -> tuple[nn.Module, ...]:
        return (model.model.vision_model.post_layernorm,)


class TestDeepseekVL(DeepseekVLContract):
    @classmethod
    def tiny(cls, folder: Path, shards: int) -> TinyModel:
        return TinyModel(write_tiny_deepseek_vl(folder, shards=shards), image_inputs(16, 16))


class TestHybrid(DeepseekVLContract):
    @classmethod
    def tiny(cls, folder: Path, shards: int) -> TinyModel:
        write_tiny_deepseek_vl_hybrid(folder, shards=shards)
        return TinyModel(folder, two_resolutions(16, 16))


@pytest.mark.slow
def test_a_fresh_model_of_other_sizes(tmp_path: Path) -> None:
    config = deepseek_vl_config(depth=3, width=24, image_size=18, patch_size=6)
    folder = save_fresh(tmp_path / "base", config)
    check_whole_way(DeepseekVLContract(), folder, image_inputs(9, 18), tmp_path / "out")


def test_a_fresh_hybrid_of_other_sizes(tmp_path: Path) -> None:
    config = deepseek_vl_hybrid_config(depth=3, width=24, image_size=18, patch_size=6)
    folder = save_fresh(tmp_path / "base", config)
    check_whole_way(DeepseekVLContract(), folder, two_resolutions(9, 18), tmp_path / "out")


def test_the_half_that_sees_high_resolution_is_left_alone(tmp_path: Path) -> None:
    tiny = TestHybrid.tiny(tmp_path / "base", 1)
    case = make_case(tiny, Connector("dci"))
    assert case.anatomy.projector.sites[0].out_features == 12
    base, model = load(tiny.folder), case.attached(random_matrix(case.plan))
    low, high = halves(base, tiny.inputs(base, 1, 1))
    changed, same = halves(model, tiny.inputs(model, 1, 1))
    assert torch.equal(high, same)
    assert (low - changed).abs().max() > 0.05


def halves(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return what the projector makes of SigLIP and of SAM."""
    seen: dict[str, Tensor] = {}
    for name in ("vision_proj", "high_res_vision_proj"):
        half = getattr(model.model.aligner, name)
        half.register_forward_hook(lambda m, args, output, name=name: seen.update({name: output}))
    with torch.no_grad():
        model(**inputs)
    return seen["vision_proj"], seen["high_res_vision_proj"]
