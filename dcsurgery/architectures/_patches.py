"""Pictures cut into patches, for towers that read patches and for bases without a processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dcsurgery.architectures._pictures import square_pictures

if TYPE_CHECKING:
    from torch import Tensor


def square_patches(images: Sequence[Any], grid: int, patch: int) -> Tensor:
    """Return PIL images as grid x grid patches in reading order, [n, grid^2, patch * patch * 3].

    A patch is its pixels row by row, colours last.
    """
    cut = square_pictures(images, grid * patch).reshape(-1, 3, grid, patch, grid, patch)
    return cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
