"""Tiny Aya Vision checkpoints, with published names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcsurgery.tiny.llava import HUB_NAMES
from dcsurgery.tiny.weights import write_model
from tests.tiny.parts import base_config, siglip_section, square, text_section, write_processor

CLASS = "AyaVisionForConditionalGeneration"
SPECIALS = ("<|IMG_PATCH|>", "<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>")


def aya_vision_config(downsample_factor: int = 2, **sizes: int) -> dict[str, Any]:
    """Return the config.json of a tiny Aya Vision."""
    config = base_config(CLASS, "aya_vision", SPECIALS)
    # The published name of image_token_id.
    config["image_token_index"] = config.pop("image_token_id")
    return {
        **config,
        "adapter_layer_norm_eps": 1e-06,
        "alignment_intermediate_size": 40,
        "downsample_factor": downsample_factor,
        "text_config": text_section("cohere2", SPECIALS),
        "tie_word_embeddings": True,
        "vision_config": siglip_section(**sizes),
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }


def write_aya_vision(folder: Path, config: dict[str, Any], **writing: Any) -> Path:
    """Write weights and processor of an Aya Vision config; `writing` as in write_model."""
    write_model(folder, CLASS, config, names=HUB_NAMES, **writing)
    vision = config["vision_config"]
    image_processor = {
        "crop_to_patches": True,
        "image_processor_type": "GotOcr2ImageProcessor",
        "max_patches": 4,
        "size": square(vision["image_size"]),
    }
    processor = {
        "downsample_factor": config["downsample_factor"],
        "img_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "processor_class": "AyaVisionProcessor",
    }
    write_processor(folder, SPECIALS, image_processor, processor, shown="<image>")
    return folder


def write_tiny_aya_vision(
    folder: Path,
    *,
    downsample_factor: int = 2,
    shards: int = 1,
    dtype: str = "float32",
    seed: int = 0,
    **sizes: int,
) -> Path:
    """Write a tiny Aya Vision into `folder` and return it; `sizes` as in vision_section."""
    config = aya_vision_config(downsample_factor, **sizes)
    return write_aya_vision(folder, config, shards=shards, dtype=dtype, seed=seed)
