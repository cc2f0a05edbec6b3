"""Tiny DeepSeek-VL checkpoints, with the names transformers 4.5x writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcsurgery.tiny.parts import base_config, siglip_section, square, text_section, write_processor
from dcsurgery.tiny.weights import write_model

CLASS = "DeepseekVLForConditionalGeneration"
SPECIALS = ("<image_placeholder>",)
HUB_NAMES = ((r"^model\.vision_model\.", "model.vision_model.vision_model."),)


def deepseek_vl_config(**sizes: int) -> dict[str, Any]:
    """Return the config.json of a tiny DeepSeek-VL; its tower has a pooling head nobody reads."""
    return {
        **base_config(CLASS, "deepseek_vl", SPECIALS),
        "text_config": text_section("llama", SPECIALS),
        "vision_config": {**siglip_section(**sizes), "vision_use_head": True},
    }


def write_tiny_deepseek_vl(
    folder: Path, *, shards: int = 1, dtype: str = "float32", seed: int = 0, **sizes: int
) -> Path:
    """Write a tiny DeepSeek-VL into `folder` and return it; `sizes` as in vision_section."""
    config = deepseek_vl_config(**sizes)
    write_model(folder, CLASS, config, names=HUB_NAMES, shards=shards, dtype=dtype, seed=seed)
    vision = config["vision_config"]
    image_processor = {
        "image_processor_type": "DeepseekVLImageProcessor",
        "min_size": 14,
        "size": square(vision["image_size"]),
    }
    processor = {
        "num_image_tokens": (vision["image_size"] // vision["patch_size"]) ** 2,
        "processor_class": "DeepseekVLProcessor",
    }
    named = {"image_token": SPECIALS[0]}
    write_processor(folder, SPECIALS, image_processor, processor, named)
    return folder
