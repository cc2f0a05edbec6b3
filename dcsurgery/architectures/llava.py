"""The LLaVA families, whose config names the hidden states that are read, one or several."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Architecture, Config, Counting, Tensors, _llava, _steps
from dcsurgery.architectures import _reading as reading
from dcsurgery.architectures._pictures import tile_images
from dcsurgery.errors import AnatomyError, PlanError
from dcsurgery.features import FeatureLayout

VIDEO = "video_tower"
# LlavaOnevisionConfig without a vision_config means SigLIP-so400m cut to 26 blocks.
ONEVISION: Config = {
    "text_config": {"model_type": "qwen2"},
    "vision_config": {"model_type": "siglip_vision_model", "image_size": 384, "patch_size": 14},
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
}
# VideoLlavaConfig without one means CLIP-L/224.
VIDEO_LLAVA: Config = {
    **_llava.DEFAULTS,
    "vision_config": {"model_type": "clip_vision_model", "image_size": 224, "patch_size": 14},
}
# VipLlavaConfig's own.
VIPLLAVA_LAYERS = [-2, -5, -8, -11, 6]


def read_next_video(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of a LLaVA-NeXT-Video; a video's frame has a quarter of a tile's tokens.

    Raises AnatomyError for videos that are not pooled by averages.
    """
    mode = config.get("spatial_pool_mode", "average")
    if mode != "average":
        raise AnatomyError(
            f"spatial_pool_mode is {mode!r}: only averages of a video's patches are the same "
            "before and after hidden states are joined",
            hint='models with "spatial_pool_mode": "average" can be converted',
        )
    return _llava.read_anatomy(config, tensors, name="llava_next_video", tiled=True)


def read_video_llava(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of a Video-LLaVA, two towers of one shape; a frame keeps its CLS token."""
    anatomy = _llava.read_anatomy(
        config, tensors, name="video_llava", defaults=VIDEO_LLAVA, module="image_tower"
    )
    tower = anatomy.tower
    blocks = tower.blocks.replace(tower.module, VIDEO)
    depth = reading.count_blocks(tensors, blocks)
    reading.require(
        depth == tower.depth, f"the towers have {tower.depth} and {depth} blocks, not the same"
    )
    return replace(anatomy, tower=replace(tower, twins=((VIDEO, blocks),)))


def read_vipllava(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of a ViP-LLaVA, whose layers all lie before one LayerNorm.

    The added states do not pass it. Its code cuts the first token off; no key says so.
    """
    # transformers 4.x wrote vision_feature_layers; 5.x reads both and prefers the old one.
    layers = config.get(
        "vision_feature_layers", config.get("vision_feature_layer", VIPLLAVA_LAYERS)
    )
    stated = {"vision_feature_layer": layers, "vision_feature_select_strategy": "default"}
    return _llava.read_anatomy({**config, **stated}, tensors, name="vipllava")


def pool_frames(anatomy: Anatomy, config: Config) -> _steps.Steps:
    """Return patch tokens, pooled where the model's own resampler pools: those of a video.

    Images and videos run through one tower with the same arguments: only the number of rows that
    the projector has read says which it was.
    """
    stride = config.get("spatial_pool_stride", 2)
    return [*_steps.crop(anatomy, config), ["average_frames", stride]]


def count_video(config: Config, anatomy: Anatomy, layout: FeatureLayout) -> Config:
    """Return processor words for a pooled grid; raises PlanError when videos would be miscounted.

    The processor counts a frame as (side // patch_size)^2 // 4 tokens: right only while both
    halvings, the resampler's and ours, leave nothing over.
    """
    side = anatomy.tower.grid
    if side % (2 * layout.pool):
        raise PlanError(
            f"--pool {layout.pool} needs a grid whose side divides by {2 * layout.pool}: this "
            f"model's processor would miscount the tokens of a video on a {side} x {side} grid",
            hint="convert without --pool",
        )
    return _llava.count_pooled(config, anatomy, layout)


def count_tile(config: Config, anatomy: Anatomy, layout: FeatureLayout) -> Config:
    """Return processor words for a pooled grid: everything is derived from the tokens of a tile."""
    return {**config, "num_image_tokens": layout.count_tokens(anatomy.image_tokens)}


def counting_tile(anatomy: Anatomy) -> Counting:
    """Return how LLaVA-OneVision's processor counts: a tile's tokens are a word of their own."""

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


def _stock(class_name: str) -> dict[str, Any]:
    return {
        "class_names": (class_name,),
        "stock_config": _llava.stock_config,
        "stock_loader": f"transformers >= 4.49.0, {class_name}",
    }


# The projector sees tiles of a picture one by one, and their grid may be pooled.
TILED: dict[str, Any] = {
    "token_connectors": ("pool",),
    "resize": _llava.resize_grid,
    "preprocess": tile_images,
}

ARCHITECTURES = (
    Architecture(
        name="llava",
        dissect=partial(_llava.read_anatomy, name="llava"),
        checkpoints=(
            "llava-hf/llava-1.5-7b-hf",
            "llava-hf/llava-1.5-13b-hf",
            "llava-hf/llava-interleave-qwen-0.5b-hf",
            "mistral-community/pixtral-12b",
            "liuhaotian/llava-v1.5-7b",
            "HuanjinYao/DenseConnector-v1.5-7B",
        ),
        towers="CLIP, SigLIP, Pixtral, DINOv2, DINOv3 and other ViTs",
        processor=_llava.count_appended,
        counting=_llava.counting("LlavaProcessor"),
        token_connectors=("sti", "pool"),
        **_stock("LlavaForConditionalGeneration"),
    ),
    Architecture(
        name="llava_next",
        dissect=partial(_llava.read_anatomy, name="llava_next", tiled=True),
        checkpoints=(
            "llava-hf/llava-v1.6-mistral-7b-hf",
            "llava-hf/llava-v1.6-vicuna-7b-hf",
            "llava-hf/llava-v1.6-34b-hf",
            "ibm-granite/granite-vision-3.3-2b",
            "liuhaotian/llava-v1.6-mistral-7b",
            "HuanjinYao/DenseConnector-v1.5-SigLIP-7B-AnyRes",
        ),
        towers="CLIP, SigLIP, DINOv2 and other ViTs",
        processor=_llava.count_pooled,
        counting=_llava.counting("LlavaNextProcessor"),
        **_stock("LlavaNextForConditionalGeneration"),
        **TILED,
    ),
    Architecture(
        name="llava_next_video",
        dissect=read_next_video,
        checkpoints=("llava-hf/LLaVA-NeXT-Video-7B-hf", "llava-hf/LLaVA-NeXT-Video-34B-hf"),
        towers="CLIP",
        steps=pool_frames,
        processor=count_video,
        counting=_llava.counting("LlavaNextVideoProcessor"),
        **_stock("LlavaNextVideoForConditionalGeneration"),
        **TILED,
    ),
    Architecture(
        name="llava_onevision",
        dissect=partial(
            _llava.read_anatomy, name="llava_onevision", defaults=ONEVISION, tiled=True
        ),
        checkpoints=(
            "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
            "llava-hf/llava-onevision-qwen2-7b-ov-hf",
            "llava-hf/llava-onevision-qwen2-72b-ov-hf",
        ),
        towers="SigLIP",
        processor=count_tile,
        counting=counting_tile,
        **_stock("LlavaOnevisionForConditionalGeneration"),
        **TILED,
    ),
    Architecture(
        name="video_llava",
        dissect=read_video_llava,
        checkpoints=("LanguageBind/Video-LLaVA-7B-hf",),
        towers="CLIP, twice",
        steps=lambda anatomy, config: _steps.crop(anatomy, config, VIDEO),
        **_stock("VideoLlavaForConditionalGeneration"),
    ),
    Architecture(
        name="vipllava",
        class_names=("VipLlavaForConditionalGeneration",),
        dissect=read_vipllava,
        checkpoints=("llava-hf/vip-llava-7b-hf", "llava-hf/vip-llava-13b-hf"),
        towers="CLIP",
        processor=_llava.count_appended,
        counting=_llava.counting("LlavaProcessor"),
        token_connectors=("pool",),
    ),
)
