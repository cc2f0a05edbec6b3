"""What a LLaVA family's config.json leaves out is what transformers' own config class says."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from tests.architectures.published import dissect, llava_shapes

FAMILIES = ("Llava", "LlavaNext", "LlavaNextVideo", "LlavaOnevision", "VideoLlava", "VipLlava")
SIGLIP = {"model_type": "siglip_vision_model", "num_hidden_layers": 24}
CONFIGS: list[dict[str, Any]] = [
    {},
    {"vision_config": None},
    {"vision_config": {}, "text_config": {"hidden_size": 64}},
    {"vision_config": {"image_size": 56, "num_hidden_layers": 24}},
    {"vision_config": SIGLIP, "text_config": {"model_type": "gemma2"}},
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_missing_keys(family: str, config: dict[str, Any]) -> None:
    if family.startswith("LlavaNext") and config.get("vision_config") is SIGLIP:
        # Their tiles are whole grids: "default" would cut a patch off each.
        config = {**config, "vision_feature_select_strategy": "full"}
    known = getattr(transformers, f"{family}Config").from_dict(config)
    vision, stated = known.vision_config, known.vision_feature_layer
    layers = [stated] if isinstance(stated, int) else list(stated)
    depth, width = vision.num_hidden_layers, vision.hidden_size
    shapes = llava_shapes(depth, width, 64, len(layers) * width)
    if family == "VideoLlava":
        shapes |= llava_shapes(depth, width, 64, width, "image_tower.vision_model.")
        shapes |= llava_shapes(depth, width, 64, width, "video_tower.vision_model.")
    found = dissect({"architectures": [f"{family}ForConditionalGeneration"], **config}, shapes)
    tower = found.tower
    assert (tower.kind, tower.depth, tower.width) == (vision.model_type, depth, width)
    assert (tower.image_size, tower.patch_size) == (vision.image_size, vision.patch_size)
    assert list(found.feature_layers) == [layer % (depth + 1) for layer in layers]
    strategy = getattr(known, "vision_feature_select_strategy", "default")
    assert found.dropped_tokens == (strategy == "default")
    assert found.language_model == known.text_config.model_type
