"""Tiny LLaVA-NeXT-Video checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcsurgery.tiny._tiles import cropped, patch_words, write_tile_processor
from dcsurgery.tiny.llava import Tower, write_llava
from dcsurgery.tiny.llava_next import llava_next_config
from dcsurgery.tiny.tokenizer import special_ids
from dcsurgery.tiny.weights import write_json

SPECIALS = ("<image>", "<video>")


def llava_next_video_config(tower: Tower = "clip", **sizes: Any) -> dict[str, Any]:
    """Return the config.json of a tiny LLaVA-NeXT-Video; `sizes` are those of llava_config."""
    ids = special_ids(SPECIALS)
    return {
        **llava_next_config(tower, **sizes),
        "architectures": ["LlavaNextVideoForConditionalGeneration"],
        "model_type": "llava_next_video",
        "image_token_index": ids["<image>"],
        "video_token_index": ids["<video>"],
        "spatial_pool_mode": "average",
        "spatial_pool_stride": 2,
    }


def write_tiny_llava_next_video(
    folder: Path,
    tower: Tower = "clip",
    *,
    shards: int = 1,
    dtype: str = "float32",
    seed: int = 0,
    **sizes: Any,
) -> Path:
    """Write a tiny LlavaNextVideoForConditionalGeneration and return `folder`.

    Its processor's files are there too; transformers loads them all where torchvision is installed,
    without it the tokenizer and the image processor alone.
    """
    config = llava_next_video_config(tower, **sizes)
    write_llava(folder, config, shards=shards, dtype=dtype, seed=seed)
    kind = {"processor_class": "LlavaNextVideoProcessor"}
    sizes = cropped(config["vision_config"]["image_size"])
    images = {"image_processor_type": "LlavaNextImageProcessor", **sizes}
    words = {**kind, "video_token": "<video>", **patch_words(config)}
    write_tile_processor(folder, config, SPECIALS, images, words)
    video = {**kind, **sizes, "video_processor_type": "LlavaNextVideoVideoProcessor"}
    write_json(folder / "video_preprocessor_config.json", video)
    return folder
