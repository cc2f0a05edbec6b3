"""Tiny Gemma 3 checkpoints with vision, with published names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcsurgery.tiny.llava import HUB_NAMES
from dcsurgery.tiny.tokenizer import special_ids
from dcsurgery.tiny.weights import write_model
from tests.tiny.parts import base_config, siglip_section, square, text_section, write_processor

CLASS = "Gemma3ForConditionalGeneration"
NAMED = {
    "image_token": "<image_soft_token>",
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
}
SPECIALS = ("<start_of_image>", "<end_of_image>", "<image_soft_token>")


def gemma3_config(tokens: int = 4, **sizes: int) -> dict[str, Any]:
    """Return the config.json of a tiny Gemma 3 whose images become `tokens` image tokens."""
    config = base_config(CLASS, "gemma3", SPECIALS)
    # The published name of image_token_id.
    del config["image_token_id"]
    ids = special_ids(SPECIALS)
    return {
        **config,
        "boi_token_index": ids["<start_of_image>"],
        "eoi_token_index": ids["<end_of_image>"],
        "image_token_index": ids["<image_soft_token>"],
        "mm_tokens_per_image": tokens,
        "text_config": text_section("gemma3_text", SPECIALS),
        "tie_word_embeddings": True,
        "vision_config": siglip_section(**sizes),
    }


def write_gemma3(folder: Path, config: dict[str, Any], **writing: Any) -> Path:
    """Write weights and processor of a Gemma 3 config; `writing` as in write_model."""
    write_model(folder, CLASS, config, names=HUB_NAMES, **writing)
    image_processor = {
        "image_processor_type": "Gemma3ImageProcessor",
        "size": square(config["vision_config"]["image_size"]),
    }
    processor = {
        "image_seq_length": config["mm_tokens_per_image"],
        "processor_class": "Gemma3Processor",
    }
    write_processor(folder, SPECIALS, image_processor, processor, NAMED)
    return folder


def write_tiny_gemma3(
    folder: Path,
    *,
    tokens: int = 4,
    shards: int = 1,
    dtype: str = "float32",
    seed: int = 0,
    **sizes: int,
) -> Path:
    """Write a tiny Gemma 3 into `folder` and return it; `sizes` as in vision_section."""
    config = gemma3_config(tokens, **sizes)
    return write_gemma3(folder, config, shards=shards, dtype=dtype, seed=seed)
