"""Tiny InternVL checkpoints in the Hugging Face layout, with published names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcsurgery.tiny.llava import HUB_NAMES_PLAIN
from dcsurgery.tiny.weights import write_model
from tests.tiny.parts import base_config, square, text_section, vision_section, write_processor

CLASS = "InternVLForConditionalGeneration"
SPECIALS = ("<IMG_CONTEXT>", "<img>", "</img>", "<video>")
NAMED = {
    "context_image_token": "<IMG_CONTEXT>",
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "video_token": "<video>",
}


def internvl_config(downsample_ratio: float = 0.5, **sizes: int) -> dict[str, Any]:
    """Return the config.json of a tiny InternVL; pixel sizes are lists as in published ones."""
    vision = vision_section(**sizes)
    side = vision["image_size"] // vision["patch_size"]
    vision["image_size"] = [vision["image_size"]] * 2
    vision["patch_size"] = [vision["patch_size"]] * 2
    return {
        **base_config(CLASS, "internvl", SPECIALS),
        "downsample_ratio": downsample_ratio,
        "image_seq_length": int(side * downsample_ratio) ** 2,
        "text_config": text_section("qwen2", SPECIALS),
        "vision_config": {**vision, "attention_bias": True, "model_type": "internvl_vision"},
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }


def write_internvl(folder: Path, config: dict[str, Any], **writing: Any) -> Path:
    """Write weights, tokenizer and processor; `writing` as in write_model."""
    write_model(folder, CLASS, config, names=HUB_NAMES_PLAIN, **writing)
    write_pictures_processor(folder, config, "InternVLProcessor", SPECIALS[0])
    return folder


def write_pictures_processor(
    folder: Path, config: dict[str, Any], class_name: str, shown: str
) -> None:
    """Write the tokenizer and the processor that InternVL and Qianfan-OCR share.

    `shown` is what their chat templates write for a picture.
    """
    image_processor = {
        "crop_to_patches": True,
        "image_processor_type": "GotOcr2ImageProcessor",
        "max_patches": 4,
        "size": square(config["vision_config"]["image_size"][0]),
    }
    processor = {
        "image_seq_length": config["image_seq_length"],
        "processor_class": class_name,
    }
    write_processor(folder, SPECIALS, image_processor, processor, NAMED, shown)


def write_tiny_internvl(
    folder: Path,
    *,
    downsample_ratio: float = 0.5,
    shards: int = 1,
    dtype: str = "float32",
    seed: int = 0,
    **sizes: int,
) -> Path:
    """Write a tiny InternVL into `folder` and return it; `sizes` as in vision_section."""
    config = internvl_config(downsample_ratio, **sizes)
    return write_internvl(folder, config, shards=shards, dtype=dtype, seed=seed)
