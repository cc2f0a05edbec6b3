"""Video-LLaVA: an image tower and a video tower of one shape feed the same projector."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Architecture, Config, Tensors, _llava
from dcsurgery.architectures import _reading as reading

if TYPE_CHECKING:
    from torch import Tensor

VIDEO = "video_tower"
# VideoLlavaConfig without a vision_config means CLIP-L/224.
DEFAULTS: Config = {
    **_llava.DEFAULTS,
    "vision_config": {"model_type": "clip_vision_model", "image_size": 224, "patch_size": 14},
}


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of a VideoLlavaForConditionalGeneration checkpoint.

    `image_tokens` counts an image; a video frame has one more (its CLS token is kept).
    """
    anatomy = _llava.read_anatomy(
        config, tensors, name="video_llava", defaults=DEFAULTS, module="image_tower"
    )
    tower = anatomy.tower
    blocks = tower.blocks.replace(tower.module, VIDEO)
    depth = reading.count_blocks(tensors, blocks)
    reading.require(
        depth == tower.depth, f"the towers have {tower.depth} and {depth} blocks, not the same"
    )
    return replace(anatomy, tower=replace(tower, twins=((VIDEO, blocks),)))


def arrange(run: Any, state: Tensor) -> Tensor:
    """Return the tokens [B, N, C] that the projector reads: a video keeps its CLS tokens."""
    crop = run.model.config.vision_feature_select_strategy == "default"
    return state[:, 1:] if crop and run.tower != VIDEO else state


ARCHITECTURE = Architecture(
    name="video_llava",
    class_names=("VideoLlavaForConditionalGeneration",),
    dissect=dissect,
    checkpoints=("LanguageBind/Video-LLaVA-7B-hf",),
    towers="CLIP, twice",
    arrange=arrange,
    stock_config=_llava.stock_config,
    stock_loader="transformers >= 4.49.0, VideoLlavaForConditionalGeneration",
)
