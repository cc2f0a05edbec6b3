"""PaliGemma 1 and 2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dcsurgery
from tests.architectures.cases import TinyModel
from tests.architectures.contract import Contract
from tests.architectures.fresh import check_whole_way, save_fresh
from tests.architectures.inputs import Inputs, image_inputs
from tests.tiny.paligemma import paligemma_config, write_tiny_paligemma


def prefix_inputs(tokens: int, side: int) -> Inputs:
    """The whole prompt is a prefix that sees itself in both directions."""
    plain = image_inputs(tokens, side)

    def inputs(model: Any, batch: int, images: int) -> dict[str, Tensor]:
        values = plain(model, batch, images)
        return {**values, "token_type_ids": torch.zeros_like(values["input_ids"])}

    return inputs


class PaliGemmaContract(Contract):
    text: str

    @classmethod
    def tiny(cls, folder: Path, shards: int) -> TinyModel:
        write_tiny_paligemma(folder, text=cls.text, shards=shards)
        return TinyModel(folder, prefix_inputs(16, 16))

    def loud_norms(self, model: Any) -> tuple[nn.Module, ...]:
        return (model.model.vision_tower.post_layernorm,)

    def grown(self, inputs: dict[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
        """Generated tokens are a suffix."""
        suffix = ids.shape[1] - inputs["token_type_ids"].shape[1]
        types = nn.functional.pad(inputs["token_type_ids"], (0, suffix), value=1)
        return {**super().grown(inputs, ids), "token_type_ids": types}


class TestGemma(PaliGemmaContract):
    text = "gemma"


class TestGemma2(PaliGemmaContract):
    text = "gemma2"


@pytest.mark.parametrize("text", ["gemma", "gemma2"])
@pytest.mark.slow
def test_a_fresh_model_of_other_sizes(text: str, tmp_path: Path) -> None:
    config = paligemma_config(text, depth=3, width=24, image_size=18, patch_size=6)
    folder = save_fresh(tmp_path / "base", config)
    check_whole_way(PaliGemmaContract(), folder, prefix_inputs(9, 18), tmp_path / "out")


@pytest.mark.parametrize(("absent", "tokens"), [("image_size", 56**2), ("vision_config", 16**2)])
def test_absent_keys_mean_what_the_config_class_says(
    absent: str, tokens: int, tmp_path: Path
) -> None:
    """google/paligemma-3b-pt-224 does not state its image size."""
    folder = write_tiny_paligemma(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    config.pop(absent, None)
    config["vision_config"].pop(absent, None) if "vision_config" in config else None
    (folder / "config.json").write_text(json.dumps(config))
    assert dcsurgery.inspect(folder).anatomy.image_tokens == tokens
