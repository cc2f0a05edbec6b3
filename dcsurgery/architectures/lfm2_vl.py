"""LFM2-VL: SigLIP 2 on pictures of any shape, padded to one length; the projector runs per picture.

Behind the tower's last norm: the padding is cut off, windows of patches are joined, a LayerNorm
over the joined channels follows unless the config switches it off.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import TYPE_CHECKING, Any

from dcsurgery.anatomy import Anatomy, VisionTower
from dcsurgery.architectures import Architecture, Config, Tensors
from dcsurgery.architectures import _reading as reading
from dcsurgery.architectures._patches import square_patches
from dcsurgery.architectures._shuffle import shuffle

if TYPE_CHECKING:
    from torch import Tensor

SITE = "multi_modal_projector.linear_1"
BLOCKS = "vision_tower.encoder.layers"
PATCHES = "embeddings.patch_embedding.weight"


def _sizes(config: Config) -> tuple[int, int, int]:
    """Return the nominal grid, in patches a side, the patch in pixels and the window in patches."""
    vision = reading.section(config, "vision_config")
    grid = isqrt(reading.positive(vision, "num_patches", 256))
    patch = reading.positive(vision, "patch_size", 16)
    return grid, patch, reading.positive(config, "downsample_factor", 2)


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of a Lfm2VlForConditionalGeneration checkpoint."""
    projector = reading.read_projector(tensors, {SITE: f"{SITE}.weight"}, "multi_modal_projector")
    vision = reading.section(config, "vision_config")
    grid, patch, factor = _sizes(config)
    tower = VisionTower(
        kind=vision.get("model_type", "siglip2_vision_model"),
        module="vision_tower",
        blocks=BLOCKS,
        width=reading.find_tensor(tensors, PATCHES).shape[0],
        depth=reading.count_blocks(tensors, BLOCKS),
        prefix_tokens=0,
        image_size=grid * patch,
        patch_size=patch,
    )
    reading.check_tower(tower, vision)
    site = projector.sites[0]
    reading.require(
        site.in_features == factor**2 * tower.width,
        f"{site.weight} reads {site.in_features} channels, not {factor} x {factor} patches of "
        f"{tower.width}",
    )
    return Anatomy(
        architecture="lfm2_vl",
        tower=tower,
        projector=projector,
        feature_layers=(tower.depth,),
        feature_width=site.in_features,
        dropped_tokens=0,
        image_tokens=(grid // factor) ** 2,
        variable_resolution=True,
        language_model=reading.language_model(config, "lfm2"),
        dtype=tensors[site.weight].dtype,
        normed=True,
    )


def arrange(run: Any, state: Tensor) -> list[Tensor]:
    """Return [1, h / f, w / f, f * f * C] for every picture of a padded state [n, N, C]."""
    factor = run.model.config.downsample_factor
    shapes = run.argument("spatial_shapes", 2).tolist()
    return [
        shuffle(picture[: height * width].reshape(1, height, width, -1), factor)
        for picture, (height, width) in zip(state, shapes, strict=True)
    ]


def preprocess(config: Config, images: Sequence[Any]) -> dict[str, Tensor]:
    """Return every picture as one nominal square, not cut into tiles."""
    import torch

    grid, patch, factor = _sizes(config)
    grid = max(grid // factor, 1) * factor
    patches = square_patches(images, grid, patch)
    return {
        "pixel_values": patches,
        "pixel_attention_mask": torch.ones(patches.shape[:2], dtype=torch.long),
        "spatial_shapes": torch.tensor([[grid, grid]] * len(images)),
    }


ARCHITECTURE = Architecture(
    name="lfm2_vl",
    class_names=("Lfm2VlForConditionalGeneration",),
    dissect=dissect,
    checkpoints=("LiquidAI/LFM2-VL-450M", "LiquidAI/LFM2-VL-1.6B", "LiquidAI/LFM2-VL-3B"),
    towers="SigLIP 2",
    arrange=arrange,
    preprocess=preprocess,
)
