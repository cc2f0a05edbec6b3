"""Cutting square pictures and feature maps into tiles, and maps into the part under each patch."""

from __future__ import annotations

from torch import Tensor


def split_tiles(maps: Tensor, grid: int) -> Tensor:
    """Cut [B, C, grid * h, grid * w] into tiles [B * grid ** 2, C, h, w].

    Tiles of one map follow each other, row by row. Raises ValueError for a map that does not divide
    by the grid.
    """
    if grid == 1:
        return maps
    rows = _split_sides(maps, grid)
    return rows.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def split_cells(maps: Tensor, side: int) -> Tensor:
    """Return the part of a map under every patch: [B, C, side * s, side * s] -> [B, N, s * s, C].

    N = side ** 2 patches, row by row, as are the places inside a patch. Raises ValueError for a map
    that does not divide by the patches.
    """
    rows = _split_sides(maps, side)
    return rows.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)


def _split_sides(maps: Tensor, parts: int) -> Tensor:
    """Return [B, C, parts, h / parts, parts, w / parts]."""
    batch, channels, height, width = maps.shape
    if height % parts or width % parts:
        raise ValueError(
            f"{height} x {width} places do not divide by {parts} x {parts}: use pictures of the "
            "sizes in the model's config"
        )
    return maps.reshape(batch, channels, parts, height // parts, parts, width // parts)
