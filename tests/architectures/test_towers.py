"""The towers of the LLaVA families: all that AutoModel builds and these families can drive."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoProcessor

import dcsurgery
from dcsurgery.architectures._llava import TOWERS
from dcsurgery.data.pictures import sample_photo
from dcsurgery.errors import AnatomyError, PlanError
from dcsurgery.tiny.llava import (
    llava_config,
    write_llava,
    write_llava_processor,
    write_tiny_llava,
)
from dcsurgery.tiny.llava_next import llava_next_config
from tests.architectures.cases import TinyModel, load
from tests.architectures.fresh import check_fresh_model, save_fresh
from tests.architectures.inputs import Inputs, image_inputs
from tests.architectures.tiles import square_inputs, tile_inputs
from tests.closeness import assert_near
from tests.tiny.llava_next_video import llava_next_video_config
from tests.tiny.llava_onevision import llava_onevision_config
from tests.tiny.parts import vision_section
from tests.tiny.video_llava import video_llava_config
from tests.tiny.vipllava import vipllava_config

pytestmark = pytest.mark.slow

# Sizes and oddities of tiny towers, beside those of a CLIP.
WORDS: dict[str, dict[str, Any]] = {
    "dinov2": {"mlp_ratio": 2, "use_swiglu_ffn": True},
    "dinov2_with_registers": {"mlp_ratio": 2, "num_register_tokens": 2},
    "dinov3_vit": {"num_register_tokens": 2, "use_gated_mlp": True},
    "pixtral": {"head_dim": 8},
}


def with_tower(config: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return a config whose vision tower is another; one that has CLS loses it, no more."""
    vision = {**vision_section(), "model_type": kind, **WORDS.get(kind, {})}
    strategy = "default" if TOWERS[kind].prefix else "full"
    return {**config, "vision_config": vision, "vision_feature_select_strategy": strategy}


@pytest.mark.parametrize("kind", TOWERS)
def test_defaults_are_those_of_the_config_class(kind: str) -> None:
    known, tower = AutoConfig.for_model(kind), TOWERS[kind]
    assert (known.image_size, known.patch_size) == (tower.image_size, tower.patch_size)
    assert getattr(known, "num_register_tokens", None) == tower.registers


@pytest.mark.parametrize("kind", [kind for kind in TOWERS if kind != "pixtral"])
def test_a_fresh_llava_with_any_tower_goes_the_whole_way(kind: str, tmp_path: Path) -> None:
    config = with_tower(llava_config("clip"), kind)
    registers = config["vision_config"].get("num_register_tokens", 0)
    tiny = TinyModel(tmp_path, image_inputs(16 + registers, 16))
    check_fresh_model(config, tmp_path, tiny)
    anatomy = dcsurgery.inspect(tmp_path / "base").anatomy
    assert anatomy.image_tokens == 16 + registers
    assert anatomy.tower.prefix_tokens == TOWERS[kind].prefix + registers


FAMILIES: dict[str, tuple[Callable[..., dict[str, Any]], Inputs]] = {
    "llava_next": (llava_next_config, tile_inputs),
    "llava_next_video": (llava_next_video_config, tile_inputs),
    "llava_onevision": (llava_onevision_config, tile_inputs),
    "video_llava": (video_llava_config, square_inputs),
    "vipllava": (vipllava_config, square_inputs),
}


@pytest.mark.parametrize("kind", ["dinov2", "dinov3_vit"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_llava_family_takes_a_dino(family: str, kind: str, tmp_path: Path) -> None:
    make, inputs = FAMILIES[family]
    config = with_tower(make(), kind)
    config["vision_config"].pop("num_register_tokens", None)
    check_fresh_model(config, tmp_path, TinyModel(tmp_path, inputs))


@pytest.mark.parametrize("family", ["video_llava", "vipllava"])
def test_registers_are_image_tokens_where_they_may(family: str, tmp_path: Path) -> None:
    """Four patches a side and two registers: 16 + 2 tokens, by transformers' own counting."""
    config = with_tower(FAMILIES[family][0](), "dinov2_with_registers")
    check_fresh_model(config, tmp_path, TinyModel(tmp_path, image_inputs(18, 16)))


@pytest.mark.parametrize(
    ("family", "kind", "strategy"),
    [
        ("llava_next", "dinov2_with_registers", "default"),
        ("llava_next_video", "dinov3_vit", "default"),
        ("llava_onevision", "dinov2_with_registers", "default"),
        ("llava_next", "clip_vision_model", "full"),
        ("llava_onevision", "siglip_vision_model", "default"),
    ],
)
def test_tiles_that_transformers_cannot_join_are_refused(
    family: str, kind: str, strategy: str, tmp_path: Path
) -> None:
    config = with_tower(FAMILIES[family][0](), kind)
    config["vision_feature_select_strategy"] = strategy
    model = load(save_fresh(tmp_path / "base", config))
    with pytest.raises((RuntimeError, ValueError), match=r"shape|size"):
        model(**tile_inputs(model, 1, 1))
    with pytest.raises(AnatomyError, match="cannot join its tiles"):
        dcsurgery.inspect(tmp_path / "base")


@pytest.mark.parametrize("layers", [-2, [1, -1]], ids=str)
def test_pictures_smaller_than_the_position_table(layers: Any, tmp_path: Path) -> None:
    """facebook/dinov2-base knows 518 pixels, its processor makes 224: here 32 and 16."""
    config = llava_config("dinov2", image_size=32, feature_layer=layers)
    folder = write_llava(tmp_path / "base", config)
    write_llava_processor(folder, "dinov2", 16, 4)
    processor = AutoProcessor.from_pretrained(folder)
    with Image.open(sample_photo()) as photo:
        prompt = processor(images=photo.convert("RGB"), text="<image> what?", return_tensors="pt")
    base = load(folder)
    assert (prompt["input_ids"] == base.config.image_token_id).sum() == 16
    with torch.no_grad():
        expected = base(**prompt).logits
    for form in ("stock", "delta"):
        dcsurgery.convert(folder, tmp_path / form, form=form)
        report = dcsurgery.verify(tmp_path / form, logits=True)
        assert report.passed, report.checks
        with torch.no_grad():
            found = dcsurgery.load(tmp_path / form, dtype=torch.float32)(**prompt).logits
        assert form == "stock" or torch.equal(found, expected)
        assert_near(found, expected)


def test_registers_spoil_a_grid_and_a_config_that_miscounts_them(tmp_path: Path) -> None:
    folder = write_tiny_llava(tmp_path / "base", "dinov2_with_registers")
    with pytest.raises(PlanError, match="20 tokens for a grid of side 4"):
        dcsurgery.convert(folder, tmp_path / "out", pool=2)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["num_register_tokens"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(AnatomyError, match="num_register_tokens is 3"):
        dcsurgery.inspect(folder)
