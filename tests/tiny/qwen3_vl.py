"""Tiny Qwen3-VL checkpoints: module names and nested config.json as published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.tiny import _packed


def qwen3_vl_config(
    *, depth: int = 4, width: int = 16, patch_size: int = 4, merge: int = 2, grid: int = 4
) -> dict[str, Any]:
    """Return config.json; positions are learned for a square of `grid` patches, DeepStack reads the
    second block."""
    text = {
        **_packed.text_config(_packed.QWEN_TOKENS),
        "head_dim": 12,
        "model_type": "qwen3_vl_text",
        "rope_scaling": {
            "mrope_interleaved": True,
            "mrope_section": [2, 2, 2],
            "rope_type": "default",
        },
        "rope_theta": 20000.0,
    }
    vision = {
        "deepstack_visual_indexes": [1],
        "depth": depth,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": width,
        "in_channels": 3,
        "intermediate_size": 2 * width,
        "model_type": "qwen3_vl",
        "num_heads": 2,
        "num_position_embeddings": grid**2,
        "out_hidden_size": text["hidden_size"],
        "patch_size": patch_size,
        "spatial_merge_size": merge,
        "temporal_patch_size": 2,
    }
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "text_config": text,
        "tie_word_embeddings": False,
        **_packed.vision_ids(),
        "vision_config": vision,
    }


def write_tiny_qwen3_vl(
    folder: Path, *, shards: int = 1, dtype: str = "float32", seed: int = 0, **sizes: int
) -> Path:
    """Write a tiny Qwen3VLForConditionalGeneration checkpoint into `folder` and return it.

    `sizes` are depth, width, patch_size, merge and grid.
    """
    config = qwen3_vl_config(**sizes)
    return _packed.write_packed(
        folder,
        config,
        _packed.QWEN_TOKENS,
        _packed.qwen_processor(config["vision_config"]),
        shards=shards,
        dtype=dtype,
        seed=seed,
    )
