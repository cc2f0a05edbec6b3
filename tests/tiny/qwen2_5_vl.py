"""Tiny Qwen2.5-VL checkpoints: names and flat config.json as published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.tiny import _packed
from tests.tiny.qwen2_vl import HUB_NAMES, ROPE


def qwen2_5_vl_config(
    *, depth: int = 4, width: int = 16, patch_size: int = 4, merge: int = 2, window: int = 2
) -> dict[str, Any]:
    """Return config.json: the language model's keys lie at the top level.

    A window is `window` merged tokens wide; every second block attends to the whole picture.
    """
    text = _packed.text_config(_packed.QWEN_TOKENS)
    vision = {
        "depth": depth,
        "fullatt_block_indexes": list(range(1, depth, 2)),
        "hidden_act": "silu",
        "hidden_size": width,
        "in_chans": 3,
        "intermediate_size": 2 * width,
        "num_heads": 2,
        "out_hidden_size": text["hidden_size"],
        "patch_size": patch_size,
        "spatial_merge_size": merge,
        "spatial_patch_size": patch_size,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": window * merge * patch_size,
    }
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        **text,
        **ROPE,
        **_packed.vision_ids(),
        "max_window_layers": 2,
        "sliding_window": 4096,
        "use_sliding_window": False,
        "vision_config": vision,
    }


def write_tiny_qwen2_5_vl(
    folder: Path, *, shards: int = 1, dtype: str = "float32", seed: int = 0, **sizes: int
) -> Path:
    """Write a tiny Qwen2_5_VLForConditionalGeneration checkpoint into `folder` and return it.

    `sizes` are depth, width, patch_size, merge and window.
    """
    config = qwen2_5_vl_config(**sizes)
    return _packed.write_packed(
        folder,
        config,
        _packed.QWEN_TOKENS,
        _packed.qwen_processor(config["vision_config"]),
        names=HUB_NAMES,
        shards=shards,
        dtype=dtype,
        seed=seed,
    )
