"""Tiny GLM-4.1V checkpoints: module names and nested config.json as published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcsurgery.tiny.tokenizer import special_ids
from tests.tiny import _packed

TOKENS = (
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|image|>",
    "<|video|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
)
IDS = (
    "image_start_token_id",
    "image_end_token_id",
    "image_token_id",
    "video_token_id",
    "video_start_token_id",
    "video_end_token_id",
)


def glm4v_config(
    *, depth: int = 4, width: int = 16, patch_size: int = 4, merge: int = 2, grid: int = 4
) -> dict[str, Any]:
    """Return config.json; positions are learned for a square of `grid` patches."""
    text = {
        **_packed.text_config(TOKENS),
        "model_type": "glm4v_text",
        "partial_rotary_factor": 0.5,
        "rope_scaling": {"mrope_section": [1, 1, 1], "rope_type": "default"},
        "rope_theta": 20000.0,
    }
    vision = {
        "attention_bias": False,
        "depth": depth,
        "hidden_act": "silu",
        "hidden_size": width,
        "image_size": grid * patch_size,
        "in_channels": 3,
        "intermediate_size": 2 * width,
        "model_type": "glm4v",
        "num_heads": 2,
        "out_hidden_size": text["hidden_size"],
        "patch_size": patch_size,
        "rms_norm_eps": 1e-05,
        "spatial_merge_size": merge,
        "temporal_patch_size": 2,
    }
    ids = special_ids(TOKENS)
    return {
        "architectures": ["Glm4vForConditionalGeneration"],
        "model_type": "glm4v",
        "text_config": text,
        "tie_word_embeddings": False,
        **{name: ids[token] for name, token in zip(IDS, TOKENS, strict=True)},
        "vision_config": vision,
    }


def write_tiny_glm4v(
    folder: Path, *, shards: int = 1, dtype: str = "float32", seed: int = 0, **sizes: int
) -> Path:
    """Write a tiny Glm4vForConditionalGeneration checkpoint into `folder` and return it.

    `sizes` are depth, width, patch_size, merge and grid. The image processor counts two frames for
    a picture: 128 to 8192 pixels.
    """
    config = glm4v_config(**sizes)
    preprocessor = {
        "image_processor_type": "Glm4vImageProcessor",
        "processor_class": "Glm4vProcessor",
        "merge_size": config["vision_config"]["spatial_merge_size"],
        "patch_size": config["vision_config"]["patch_size"],
        "size": {"shortest_edge": 128, "longest_edge": 8192},
        "temporal_patch_size": 2,
    }
    return _packed.write_packed(
        folder, config, TOKENS, preprocessor, shards=shards, dtype=dtype, seed=seed
    )
