"""LLaVA-OneVision: tiles, several images and videos through one SigLIP tower and one projector."""

from __future__ import annotations

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Architecture, Config, Counting, Tensors, _anyres, _llava
from dcsurgery.features import FeatureLayout

# LlavaOnevisionConfig: without a vision_config it means SigLIP-so400m cut to 26 blocks.
DEFAULTS: Config = {
    "text_config": {"model_type": "qwen2"},
    "vision_config": {"model_type": "siglip_vision_model", "image_size": 384, "patch_size": 14},
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
}


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of a LlavaOnevisionForConditionalGeneration checkpoint.

    `image_tokens` counts one tile. Tiles are joined, and the frames of a video pooled, after the
    projector.
    """
    return _llava.read_anatomy(config, tensors, name="llava_onevision", defaults=DEFAULTS)


def count_tile(config: Config, anatomy: Anatomy, layout: FeatureLayout) -> Config:
    """Return processor words for a pooled grid: everything is derived from the tokens of a tile."""
    return {**config, "num_image_tokens": layout.count_tokens(anatomy.image_tokens)}


def counting(anatomy: Anatomy) -> Counting:
    """Return how the processor counts: a tile's tokens are a word of their own."""

    def count(words: Config) -> int:
        cropped = words["vision_feature_select_strategy"] == "default"
        tokens: int = words["num_image_tokens"]
        return tokens - int(cropped)

    cropped = bool(anatomy.dropped_tokens)
    words = {
        "num_image_tokens": anatomy.image_tokens + cropped,
        "vision_feature_select_strategy": "default" if cropped else "full",
    }
    return Counting("LlavaOnevisionProcessor", words, dict.fromkeys(words), count)


ARCHITECTURE = Architecture(
    name="llava_onevision",
    class_names=("LlavaOnevisionForConditionalGeneration",),
    dissect=dissect,
    checkpoints=(
        "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        "llava-hf/llava-onevision-qwen2-72b-ov-hf",
    ),
    towers="SigLIP",
    stock_config=_llava.stock_config,
    stock_loader="transformers >= 4.49.0, LlavaOnevisionForConditionalGeneration",
    processor=count_tile,
    token_connectors=("pool",),
    counting=counting,
    resize=_llava.resize_grid,
    preprocess=_anyres.tile_images,
)
