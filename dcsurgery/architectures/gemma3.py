"""Gemma 3 with vision: SigLIP tower behind its last norm, average pool, norm, one matrix."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Architecture, Config, Tensors, _plain
from dcsurgery.architectures import _reading as reading

if TYPE_CHECKING:
    from torch import Tensor

# The matrix is a bare parameter of the projector, whose output is its product.
SITE = "multi_modal_projector"
WIRING = _plain.Wiring(name="gemma3", site=SITE, language_model="gemma3_text")


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of a Gemma3ForConditionalGeneration checkpoint."""
    projector = reading.read_projector(
        tensors, {SITE: f"{SITE}.mm_input_projection_weight"}, SITE, transposed=True
    )
    anatomy = _plain.read_anatomy(config, tensors, WIRING, projector=projector)
    tokens = reading.positive(config, "mm_tokens_per_image", 256)
    side, grid = math.isqrt(tokens), anatomy.tower.grid
    reading.require(
        side**2 == tokens and grid % side == 0,
        f"mm_tokens_per_image is {tokens}, which a grid of {grid} x {grid} patches cannot be "
        "pooled to",
    )
    return replace(anatomy, image_tokens=tokens)


def arrange(run: Any, state: Tensor) -> Tensor:
    """Return rows [B, tokens, C]: the means of square windows of a state [B, N, C]."""
    from torch.nn.functional import avg_pool2d

    batch, count, width = state.shape
    grid = math.isqrt(count)
    window = grid // math.isqrt(run.model.config.mm_tokens_per_image)
    maps = state.transpose(1, 2).reshape(batch, width, grid, grid)
    return avg_pool2d(maps, window).flatten(2).transpose(1, 2)


ARCHITECTURE = Architecture(
    name="gemma3",
    class_names=("Gemma3ForConditionalGeneration",),
    dissect=dissect,
    checkpoints=("google/gemma-3-4b-it", "google/gemma-3-12b-it", "google/gemma-3-27b-it"),
    towers="SigLIP",
    arrange=arrange,
)
