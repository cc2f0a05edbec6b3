"""Tiny checkpoints of the Mistral 3 layout: Mistral 3, Mistral Large 4, LightOnOCR."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from dcsurgery.tiny.weights import write_model
from tests.tiny.parts import base_config, text_section, vision_section, write_processor

Family = Literal["mistral3", "mistral_large4", "lighton_ocr"]

SPECIALS = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")
_CLASS: dict[str, str] = {
    "mistral3": "Mistral3ForConditionalGeneration",
    "mistral_large4": "MistralLarge4ForConditionalGeneration",
    "lighton_ocr": "LightOnOcrForConditionalGeneration",
}
_TEXT: dict[str, dict[str, Any]] = {
    "mistral3": {"model_type": "mistral", "head_dim": 12},
    "mistral_large4": {
        "model_type": "mistral_large4_text",
        "index_head_dim": 8,
        "index_n_heads": 2,
        "index_topk": 64,
        "kv_lora_rank": 8,
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
    },
    "lighton_ocr": {"model_type": "qwen3", "head_dim": 12},
}
# LightOnOCR's published names are the module names.
HUB_NAMES = (
    (r"^model\.vision_tower\.", "vision_tower."),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.multi_modal_projector\.", "multi_modal_projector."),
)


def mistral3_config(
    family: Family = "mistral3", *, spatial_merge_size: int = 2, **sizes: int
) -> dict[str, Any]:
    """Return the config.json of a tiny model of the family; `sizes` as in vision_section."""
    vision = vision_section(**sizes)
    config = base_config(_CLASS[family], family, SPECIALS)
    if family != "lighton_ocr":
        config["image_token_index"] = config.pop("image_token_id")
        config["vision_feature_layer"] = -1
    # Mistral Large 4 has positions of its own.
    text = {**text_section("llama", SPECIALS), **_TEXT[family]}
    if family == "mistral_large4":
        del text["rope_theta"]
    return {
        **config,
        "spatial_merge_size": spatial_merge_size,
        "text_config": text,
        "vision_config": {
            **vision,
            "head_dim": vision["hidden_size"] // 2,
            "model_type": "pixtral",
            "rope_theta": 10000.0,
        },
    }


def write_tiny_mistral3(
    folder: Path,
    family: Literal["mistral3", "lighton_ocr"] = "mistral3",
    *,
    shards: int = 1,
    dtype: str = "float32",
    seed: int = 0,
    **sizes: int,
) -> Path:
    """Write a tiny model into `folder` and return it; `sizes` as in mistral3_config.

    The whole processor (PixtralProcessor) needs torchvision; its parts load without.
    """
    config = mistral3_config(family, **sizes)
    names = HUB_NAMES if family == "mistral3" else ()
    write_model(folder, _CLASS[family], config, names=names, shards=shards, dtype=dtype, seed=seed)
    vision = config["vision_config"]
    image_processor = {
        "image_processor_type": "PixtralImageProcessor",
        "patch_size": vision["patch_size"],
        "processor_class": "PixtralProcessor",
        "size": {"longest_edge": vision["image_size"]},
    }
    processor = {
        "image_break_token": SPECIALS[1],
        "image_end_token": SPECIALS[2],
        "image_token": SPECIALS[0],
        "patch_size": vision["patch_size"],
        "processor_class": "PixtralProcessor",
        "spatial_merge_size": config["spatial_merge_size"],
    }
    write_processor(folder, SPECIALS, image_processor, processor)
    return folder
