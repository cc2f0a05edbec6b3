"""Pictures for models that come without a processor's files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def square_pictures(images: Sequence[Any], side: int) -> Tensor:
    """Return PIL images as [n, 3, side, side] in -1..1, resized without regard to their shape."""
    import numpy as np
    import torch

    arrays = [np.asarray(item.resize((side, side)), np.float32) / 127.5 - 1 for item in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
