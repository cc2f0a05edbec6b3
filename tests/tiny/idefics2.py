"""Tiny Idefics2 checkpoints; published names are the module names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcsurgery.tiny.weights import write_model
from tests.tiny.parts import base_config, text_section, vision_section, write_processor

SPECIALS = ("<image>", "<fake_token_around_image>", "<end_of_utterance>")


def idefics2_config(*, latents: int = 4, **sizes: int) -> dict[str, Any]:
    """Return the config.json of a tiny Idefics2.

    `latents` are the image tokens, `sizes` as in vision_section. The vision model type is the one
    published configs have; no class goes by it.
    """
    text = {**text_section("llama", SPECIALS), "model_type": "mistral", "head_dim": 12}
    return {
        **base_config("Idefics2ForConditionalGeneration", "idefics2", SPECIALS),
        "perceiver_config": {
            "hidden_size": text["hidden_size"],
            "model_type": "idefics2",
            "num_key_value_heads": 1,
            "resampler_depth": 2,
            "resampler_head_dim": 12,
            "resampler_n_heads": 2,
            "resampler_n_latents": latents,
            "rms_norm_eps": text["rms_norm_eps"],
        },
        "text_config": text,
        "vision_config": {**vision_section(**sizes), "model_type": "idefics2"},
    }


def write_tiny_idefics2(
    folder: Path, *, shards: int = 1, dtype: str = "float32", seed: int = 0, **sizes: int
) -> Path:
    """Write a tiny Idefics2 into `folder` and return it; `sizes` as in idefics2_config."""
    config = idefics2_config(**sizes)
    name = "Idefics2ForConditionalGeneration"
    write_model(folder, name, config, shards=shards, dtype=dtype, seed=seed)
    side = config["vision_config"]["image_size"]
    image_processor = {
        "do_image_splitting": True,
        "image_processor_type": "Idefics2ImageProcessor",
        "processor_class": "Idefics2Processor",
        "size": {"longest_edge": side, "shortest_edge": side // 2},
    }
    processor = {
        "image_seq_len": config["perceiver_config"]["resampler_n_latents"],
        "processor_class": "Idefics2Processor",
    }
    write_processor(folder, SPECIALS, image_processor, processor)
    return folder
