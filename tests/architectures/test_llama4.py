"""Llama 4: the class token behind the patches, the first matrix in an adapter inside the tower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama4.modeling_llama4 import pixel_shuffle

import dcsurgery
from dcsurgery.anatomy import Anatomy
from dcsurgery.errors import AnatomyError
from tests.architectures.cases import TinyModel, load
from tests.architectures.contract import Contract
from tests.architectures.fresh import check_whole_way, save_fresh
from tests.architectures.inputs import image_inputs
from tests.tiny.llama4 import llama4_config, write_tiny_llama4


class Llama4Contract(Contract):
    @classmethod
    def tiny(cls, folder: Path, shards: int) -> TinyModel:
        return TinyModel(write_tiny_llama4(folder, shards=shards), image_inputs(4, 16))

    def states(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        pixels = inputs["pixel_values"].to(model.dtype)
        return tuple(model.vision_model(pixels, output_hidden_states=True).hidden_states)

    def tokens(self, anatomy: Anatomy, inputs: dict[str, Tensor]) -> int:
        """CLS follows the patches."""
        return anatomy.tower.grid**2 + 1

    def rows(self, model: Any, state: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        shuffled: Tensor = pixel_shuffle(
            state[:, :-1], model.config.vision_config.pixel_shuffle_ratio
        )
        return shuffled

    def loud_norms(self, model: Any) -> tuple[nn.Module, ...]:
        return (model.vision_model.layernorm_post,)


class TestLlama4(Llama4Contract):
    def test_several_tiles(self, tiny_model: TinyModel) -> None:
        """A picture cut into tiles is a longer batch to the tower, and more image tokens."""
        model = load(tiny_model.folder)
        inputs = image_inputs(3 * 4, 16)(model, 1, 1)
        draw = torch.Generator().manual_seed(3)
        inputs["pixel_values"] = torch.randn(3, 3, 16, 16, generator=draw)
        with torch.no_grad():
            wanted = model(**inputs).logits
        dcsurgery.convert(tiny_model.folder, tiny_model.folder.parent / "tiles")
        upgraded = dcsurgery.load(tiny_model.folder.parent / "tiles", dtype=torch.float32)
        with torch.no_grad():
            assert torch.equal(upgraded(**inputs).logits, wanted)


@pytest.mark.slow
def test_a_fresh_model_of_other_sizes(tmp_path: Path) -> None:
    config = llama4_config(4, depth=3, width=32, image_size=24, patch_size=3)
    folder = save_fresh(tmp_path / "base", config)
    check_whole_way(Llama4Contract(), folder, image_inputs(4, 24), tmp_path / "out")
    anatomy = dcsurgery.inspect(folder).anatomy
    assert (anatomy.image_tokens, anatomy.feature_width, anatomy.normed) == (4, 16 * 32, True)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("pixel_shuffle_ratio", 0.25, r"gives 256 \(4 x 4 patches of 16"),
        ("pixel_shuffle_ratio", 2, "pixel_shuffle_ratio is 2"),
        ("projector_input_dim", 24, "vision_config.projector_input_dim is 24"),
    ],
)
def test_contradictions_are_refused(key: str, value: Any, message: str, tmp_path: Path) -> None:
    folder = write_tiny_llama4(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(AnatomyError, match=message):
        dcsurgery.inspect(folder)
