"""Idefics3 and SmolVLM: five-dimensional pictures, pixel shuffle by any factor, one matrix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dcsurgery
from dcsurgery.connectors.request import Connector
from dcsurgery.errors import AnatomyError
from tests.architectures.cases import TinyModel, load, logits, make_case
from tests.architectures.contract import Contract
from tests.architectures.fresh import check_whole_way, save_fresh
from tests.architectures.inputs import Inputs, image_inputs
from tests.surgery import random_matrix
from tests.tiny.idefics3 import (
    Family,
    idefics3_config,
    write_tiny_idefics3,
    write_tiny_smolvlm,
)

FAMILIES: tuple[Family, ...] = ("idefics3", "smolvlm")


def nested_inputs(tokens: int, side: int) -> Inputs:
    """pixel_values are [batch, images, 3, side, side]."""
    plain = image_inputs(tokens, side)

    def inputs(model: Any, batch: int, images: int) -> dict[str, Tensor]:
        values = plain(model, batch, images)
        if images:
            values["pixel_values"] = values["pixel_values"].unflatten(0, (batch, images))
        return values

    return inputs


class Idefics3Contract(Contract):
    def states(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        pixels = inputs["pixel_values"].to(model.dtype).flatten(0, 1)
        mask = inputs.get("pixel_attention_mask")
        if mask is not None:
            patch = model.config.vision_config.patch_size
            mask = mask.flatten(0, 1)[:, ::patch, ::patch].bool()
        run = model.model.vision_model(pixels, mask, output_hidden_states=True)
        return tuple(run.hidden_states)

    def rows(self, model: Any, state: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        shuffle, factor = model.model.connector.pixel_shuffle, model.config.scale_factor
        shuffled: Tensor = shuffle(state.contiguous(), factor)
        return shuffled

    def loud_norms(self, model: Any) -> tuple[nn.Module, ...]:
        return (model.model.vision_model.post_layernorm,)


class TestIdefics3(Idefics3Contract):
    @classmethod
    def tiny(cls, folder: Path, shards: int) -> TinyModel:
        return TinyModel(write_tiny_idefics3(folder, shards=shards), nested_inputs(4, 16))


class TestSmolVLM(Idefics3Contract):
    """As SmolVLM-256M joins patches: four by four."""

    @classmethod
    def tiny(cls, folder: Path, shards: int) -> TinyModel:
        sizes = {"scale_factor": 4, "image_size": 32}
        return TinyModel(write_tiny_smolvlm(folder, shards=shards, **sizes), nested_inputs(4, 32))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_model_that_joins_windows_of_nine(family: Family, tmp_path: Path) -> None:
    config = idefics3_config(family, 3, depth=3, width=24, image_size=36, patch_size=6)
    folder = save_fresh(tmp_path / "base", config)
    assert dcsurgery.inspect(folder).anatomy.feature_width == 9 * 24
    check_whole_way(Idefics3Contract(), folder, nested_inputs(4, 36), tmp_path / "out")


@pytest.mark.parametrize("contract", [TestIdefics3, TestSmolVLM])
def test_empty_pictures_that_fill_up_a_batch_are_skipped(
    contract: type[Idefics3Contract], tmp_path: Path
) -> None:
    """A prompt with fewer pictures (or frames) than another one is padded with zeros."""
    tiny = contract.tiny(tmp_path / "base", 1)
    case = make_case(tiny, Connector("dci"))
    model = case.attached(random_matrix(case.plan))
    inputs = tiny.inputs(model, 1, 1)
    padded = torch.cat([inputs["pixel_values"], torch.zeros_like(inputs["pixel_values"])], dim=1)
    with torch.no_grad():
        expected = model(**inputs).logits
        assert torch.equal(model(**{**inputs, "pixel_values": padded}).logits, expected)


def test_a_masked_border_is_shuffled_like_the_rest(tmp_path: Path) -> None:
    """A picture that does not fill its square has a mask over pixels; the grid stays square."""
    tiny = TestIdefics3.tiny(tmp_path / "base", 1)

    def masked(model: Any, batch: int, images: int) -> dict[str, Tensor]:
        values = tiny.inputs(model, batch, images)
        mask = torch.ones(batch, images, 16, 16, dtype=torch.long)
        mask[..., 8:] = 0
        return {**values, "pixel_attention_mask": mask}

    case = make_case(TinyModel(tiny.folder, masked), Connector("dci"))
    base = load(tiny.folder)
    assert (logits(case, base) - base(**tiny.inputs(base, 1, 1)).logits).abs().max() > 0.01
    TestIdefics3().test_site_reads_the_feature_layer(case, base)
    TestIdefics3().test_random_matrix_is_the_formula(case, base)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"scale_factor": 4}, "reads 64 channels"),
        ({"scale_factor": "2"}, "scale_factor in config.json is '2'"),
    ],
)
def test_a_config_the_tensors_contradict_is_refused(
    config: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    folder = write_tiny_idefics3(tmp_path / "base")
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stated, **config}))
    with pytest.raises(AnatomyError, match=reason):
        dcsurgery.inspect(folder)
