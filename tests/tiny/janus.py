"""Tiny Janus checkpoints; published names are the module names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcsurgery.tiny.weights import write_model
from tests.tiny.parts import base_config, square, text_section, vision_section, write_processor

CLASS = "JanusForConditionalGeneration"
SPECIALS = ("<image_placeholder>", "<begin_of_image>", "<end_of_image>")
NAMED = {
    "image_token": "<image_placeholder>",
    "boi_token": "<begin_of_image>",
    "eoi_token": "<end_of_image>",
}


def janus_config(**sizes: int) -> dict[str, Any]:
    """Return the config.json of a tiny Janus; the image generator is as small as it can be."""
    text = text_section("llama", SPECIALS)
    hidden = text["hidden_size"]
    vision = vision_section(**sizes)
    # JanusVisionConfig has a ratio instead.
    del vision["intermediate_size"]
    side = vision["image_size"] // vision["patch_size"]
    return {
        **base_config(CLASS, "janus", SPECIALS),
        "text_config": text,
        "vision_config": {
            **vision,
            "mlp_ratio": 2.0,
            "model_type": "janus_vision_model",
            "num_image_tokens": side**2,
            "projection_dim": hidden,
        },
        "vq_config": {
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "embed_dim": 8,
            "image_token_embed_dim": hidden,
            "latent_channels": 32,
            "model_type": "janus_vqgan",
            "num_embeddings": 16,
            "num_res_blocks": 1,
            "projection_dim": hidden,
        },
    }


def write_tiny_janus(
    folder: Path, *, shards: int = 1, dtype: str = "float32", seed: int = 0, **sizes: int
) -> Path:
    """Write a tiny Janus into `folder` and return it; `sizes` as in vision_section."""
    config = janus_config(**sizes)
    write_model(folder, CLASS, config, shards=shards, dtype=dtype, seed=seed)
    image_processor = {
        "image_processor_type": "JanusImageProcessor",
        "min_size": 14,
        "size": square(config["vision_config"]["image_size"]),
    }
    processor = {
        "num_image_tokens": config["vision_config"]["num_image_tokens"],
        "processor_class": "JanusProcessor",
    }
    write_processor(folder, SPECIALS, image_processor, processor, NAMED)
    return folder
