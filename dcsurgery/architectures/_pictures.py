"""Model inputs for PIL pictures, for bases that come without a processor's files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import TYPE_CHECKING, Any

from dcsurgery.architectures import _reading as reading
from dcsurgery.architectures._wiring import NOMINAL_GRID

if TYPE_CHECKING:
    from torch import Tensor

MERGE_WORDS = {"merge_size": "spatial_merge_size"}
QWEN_WORDS = {**MERGE_WORDS, "temporal_patch_size": "temporal_patch_size"}


def square_pictures(images: Sequence[Any], side: int) -> Tensor:
    """Return PIL images as [n, 3, side, side] in -1..1, resized without regard to their shape."""
    import numpy as np
    import torch

    arrays = [np.asarray(item.resize((side, side)), np.float32) / 127.5 - 1 for item in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def square_patches(images: Sequence[Any], grid: int, patch: int) -> Tensor:
    """Return PIL images as grid x grid patches in reading order, [n, grid^2, patch * patch * 3].

    A patch is its pixels row by row, colours last.
    """
    cut = square_pictures(images, grid * patch).reshape(-1, 3, grid, patch, grid, patch)
    return cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def raster_patches(config: Mapping[str, Any], images: Sequence[Any]) -> dict[str, Tensor]:
    """Return pictures as NOMINAL_GRID^2 patches [n * grid^2, 3, p, p] each, in reading order."""
    import torch

    patch = reading.positive(reading.section(config, "vision_config"), "patch_size", 14)
    grid = NOMINAL_GRID
    cut = square_pictures(images, grid * patch).reshape(-1, 3, grid, patch, grid, patch)
    return {
        "pixel_values": cut.permute(0, 2, 4, 1, 3, 5).flatten(0, 2),
        "image_grid_thw": torch.tensor([[1, grid, grid]] * len(images)),
    }


def one_prompt(config: Mapping[str, Any], images: Sequence[Any]) -> dict[str, Tensor]:
    """Return pixel_values [1, n, 3, S, S]: one prompt with all the images, not cut into tiles."""
    side = reading.positive(reading.section(config, "vision_config"), "image_size", 224)
    return {"pixel_values": square_pictures(images, side)[None]}


def two_sizes(config: Mapping[str, Any], images: Sequence[Any]) -> dict[str, Tensor]:
    """Return pixel_values and high_res_pixel_values [n, 3, S, S], each of its tower's size."""
    low = reading.positive(reading.section(config, "vision_config"), "image_size", 224)
    high = reading.positive(reading.section(config, "high_res_vision_config"), "image_size", 1024)
    return {
        "pixel_values": square_pictures(images, low),
        "high_res_pixel_values": square_pictures(images, high),
    }


def padded_patches(config: Mapping[str, Any], images: Sequence[Any]) -> dict[str, Tensor]:
    """Return every picture as one nominal square of patches, not cut into tiles (LFM2-VL)."""
    import torch

    vision = reading.section(config, "vision_config")
    grid = isqrt(reading.positive(vision, "num_patches", 256))
    factor = reading.positive(config, "downsample_factor", 2)
    grid = max(grid // factor, 1) * factor
    patches = square_patches(images, grid, reading.positive(vision, "patch_size", 16))
    return {
        "pixel_values": patches,
        "pixel_attention_mask": torch.ones(patches.shape[:2], dtype=torch.long),
        "spatial_shapes": torch.tensor([[grid, grid]] * len(images)),
    }


def pack_squares(
    config: Mapping[str, Any],
    pictures: Sequence[Any],
    processor: str = "Qwen2VLImageProcessor",
    words: Mapping[str, str] = QWEN_WORDS,
) -> dict[str, Tensor]:
    """Return PIL images as the tower's arguments: squares of about NOMINAL_GRID patches a side.

    `processor` is the transformers class that cuts patches in the tower's order; `words` map its
    keywords to keys of the vision config.
    """
    import transformers

    # The config's own class knows what the file leaves out.
    vision = transformers.AutoConfig.for_model(**config).vision_config.to_dict()
    patch = reading.positive(vision, "patch_size", 14)
    sizes = {word: reading.positive(vision, key, 2) for word, key in words.items()}
    grain = patch * sizes.get("merge_size", 1)
    side = max(NOMINAL_GRID * patch // grain, 1) * grain
    half = [0.5] * 3
    cut = getattr(transformers, processor)(
        do_resize=False, image_mean=half, image_std=half, patch_size=patch, **sizes
    )
    squares = [picture.resize((side, side)) for picture in pictures]
    return dict(cut(images=squares, return_tensors="pt"))


def tile_images(config: dict[str, Any], images: Sequence[Any]) -> dict[str, Tensor]:
    """Return pixel_values [images, 1 + tiles, 3, S, S] and image_sizes [images, 2] of PIL images.

    Each is stretched to the first of the config's pinpoints and cut into tiles of the tower's size,
    beside a small copy of the whole (AnyRes): a picture of exactly that size is never padded, so
    tiles and copy are all there is to it.
    """
    import torch
    from transformers import AutoConfig

    # The config's own class knows what the file leaves out.
    known = AutoConfig.for_model(**config)
    side = known.vision_config.image_size
    height, width = known.image_grid_pinpoints[0]
    corners = [(x, y) for y in range(0, height, side) for x in range(0, width, side)]
    tiles = []
    for image in images:
        whole = image.resize((width, height))
        cut = [whole.crop((x, y, x + side, y + side)) for x, y in corners]
        tiles.append(square_pictures([image, *cut], side))
    return {
        "pixel_values": torch.stack(tiles),
        "image_sizes": torch.tensor([[height, width]] * len(tiles)),
    }
