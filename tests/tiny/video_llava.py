"""Tiny Video-LLaVA checkpoints: two CLIP towers of one shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcsurgery.tiny.llava import Tower, llava_config, write_llava
from dcsurgery.tiny.tokenizer import CHAT_TEMPLATE, special_ids, write_tokenizer
from dcsurgery.tiny.weights import write_json

SPECIALS = ("<image>", "<video>")


def video_llava_config(tower: Tower = "clip", **sizes: Any) -> dict[str, Any]:
    """Return the config.json of a tiny Video-LLaVA; `sizes` are those of llava_config."""
    config = llava_config(tower, **sizes)
    vision, ids = config["vision_config"], special_ids(SPECIALS)
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    return {
        **config,
        "architectures": ["VideoLlavaForConditionalGeneration"],
        "model_type": "video_llava",
        "image_token_index": ids["<image>"],
        "video_seq_length": 8 * (patches + 1),
        "video_token_index": ids["<video>"],
    }


def write_tiny_video_llava(
    folder: Path,
    tower: Tower = "clip",
    *,
    shards: int = 1,
    dtype: str = "float32",
    seed: int = 0,
    **sizes: Any,
) -> Path:
    """Write a tiny VideoLlavaForConditionalGeneration and return `folder`.

    Its processor's files are there too; transformers loads them all where torchvision is installed,
    without it the tokenizer and the image processor alone.
    """
    config = video_llava_config(tower, **sizes)
    write_llava(folder, config, shards=shards, dtype=dtype, seed=seed)
    write_tokenizer(folder, SPECIALS, CHAT_TEMPLATE)
    vision = config["vision_config"]
    side = vision["image_size"]
    words = {
        "image_token": "<image>",
        "num_additional_image_tokens": 1,
        "patch_size": vision["patch_size"],
        "processor_class": "VideoLlavaProcessor",
        "video_token": "<video>",
        "vision_feature_select_strategy": config["vision_feature_select_strategy"],
    }
    write_json(folder / "processor_config.json", words)
    images = {
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
        "processor_class": "VideoLlavaProcessor",
        "size": {"shortest_edge": side},
    }
    kind = {"image_processor_type": "VideoLlavaImageProcessor"}
    write_json(folder / "preprocessor_config.json", {**images, **kind})
    kind = {"video_processor_type": "VideoLlavaVideoProcessor"}
    write_json(folder / "video_preprocessor_config.json", {**images, **kind})
    return folder
