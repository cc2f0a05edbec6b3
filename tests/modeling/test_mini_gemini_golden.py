"""Mini-Gemini's image path against the reference's own numbers; see golden/README.md."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dcsurgery.modeling.mini_gemini import MiniGeminiConfig, MiniGeminiModel
from dcsurgery.modeling.mini_gemini.original import CHECKPOINT, renamed, turned
from tests.closeness import PAPER
from tests.golden.numbers import golden

GRIDS = ("grid1", "grid2", "grid2_global")


def weights() -> dict[str, Tensor]:
    """Every weight under the reference's own name."""
    return {
        name.removeprefix("weights."): value
        for name, value in golden("mgm")[0].items()
        if name.startswith("weights.")
    }


@cache
def model(grid: int, whole: bool) -> MiniGeminiModel:
    sizes = golden("mgm")[1]["config"]
    config = MiniGeminiConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": sizes["hidden"],
            "intermediate_size": sizes["inter"],
            "num_hidden_layers": sizes["layers"],
            "num_attention_heads": sizes["heads"],
            "image_size": sizes["image"],
            "patch_size": sizes["patch"],
        },
        vision_config_aux={
            "model_type": "convnext",
            "depths": sizes["depths"],
            "hidden_sizes": sizes["dims"],
            "image_size": sizes["aux"],
            # The reference's tower drops paths while it trains; this one must not.
            "drop_path_rate": 0.9,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": sizes["llm"],
            "intermediate_size": 8,
            "num_hidden_layers": 0,
            "num_attention_heads": 2,
            "vocab_size": 8,
        },
        image_token_id=8,
        image_grid=grid,
        image_global=whole,
    )
    built = MiniGeminiModel(config)
    own = {
        ours.removeprefix("model."): value
        for name, value in weights().items()
        if (ours := renamed(name, CHECKPOINT)) is not None
    }
    if not hasattr(built.vision_tower, "vision_model"):
        own = {name.replace(".vision_model.", "."): value for name, value in own.items()}
    missing, unexpected = built.load_state_dict(own, strict=False)
    assert not unexpected
    assert all(name.startswith("language_model.") for name in missing), missing
    # Training mode on purpose: nothing in the image path may be random.
    return built.train()


def case(name: str) -> tuple[MiniGeminiModel, dict[str, Tensor]]:
    tensors, info = golden("mgm")
    sizes = info["cases"][name]
    found = {key.removeprefix(f"{name}."): tensors[key] for key in tensors if f"{name}." in key}
    return model(sizes["image_grid"], sizes["image_global"]), found


def close(found: Tensor, wanted: Tensor) -> bool:
    assert found.shape == wanted.shape
    return bool((found - wanted).abs().max() <= PAPER * wanted.abs().max())


@torch.no_grad()
def test_aux_tower_gives_the_references_map() -> None:
    tensors, info = golden("mgm")
    built = model(1, False)
    maps = built.encode_high(tensors["images_aux"])
    assert close(maps, tensors["aux_feature_map"])
    dims, at = info["config"]["dims"], 0
    for index, width in enumerate(dims):
        if index:
            stage = tensors[f"aux_stage_{index}"]
            wanted = functional.interpolate(stage, size=maps.shape[-2:], mode="bilinear")
            assert close(maps[:, at : at + width], wanted)
        at += width


@pytest.mark.parametrize("name", GRIDS)
@torch.no_grad()
def test_tower_and_mined_features_are_the_references(name: str) -> None:
    built, wanted = case(name)
    features = built.encode_low(built.views(wanted["images"]))
    mined = built.mine(features, golden("mgm")[0]["aux_feature_map"])
    tiles = len(wanted["local.low_res_features"])
    for part, rows in (("local", slice(None, tiles)), ("global", slice(tiles, None))):
        if f"{part}.mined_features" not in wanted:
            assert part == "global" and len(features[rows]) == 0
            continue
        assert close(features[rows], wanted[f"{part}.low_res_features"])
        assert close(mined[rows], wanted[f"{part}.mined_features"])


@pytest.mark.parametrize("name", GRIDS)
@torch.no_grad()
def test_image_tokens_are_the_references(name: str) -> None:
    built, wanted = case(name)
    found = built.get_image_features(wanted["images"], golden("mgm")[0]["images_aux"]).pooler_output
    assert close(torch.stack(found), wanted["image_features"])


@torch.no_grad()
def test_without_the_large_picture_nothing_is_mined() -> None:
    built, wanted = case("grid1")
    found = built.get_image_features(wanted["images"]).pooler_output
    assert close(torch.stack(found), wanted["image_features_no_aux"])


def test_names_turn_back_into_the_references() -> None:
    back = turned(CHECKPOINT)
    for name in weights():
        ours = renamed(name, CHECKPOINT)
        assert ours is not None and renamed(ours, back) == name
