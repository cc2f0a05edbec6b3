"""Tiny Qwen2-VL checkpoints: names and flat config.json as published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.tiny import _packed

# Transformers 4.51 and older wrote these names, 5.x writes them for a fresh model too.
HUB_NAMES = (
    (r"^model\.visual\.", "visual."),
    (r"^model\.language_model\.", "model."),
    (r"^lm_head\.", "lm_head."),
)
ROPE = {"rope_theta": 20000.0, "rope_scaling": {"type": "mrope", "mrope_section": [2, 2, 2]}}


def qwen2_vl_config(
    *, depth: int = 4, width: int = 16, patch_size: int = 4, merge: int = 2
) -> dict[str, Any]:
    """Return config.json: the language model's keys lie at the top level."""
    text = _packed.text_config(_packed.QWEN_TOKENS)
    vision = {
        "depth": depth,
        "embed_dim": width,
        "hidden_size": text["hidden_size"],
        "in_chans": 3,
        "mlp_ratio": 2,
        "num_heads": 2,
        "patch_size": patch_size,
        "spatial_merge_size": merge,
        "spatial_patch_size": patch_size,
        "temporal_patch_size": 2,
    }
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        **text,
        **ROPE,
        **_packed.vision_ids(),
        "max_window_layers": 2,
        "sliding_window": 4096,
        "use_sliding_window": False,
        "vision_config": vision,
    }


def write_tiny_qwen2_vl(
    folder: Path, *, shards: int = 1, dtype: str = "float32", seed: int = 0, **sizes: int
) -> Path:
    """Write a tiny Qwen2VLForConditionalGeneration checkpoint into `folder` and return it.

    `sizes` are depth, width, patch_size and merge.
    """
    config = qwen2_vl_config(**sizes)
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
