"""Tiny LLaVA-NeXT checkpoints; with a SigLIP tower and a list of layers, Granite Vision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcsurgery.tiny._tiles import cropped, patch_words, pinpoints, write_tile_processor
from dcsurgery.tiny.llava import Tower, llava_config, write_llava


def llava_next_config(tower: Tower = "clip", **sizes: Any) -> dict[str, Any]:
    """Return the config.json of a tiny LLaVA-NeXT; `sizes` are those of llava_config."""
    config = llava_config(tower, **sizes)
    return {
        **config,
        "architectures": ["LlavaNextForConditionalGeneration"],
        "model_type": "llava_next",
        "image_grid_pinpoints": pinpoints(config["vision_config"]["image_size"]),
        "use_image_newline_parameter": True,
    }


def write_tiny_llava_next(
    folder: Path,
    tower: Tower = "clip",
    *,
    shards: int = 1,
    dtype: str = "float32",
    seed: int = 0,
    **sizes: Any,
) -> Path:
    """Write a tiny LlavaNextForConditionalGeneration with its processor; return `folder`."""
    config = llava_next_config(tower, **sizes)
    write_llava(folder, config, shards=shards, dtype=dtype, seed=seed)
    sizes = cropped(config["vision_config"]["image_size"])
    images = {"image_processor_type": "LlavaNextImageProcessor", **sizes}
    words = {"processor_class": "LlavaNextProcessor", **patch_words(config)}
    write_tile_processor(folder, config, ("<image>",), images, words)
    return folder
