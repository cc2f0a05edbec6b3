"""Tiny LLaVA-OneVision checkpoints: SigLIP tower, Qwen2 language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcsurgery.tiny._tiles import pinpoints, write_tile_processor
from dcsurgery.tiny.llava import Tower, llava_config, write_llava
from dcsurgery.tiny.tokenizer import special_ids
from dcsurgery.tiny.weights import write_json

SPECIALS = ("<image>", "<video>")


def llava_onevision_config(tower: Tower = "siglip", **sizes: Any) -> dict[str, Any]:
    """Return the config.json of a tiny LLaVA-OneVision; `sizes` are those of llava_config."""
    config = llava_config(tower, **{"feature_layer": -1, **sizes})
    ids = special_ids(SPECIALS)
    text = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    side = config["vision_config"]["image_size"]
    return {
        **config,
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "model_type": "llava_onevision",
        "image_grid_pinpoints": [[side, side], *pinpoints(side)],
        "image_token_index": ids["<image>"],
        "text_config": {**config["text_config"], **text},
        "video_token_index": ids["<video>"],
        "vision_aspect_ratio": "anyres_max_9",
    }


def write_tiny_llava_onevision(
    folder: Path,
    tower: Tower = "siglip",
    *,
    shards: int = 1,
    dtype: str = "float32",
    seed: int = 0,
    **sizes: Any,
) -> Path:
    """Write a tiny LlavaOnevisionForConditionalGeneration and return `folder`.

    Its processor's files are there too; transformers loads them all where torchvision is installed,
    without it the tokenizer and the image processor alone.
    """
    config = llava_onevision_config(tower, **sizes)
    write_llava(folder, config, shards=shards, dtype=dtype, seed=seed)
    vision, kind = config["vision_config"], {"processor_class": "LlavaOnevisionProcessor"}
    words = {
        **kind,
        "image_token": "<image>",
        "num_image_tokens": (vision["image_size"] // vision["patch_size"]) ** 2,
        "video_token": "<video>",
        "vision_aspect_ratio": config["vision_aspect_ratio"],
        "vision_feature_select_strategy": config["vision_feature_select_strategy"],
    }
    square = {"size": {"height": vision["image_size"], "width": vision["image_size"]}}
    images = {"image_processor_type": "LlavaOnevisionImageProcessor", **square}
    write_tile_processor(folder, config, SPECIALS, images, words)
    video = {**kind, **square, "video_processor_type": "LlavaOnevisionVideoProcessor"}
    write_json(folder / "video_preprocessor_config.json", video)
    return folder
