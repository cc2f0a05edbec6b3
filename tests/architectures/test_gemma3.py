"""Gemma 3: a pooled grid, a norm, and a first matrix that is a bare transposed parameter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dcsurgery
from dcsurgery.anatomy import Site
from dcsurgery.errors import AnatomyError, PlanError
from tests.architectures.cases import TinyModel
from tests.architectures.contract import Contract
from tests.architectures.fresh import check_whole_way, save_fresh
from tests.architectures.inputs import Inputs, image_inputs
from tests.tiny.gemma3 import gemma3_config, write_tiny_gemma3


def typed_inputs(tokens: int, side: int) -> Inputs:
    """token_type_ids mark image tokens, which see each other in both directions."""
    plain = image_inputs(tokens, side)

    def inputs(model: Any, batch: int, images: int) -> dict[str, Tensor]:
        values = plain(model, batch, images)
        types = torch.eq(values["input_ids"], model.config.image_token_id).long()
        return {**values, "token_type_ids": types}

    return inputs


class TestGemma3(Contract):
    @classmethod
    def tiny(cls, folder: Path, shards: int) -> TinyModel:
        return TinyModel(write_tiny_gemma3(folder, shards=shards), typed_inputs(4, 16))

    def matrix(self, site: nn.Module) -> Tensor:
        weight: Tensor = site.mm_input_projection_weight
        return weight.T

    def reader(self, model: Any, site: Site) -> nn.Module:
        norm: nn.Module = model.model.multi_modal_projector.mm_soft_emb_norm
        return norm

    def rows(self, model: Any, state: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        side = model.config.vision_config.image_size // model.config.vision_config.patch_size
        maps = state.transpose(1, 2).unflatten(2, (side, side))
        pooled: Tensor = model.model.multi_modal_projector.avg_pool(maps)
        return pooled.flatten(2).transpose(1, 2)

    def loud_norms(self, model: Any) -> tuple[nn.Module, ...]:
        return (model.model.vision_tower.post_layernorm,)

    def grown(self, inputs: dict[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
        text = ids.shape[1] - inputs["token_type_ids"].shape[1]
        types = nn.functional.pad(inputs["token_type_ids"], (0, text))
        return {**super().grown(inputs, ids), "token_type_ids": types}


@pytest.mark.slow
def test_a_fresh_model_of_other_sizes(tmp_path: Path) -> None:
    config = gemma3_config(9, depth=3, width=24, image_size=36, patch_size=6)
    folder = save_fresh(tmp_path / "base", config)
    check_whole_way(TestGemma3(), folder, typed_inputs(9, 36), tmp_path / "out")


def test_a_matrix_as_wide_as_the_tower_is_still_read_transposed(tmp_path: Path) -> None:
    folder = write_tiny_gemma3(tmp_path / "base", width=32)
    site = dcsurgery.inspect(folder).anatomy.projector.sites[0]
    assert (site.module, site.in_features, site.out_features) == ("multi_modal_projector", 32, 24)


@pytest.mark.parametrize("tokens", [5, 9, 64, 0])
def test_tokens_the_grid_cannot_be_pooled_to_are_refused(tokens: int, tmp_path: Path) -> None:
    folder = write_tiny_gemma3(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    config["mm_tokens_per_image"] = tokens
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(AnatomyError, match=f"mm_tokens_per_image.* '?{tokens}"):
        dcsurgery.inspect(folder)


def test_paper_init_is_refused_for_a_projector_with_a_norm(tmp_path: Path) -> None:
    folder = write_tiny_gemma3(tmp_path / "base")
    with pytest.raises(PlanError, match="mm_soft_emb_norm"):
        dcsurgery.convert(folder, tmp_path / "out", init="paper")
    assert not (tmp_path / "out").exists()
