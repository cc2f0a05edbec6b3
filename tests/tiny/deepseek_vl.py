"""Tiny DeepSeek-VL, with SigLIP alone and beside SAM; names as transformers 4.5x writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcsurgery.tiny.weights import write_model
from tests.tiny.parts import base_config, siglip_section, square, text_section, write_processor

SPECIALS = ("<image_placeholder>",)
HUB_NAMES = ((r"^model\.vision_model\.", "model.vision_model.vision_model."),)


def deepseek_vl_config(**sizes: int) -> dict[str, Any]:
    """Return the config.json of a tiny DeepSeek-VL; its tower has a pooling head nobody reads."""
    return {
        **base_config("DeepseekVLForConditionalGeneration", "deepseek_vl", SPECIALS),
        "text_config": text_section("llama", SPECIALS),
        "vision_config": {**siglip_section(**sizes), "vision_use_head": True},
    }


def deepseek_vl_hybrid_config(**sizes: int) -> dict[str, Any]:
    """Return the config.json of a tiny DeepSeek-VL with a SAM tower of 32 pixels beside SigLIP."""
    return {
        **deepseek_vl_config(**sizes),
        **base_config("DeepseekVLHybridForConditionalGeneration", "deepseek_vl_hybrid", SPECIALS),
        "high_res_vision_config": {
            "global_attn_indexes": [1, 2],
            "hidden_size": 12,
            "image_size": 32,
            "mlp_dim": 24,
            "model_type": "sam_vision_model",
            "num_attention_heads": 2,
            "num_hidden_layers": 3,
            "num_pos_feats": 4,
            "output_channels": 4,
            "patch_size": 8,
            "window_size": 2,
        },
    }


def write_deepseek_vl(folder: Path, config: dict[str, Any], **writing: Any) -> Path:
    """Write weights and processor of either kind; `writing` as in write_model."""
    write_model(folder, config["architectures"][0], config, names=HUB_NAMES, **writing)
    vision, high = config["vision_config"], config.get("high_res_vision_config")
    name = "DeepseekVLHybrid" if high else "DeepseekVL"
    image_processor = {
        "image_processor_type": f"{name}ImageProcessor",
        "min_size": 14,
        "size": square(vision["image_size"]),
    }
    if high:
        image_processor["high_res_size"] = square(high["image_size"])
    processor = {
        "num_image_tokens": (vision["image_size"] // vision["patch_size"]) ** 2,
        "processor_class": f"{name}Processor",
    }
    named = {"image_token": SPECIALS[0]}
    write_processor(folder, SPECIALS, image_processor, processor, named)
    return folder


def write_tiny_deepseek_vl(
    folder: Path, *, shards: int = 1, dtype: str = "float32", seed: int = 0, **sizes: int
) -> Path:
    """Write a tiny DeepSeek-VL into `folder` and return it; `sizes` as in vision_section."""
    config = deepseek_vl_config(**sizes)
    return write_deepseek_vl(folder, config, shards=shards, dtype=dtype, seed=seed)


def write_tiny_deepseek_vl_hybrid(
    folder: Path, *, shards: int = 1, dtype: str = "float32", seed: int = 0, **sizes: int
) -> Path:
    """Write a tiny DeepSeek-VL with two towers; `sizes`, as in vision_section, are SigLIP's."""
    config = deepseek_vl_hybrid_config(**sizes)
    return write_deepseek_vl(folder, config, shards=shards, dtype=dtype, seed=seed)
