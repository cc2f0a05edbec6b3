"""What lies between a tower and a first matrix, without norms: a family's `steps`.

A step is a list of a function of modeling_dense_connector.py and its arguments: data, that the
portable form keeps in config.json and `Architecture.arrange` carries out for a loaded model.
"""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING, Any

from dcsurgery.anatomy import Anatomy

if TYPE_CHECKING:
    from torch import Tensor

Config = dict[str, Any]
Steps = list[list[Any]]


def window(anatomy: Anatomy) -> int:
    """Return how many patches a side become one row of the first matrix."""
    return isqrt(anatomy.feature_width // anatomy.tower.width)


def crop(anatomy: Anatomy, config: Config, *spared: str) -> Steps:
    """Cut the leading tokens that the anatomy says are dropped; a tower `spared` keeps them."""
    return [["crop", anatomy.dropped_tokens, *spared]] if anatomy.dropped_tokens else []


def shuffle(anatomy: Anatomy, config: Config) -> Steps:
    """Join windows of a square grid: rows first, then columns, then channels."""
    return [*crop(anatomy, config), ["shuffle", window(anatomy)]]


def merge(anatomy: Anatomy, config: Config) -> Steps:
    """Join windows whose patches the tower keeps together.

    In window order too (Qwen2.5-VL): what the merger gives is put back in raster order after it.
    """
    return [["merge", window(anatomy)]]


def average(anatomy: Anatomy, config: Config) -> Steps:
    """Average square windows, as many as the language model has image tokens."""
    return [["average", anatomy.tower.grid // isqrt(anatomy.image_tokens)]]


def cut_windows(anatomy: Anatomy, config: Config) -> Steps:
    """Join windows of packed pictures, channels first (Pixtral)."""
    return [["windows", window(anatomy), anatomy.tower.patch_size, "image_sizes", 1]]


def average_frames(run: Any, state: Tensor) -> list[Tensor]:
    """Return [sum of h w / m^2, m^2 C] of [N, C] in raster order, frames of a video averaged.

    Not a step but `rows`: the portable form is not written for Kimi.
    """
    import torch

    from dcsurgery.modeling.modeling_dense_connector import shuffled

    m = run.model.config.vision_config.merge_kernel_size[0]
    grids = run.argument("tower", "grid_thw", 1)
    parts = torch.split(state, grids.prod(dim=1).tolist())
    means = [
        shuffled(part.reshape(t, h, w, -1), m).mean(dim=0).flatten(0, 1)  # type: ignore[no-untyped-call]
        for part, (t, h, w) in zip(parts, grids.tolist(), strict=True)
    ]
    return [torch.cat(means)]
