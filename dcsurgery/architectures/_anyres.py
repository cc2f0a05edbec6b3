"""AnyRes: an image is cut into tiles of the tower's size, beside a small copy of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def tile_images(config: dict[str, Any], images: Sequence[Any]) -> dict[str, Tensor]:
    """Return pixel_values [images, 1 + tiles, 3, S, S] and image_sizes [images, 2] of PIL images.

    Each is stretched to the first of the config's pinpoints: a picture of exactly that size is
    never padded, so tiles and copy are all there is to it.
    """
    import numpy as np
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
        tiles.append([np.asarray(tile, np.float32) for tile in (image.resize((side, side)), *cut)])
    pixels = torch.from_numpy(np.array(tiles) / np.float32(127.5) - 1)
    return {
        "pixel_values": pixels.permute(0, 1, 4, 2, 3).contiguous(),
        "image_sizes": torch.tensor([[height, width]] * len(tiles)),
    }
