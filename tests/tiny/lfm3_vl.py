"""Tiny LFM3-VL checkpoints: a tower of convolutions and attention on packed patches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.tiny import _packed


def lfm3_vl_config(
    *, depth: int = 4, width: int = 16, patch_size: int = 4, merge: int = 2
) -> dict[str, Any]:
    """Return config.json; every other block of the tower convolves the patch grid."""
    text = {
        **_packed.text_config(_packed.QWEN_TOKENS),
        "conv_L_cache": 3,
        "head_dim": 12,
        "layer_types": ["conv", "full_attention"],
        "model_type": "lfm3",
        "norm_eps": 1e-05,
    }
    vision = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "layer_types": ["conv" if index % 2 else "full_attention" for index in range(depth)],
        "model_type": "lfm3_vl_vision",
        "num_attention_heads": 2,
        "num_hidden_layers": depth,
        "num_key_value_heads": 1,
        "patch_size": patch_size,
        "spatial_merge_size": merge,
        "temporal_patch_size": 2,
    }
    return {
        "architectures": ["Lfm3VlForConditionalGeneration"],
        "model_type": "lfm3_vl",
        "projector_hidden_size": 40,
        "text_config": text,
        "tie_word_embeddings": False,
        **_packed.vision_ids(),
        "vision_config": vision,
    }


def write_tiny_lfm3_vl(
    folder: Path, *, shards: int = 1, dtype: str = "float32", seed: int = 0, **sizes: int
) -> Path:
    """Write a tiny Lfm3VlForConditionalGeneration checkpoint into `folder` and return it.

    `sizes` are depth, width, patch_size and merge.
    """
    config = lfm3_vl_config(**sizes)
    return _packed.write_packed(
        folder,
        config,
        _packed.QWEN_TOKENS,
        _packed.qwen_processor(config["vision_config"]),
        shards=shards,
        dtype=dtype,
        seed=seed,
    )
