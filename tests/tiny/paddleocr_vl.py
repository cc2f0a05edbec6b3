"""Tiny PaddleOCR-VL checkpoints: names and flat config.json as published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.tiny import _packed

TOKENS = (
    "<|IMAGE_START|>",
    "<|IMAGE_END|>",
    "<|IMAGE_PLACEHOLDER|>",
    "<|video_pad|>",
)
HUB_NAMES = (
    (r"^model\.visual\.", "visual."),
    (r"^model\.projector\.", "mlp_AR."),
    (r"^model\.language_model\.", "model."),
    (r"^lm_head\.", "lm_head."),
)


def paddleocr_vl_config(
    *, depth: int = 4, width: int = 16, patch_size: int = 4, merge: int = 2, grid: int = 4
) -> dict[str, Any]:
    """Return config.json: the language model's keys lie at the top level.

    Positions are learned for a square of `grid` patches.
    """
    vision = {
        "architectures": ["SiglipVisionModel"],
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": width,
        "image_size": grid * patch_size,
        "intermediate_size": 2 * width,
        "layer_norm_eps": 1e-06,
        "model_type": "paddleocr_vl",
        "num_attention_heads": 2,
        "num_channels": 3,
        "num_hidden_layers": depth,
        "patch_size": patch_size,
        "spatial_merge_size": merge,
        "temporal_patch_size": 2,
    }
    return {
        "architectures": ["PaddleOCRVLForConditionalGeneration"],
        "model_type": "paddleocr_vl",
        **_packed.text_config(TOKENS),
        "head_dim": 12,
        "rope_scaling": {"mrope_section": [2, 2, 2], "rope_type": "default", "type": "default"},
        "rope_theta": 20000.0,
        "use_bias": False,
        **_packed.vision_ids(TOKENS),
        "vision_config": vision,
    }


def write_tiny_paddleocr_vl(
    folder: Path, *, shards: int = 1, dtype: str = "float32", seed: int = 0, **sizes: int
) -> Path:
    """Write a tiny PaddleOCRVLForConditionalGeneration checkpoint into `folder` and return it.

    `sizes` are depth, width, patch_size, merge and grid.
    """
    config = paddleocr_vl_config(**sizes)
    preprocessor = {
        "image_processor_type": "PaddleOCRVLImageProcessor",
        "processor_class": "PaddleOCRVLProcessor",
        "merge_size": config["vision_config"]["spatial_merge_size"],
        "min_pixels": 64,
        "max_pixels": 4096,
        "patch_size": config["vision_config"]["patch_size"],
        "temporal_patch_size": 1,
    }
    return _packed.write_packed(
        folder,
        config,
        TOKENS,
        preprocessor,
        names=HUB_NAMES,
        shards=shards,
        dtype=dtype,
        seed=seed,
    )
