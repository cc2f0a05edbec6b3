"""Tiny LFM2-VL checkpoints with the names and config words of the published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcsurgery.tiny.weights import write_model
from tests.tiny.parts import base_config, text_section, vision_section, write_processor

SPECIALS = ("<image>", "<|image_start|>", "<|image_end|>")
HUB_NAMES = (
    (r"^model\.language_model\.", "model.language_model."),
    (r"^model\.vision_tower\.(vision_model\.)?", "model.vision_tower.vision_model."),
    (r"^model\.multi_modal_projector\.", "model.multi_modal_projector."),
)


def lfm2_vl_config(
    *, factor: int = 2, layernorm: bool = True, image_size: int = 16, **sizes: int
) -> dict[str, Any]:
    """Return the config.json of a tiny LFM2-VL.

    `factor` x `factor` patches become one token, `layernorm` puts a norm before the first matrix;
    other sizes as in vision_section. The tower is told its patches, not its picture's size.
    """
    vision = vision_section(image_size=image_size, **sizes)
    del vision["image_size"]
    vision["num_patches"] = (image_size // vision["patch_size"]) ** 2
    text = {**text_section("llama", SPECIALS), "model_type": "lfm2", "norm_eps": 1e-5}
    return {
        **base_config("Lfm2VlForConditionalGeneration", "lfm2_vl", SPECIALS),
        "downsample_factor": factor,
        "projector_hidden_size": 20,
        "projector_use_layernorm": layernorm,
        "text_config": {**text, "layer_types": ["conv", "full_attention"]},
        "tie_word_embeddings": True,
        "vision_config": {**vision, "model_type": "siglip2_vision_model", "vision_use_head": False},
    }


def write_tiny_lfm2_vl(
    folder: Path, *, shards: int = 1, dtype: str = "float32", seed: int = 0, **sizes: Any
) -> Path:
    """Write a tiny LFM2-VL into `folder` and return it; `sizes` as in lfm2_vl_config.

    Its image processor needs torchvision.
    """
    config = lfm2_vl_config(**sizes)
    write_model(
        folder,
        "Lfm2VlForConditionalGeneration",
        config,
        names=HUB_NAMES,
        shards=shards,
        dtype=dtype,
        seed=seed,
    )
    image_processor = {
        "downsample_factor": config["downsample_factor"],
        "encoder_patch_size": config["vision_config"]["patch_size"],
        "image_processor_type": "Lfm2VlImageProcessorFast",
        "max_image_tokens": 4,
        "min_image_tokens": 1,
        "processor_class": "Lfm2VlProcessor",
        "tile_size": 16,
    }
    write_processor(folder, SPECIALS, image_processor)
    return folder
