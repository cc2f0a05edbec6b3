"""Tiny Command A Vision checkpoints, with the names transformers 4.5x writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcsurgery.tiny.tokenizer import CHAT_TEMPLATE, write_tokenizer
from dcsurgery.tiny.weights import write_model
from tests.tiny.parts import base_config, siglip_section, text_section

CLASS = "Cohere2VisionForConditionalGeneration"
SPECIALS = ("<|IMG_PATCH|>",)
HUB_NAMES = ((r"^model\.vision_tower\.", "model.vision_tower.vision_model."),)


def cohere2_vision_config(downsample_factor: int = 2, **sizes: int) -> dict[str, Any]:
    """Return the config.json of a tiny Command A Vision."""
    return {
        **base_config(CLASS, "cohere2_vision", SPECIALS),
        "alignment_intermediate_size": 40,
        "downsample_factor": downsample_factor,
        "text_config": text_section("cohere2", SPECIALS),
        "tie_word_embeddings": True,
        "vision_config": siglip_section(**sizes),
    }


def write_tiny_cohere2_vision(
    folder: Path,
    *,
    downsample_factor: int = 2,
    shards: int = 1,
    dtype: str = "float32",
    seed: int = 0,
    **sizes: int,
) -> Path:
    """Write a tiny Command A Vision into `folder` and return it; `sizes` as in vision_section.

    It has a tokenizer and no image processor: transformers' own for this family needs torchvision.
    """
    config = cohere2_vision_config(downsample_factor, **sizes)
    write_model(folder, CLASS, config, names=HUB_NAMES, shards=shards, dtype=dtype, seed=seed)
    write_tokenizer(folder, SPECIALS, CHAT_TEMPLATE.replace("<image>", SPECIALS[0]))
    return folder
