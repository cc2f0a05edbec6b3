"""What lies between a tower and a first matrix, without norms: `arrange` of several families.

Each takes a tower pass and a state [B, N, C] of it, and returns what the asking site reads of it,
one tensor for each call of that site.
"""

from __future__ import annotations

import math
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def shuffle(grid: Tensor, side: int) -> Tensor:
    """Join windows of `side` x `side` patches: [B, h, w, C] -> [B, h / side, w / side, side^2 C].

    Inside a window rows come first, then columns, then channels.
    """
    batch, height, width, channels = grid.shape
    windows = grid.reshape(batch, height // side, side, width // side, side, channels)
    return windows.transpose(2, 3).reshape(batch, height // side, width // side, -1)


def join_windows(run: Any, state: Tensor, *, key: str, behind: int = 0) -> list[Tensor]:
    """Return [B, N / s^2, s^2 C] of a square grid, without CLS; s is what the config says at `key`.

    A ratio means one over it; `behind` tokens follow the patches.
    """
    config = run.model.config
    side = attrgetter(key)(config)
    cropped = getattr(config, "vision_feature_select_strategy", "full") == "default"
    patches = state[:, int(cropped) : state.shape[1] - behind]
    edge = math.isqrt(patches.shape[1])
    grid = patches.reshape(len(state), edge, edge, -1)
    return [shuffle(grid, int(1 / side) if side < 1 else side).flatten(1, 2)]


def pool_windows(run: Any, state: Tensor) -> list[Tensor]:
    """Return the means [B, tokens, C] of square windows: Gemma 3's mm_tokens_per_image of them."""
    from torch.nn.functional import avg_pool2d

    batch, count, width = state.shape
    grid = math.isqrt(count)
    window = grid // math.isqrt(run.model.config.mm_tokens_per_image)
    maps = state.transpose(1, 2).reshape(batch, width, grid, grid)
    return [avg_pool2d(maps, window).flatten(2).transpose(1, 2)]


def merge_neighbours(run: Any, state: Tensor) -> list[Tensor]:
    """Return [N / m^2, m^2 C] of [N, C] where the tower keeps the patches of a window together.

    In window order too (Qwen2.5-VL): what the merger gives is put back in raster order after it.
    """
    merge = run.model.config.vision_config.spatial_merge_size
    return [state.reshape(-1, merge**2 * state.shape[-1])]


def merge_channels_first(run: Any, state: Tensor) -> list[Tensor]:
    """Return the same with the channels first in a row, as a convolution's weight has them."""
    merge = run.model.config.vision_config.spatial_merge_size
    windows = state.reshape(-1, merge, merge, state.shape[-1])
    return [windows.permute(0, 3, 1, 2).flatten(1)]


def merge_each_picture(run: Any, state: Tensor) -> list[Tensor]:
    """Return [h w / m^2, m^2 C] picture by picture of [N, C], patches in raster order."""
    import torch

    m = run.model.config.vision_config.spatial_merge_size
    grids = run.argument("grid_thw", 1)
    parts = torch.split(state, grids.prod(dim=1).tolist())
    return [
        shuffle(part.reshape(t, h, w, -1), m).flatten(0, 2)
        for part, (t, h, w) in zip(parts, grids.tolist(), strict=True)
    ]


def merge_frames(run: Any, state: Tensor) -> list[Tensor]:
    """Return [sum of h w / m^2, m^2 C] of [N, C] in raster order, frames of a video averaged."""
    import torch

    m = run.model.config.vision_config.merge_kernel_size[0]
    grids = run.argument("grid_thw", 1)
    parts = torch.split(state, grids.prod(dim=1).tolist())
    return [
        torch.cat(
            [
                shuffle(part.reshape(t, h, w, -1), m).mean(dim=0).flatten(0, 1)
                for part, (t, h, w) in zip(parts, grids.tolist(), strict=True)
            ]
        )
    ]


def unpad_each_picture(run: Any, state: Tensor) -> list[Tensor]:
    """Return [1, h / f, w / f, f^2 C] picture by picture of a padded [n, N, C] (LFM2-VL)."""
    factor = run.model.config.downsample_factor
    shapes = run.argument("spatial_shapes", 2).tolist()
    return [
        shuffle(picture[: height * width].reshape(1, height, width, -1), factor)
        for picture, (height, width) in zip(state, shapes, strict=True)
    ]


def halve_maps(run: Any, state: Tensor) -> list[Tensor]:
    """Return [sum of t h w / m^2, C]: every picture halved by bilinear interpolation, or left.

    VideoLLaMA 3's tower keeps m x m windows of [N, C] together; m is given per picture.
    """
    import torch
    from torch.nn import functional

    grids, merges = run.argument("grid_thw", 1), run.argument("merge_sizes", 2)
    merged = []
    parts = torch.split(state, grids.prod(dim=1).tolist())
    for part, (t, h, w), m in zip(parts, grids.tolist(), merges.tolist(), strict=True):
        windows = part.reshape(t, h // m, w // m, m, m, -1).permute(0, 5, 1, 3, 2, 4)
        maps = windows.reshape(t, -1, h, w)
        halved = functional.interpolate(maps, size=(h // m, w // m), mode="bilinear")
        merged.append(halved.permute(0, 2, 3, 1).reshape(-1, state.shape[-1]))
    return [torch.cat(merged)]


def cut_windows(run: Any, state: Tensor) -> list[Tensor]:
    """Return windows [T, C m^2] of all pictures of [1, N, C]: channels, rows, columns (Pixtral).

    What does not fill a window at the right and lower edge is dropped.
    """
    import torch

    config = run.model.config
    sizes = torch.as_tensor(run.argument("image_sizes", 1)).tolist()
    patch, merge = config.vision_config.patch_size, config.spatial_merge_size
    grids = [(height // patch, width // patch) for height, width in sizes]
    pictures = torch.split(state.flatten(0, 1), [height * width for height, width in grids])
    rows = []
    for (height, width), picture in zip(grids, pictures, strict=True):
        high, wide = height // merge, width // merge
        grid = picture.reshape(height, width, -1)[: high * merge, : wide * merge]
        windows = grid.reshape(high, merge, wide, merge, -1).permute(0, 2, 4, 1, 3)
        rows.append(windows.flatten(2).flatten(0, 1))
    return [torch.cat(rows)]
