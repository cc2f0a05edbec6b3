"""Tiny PaliGemma checkpoints, version 1 (Gemma text) and 2 (Gemma 2 text), with published names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcsurgery.tiny.llava import HUB_NAMES
from dcsurgery.tiny.weights import write_model
from tests.tiny.parts import base_config, siglip_section, square, text_section, write_processor

CLASS = "PaliGemmaForConditionalGeneration"
SPECIALS = ("<image>",)


def paligemma_config(text: str = "gemma", **sizes: int) -> dict[str, Any]:
    """Return the config.json of a tiny PaliGemma; `text` is "gemma" or "gemma2"."""
    language = text_section(text, SPECIALS)
    hidden = language["hidden_size"]
    return {
        **base_config(CLASS, "paligemma", SPECIALS),
        "hidden_size": hidden,
        "projection_dim": hidden,
        "text_config": language,
        "tie_word_embeddings": True,
        # Published configs name the projector's width here too.
        "vision_config": {**siglip_section(**sizes), "projection_dim": hidden},
    }


def write_paligemma(folder: Path, config: dict[str, Any], **writing: Any) -> Path:
    """Write weights and processor of a PaliGemma config; `writing` as in write_model."""
    write_model(folder, CLASS, config, names=HUB_NAMES, **writing)
    vision = config["vision_config"]
    image_processor = {
        "image_processor_type": "SiglipImageProcessor",
        "image_seq_length": (vision["image_size"] // vision["patch_size"]) ** 2,
        "size": square(vision["image_size"]),
    }
    processor = {"processor_class": "PaliGemmaProcessor"}
    write_processor(folder, SPECIALS, image_processor, processor)
    return folder


def write_tiny_paligemma(
    folder: Path,
    *,
    text: str = "gemma",
    shards: int = 1,
    dtype: str = "float32",
    seed: int = 0,
    **sizes: int,
) -> Path:
    """Write a tiny PaliGemma into `folder` and return it; `sizes` as in vision_section."""
    config = paligemma_config(text, **sizes)
    return write_paligemma(folder, config, shards=shards, dtype=dtype, seed=seed)
