"""Tiny ViP-LLaVA checkpoints: five layers behind one LayerNorm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcsurgery.tiny.llava import llava_config, write_llava, write_llava_processor

# The published ones read (-2, -5, -8, -11, 6) of 24 blocks.
LAYERS = [-2, -3, -4, -5, 2]


def vipllava_config(**sizes: Any) -> dict[str, Any]:
    """Return the config.json of a tiny ViP-LLaVA, with the key that transformers 4.x wrote."""
    config = llava_config("clip", **{"feature_layer": LAYERS, **sizes})
    layers = config.pop("vision_feature_layer")
    del config["vision_feature_select_strategy"]
    return {
        **config,
        "architectures": ["VipLlavaForConditionalGeneration"],
        "model_type": "vipllava",
        "projector_layernorm_eps": 1e-5,
        "vision_feature_layers": layers,
    }


def write_tiny_vipllava(
    folder: Path, *, shards: int = 1, dtype: str = "float32", seed: int = 0, **sizes: Any
) -> Path:
    """Write a tiny VipLlavaForConditionalGeneration with its processor; return `folder`."""
    config = vipllava_config(**sizes)
    write_llava(folder, config, shards=shards, dtype=dtype, seed=seed)
    vision = config["vision_config"]
    write_llava_processor(folder, "clip", vision["image_size"], vision["patch_size"])
    return folder
