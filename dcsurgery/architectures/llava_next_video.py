"""LLaVA-NeXT-Video: tiles of images as they are, frames of videos pooled before the projector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Architecture, Config, Tensors, _anyres, _llava
from dcsurgery.errors import AnatomyError, PlanError
from dcsurgery.features import FeatureLayout

if TYPE_CHECKING:
    from torch import Tensor


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of a LlavaNextVideoForConditionalGeneration checkpoint.

    `image_tokens` counts one tile of an image; a video frame has fewer (a quarter).
    """
    mode = config.get("spatial_pool_mode", "average")
    if mode != "average":
        raise AnatomyError(
            f"spatial_pool_mode is {mode!r}: only averages of a video's patches are the same "
            "before and after hidden states are joined",
            hint='models with "spatial_pool_mode": "average" can be converted',
        )
    name = "llava_next_video"
    return _llava.read_anatomy(config, tensors, name=name, defaults=_llava.DEFAULTS)


def arrange(run: Any, state: Tensor) -> Tensor:
    """Return patch tokens [B, N, C], pooled by the model's own resampler when it pooled too.

    Images and videos run through one tower with the same arguments: only the number of rows that
    the projector has read says which it was.
    """
    crop = run.model.config.vision_feature_select_strategy == "default"
    patches = state[:, 1:] if crop else state
    if run.site_rows in (0, patches.shape[0] * patches.shape[1]):
        return patches
    pooled: Tensor = getattr(run.model, "model", run.model).vision_resampler(patches)
    return pooled


def count_pooled(config: Config, anatomy: Anatomy, layout: FeatureLayout) -> Config:
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


ARCHITECTURE = Architecture(
    name="llava_next_video",
    class_names=("LlavaNextVideoForConditionalGeneration",),
    dissect=dissect,
    checkpoints=("llava-hf/LLaVA-NeXT-Video-7B-hf", "llava-hf/LLaVA-NeXT-Video-34B-hf"),
    towers="CLIP",
    arrange=arrange,
    stock_config=_llava.stock_config,
    stock_loader="transformers >= 4.49.0, LlavaNextVideoForConditionalGeneration",
    processor=count_pooled,
    token_connectors=("pool",),
    counting=_llava.counting("LlavaNextVideoProcessor"),
    resize=_llava.resize_grid,
    preprocess=_anyres.tile_images,
)
