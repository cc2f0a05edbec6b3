"""Tiny Llama 3.2 Vision checkpoints with the names and config words of the published ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dcsurgery.tiny.weights import write_model
from tests.tiny.parts import base_config, square, text_section, vision_section, write_processor

SPECIALS = ("<|image|>", "<|python_tag|>")
HUB_NAMES = (
    (r"^model\.vision_model\.", "vision_model."),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.multi_modal_projector\.", "multi_modal_projector."),
)
# All (width, height) of at most four tiles.
RATIOS = [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]


def mllama_config(
    *, layers: Sequence[int] = (0, 2), global_depth: int = 2, **sizes: int
) -> dict[str, Any]:
    """Return the config.json of a tiny Llama 3.2 Vision.

    `layers` are the block outputs the projector reads, `sizes` as in vision_section.
    """
    vision = vision_section(**sizes)
    text = {
        **text_section("llama", SPECIALS),
        "model_type": "mllama_text_model",
        "cross_attention_layers": [1],
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 1024,
            "rope_type": "llama3",
        },
    }
    config = base_config("MllamaForConditionalGeneration", "mllama", SPECIALS)
    return {
        **config,
        "image_token_index": config.pop("image_token_id"),
        "text_config": text,
        "vision_config": {
            **vision,
            "attention_heads": vision.pop("num_attention_heads"),
            "intermediate_layers_indices": list(layers),
            "max_num_tiles": 4,
            "model_type": "mllama_vision_model",
            "num_global_layers": global_depth,
            "supported_aspect_ratios": RATIOS,
            "vision_output_dim": vision["hidden_size"] * (1 + len(layers)),
        },
    }


def write_tiny_mllama(
    folder: Path, *, shards: int = 1, dtype: str = "float32", seed: int = 0, **sizes: Any
) -> Path:
    """Write a tiny Llama 3.2 Vision into `folder` and return it; `sizes` as in mllama_config."""
    config = mllama_config(**sizes)
    write_model(
        folder,
        "MllamaForConditionalGeneration",
        config,
        names=HUB_NAMES,
        shards=shards,
        dtype=dtype,
        seed=seed,
    )
    image_processor = {
        "image_processor_type": "MllamaImageProcessor",
        "max_image_tiles": 4,
        "processor_class": "MllamaProcessor",
        "size": square(config["vision_config"]["image_size"]),
    }
    write_processor(folder, SPECIALS, image_processor)
    return folder
