"""Pixel shuffle: neighbouring patches joined along channels, as many families project them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def shuffle(grid: Tensor, side: int) -> Tensor:
    """Join windows of `side` x `side` patches: [B, h, w, C] -> [B, h / side, w / side, side^2 C].

    Inside a window rows come first, then columns, then channels.
    """
    batch, height, width, channels = grid.shape
    windows = grid.reshape(batch, height // side, side, width // side, side, channels)
    return windows.transpose(2, 3).reshape(batch, height // side, width // side, -1)


def shuffle_square(state: Tensor, side: int) -> Tensor:
    """Join windows of a square grid of patch tokens: [B, N, C] -> [B, N / side^2, side^2 C]."""
    batch, count, channels = state.shape
    edge = math.isqrt(count)
    return shuffle(state.reshape(batch, edge, edge, channels), side).flatten(1, 2)
