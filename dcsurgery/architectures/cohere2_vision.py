"""Command A Vision: SigLIP tower behind its last norm, pixel shuffle, SwiGLU projector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Architecture, Config, Tensors, _plain
from dcsurgery.architectures import _reading as reading
from dcsurgery.architectures._shuffle import shuffle_square

if TYPE_CHECKING:
    from torch import Tensor

WIRING = _plain.Wiring(
    name="cohere2_vision",
    site="multi_modal_projector.linear_1",
    language_model="cohere2",
    vision_config={"image_size": 512},
    output=("alignment_intermediate_size",),
)


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of a Cohere2VisionForConditionalGeneration checkpoint."""
    merged = reading.positive(config, "downsample_factor", 2)
    return _plain.read_anatomy(config, tensors, WIRING, merged=merged)


def arrange(run: Any, state: Tensor) -> Tensor:
    """Return rows [B, N / s^2, s^2 C] of a state [B, N, C], s the downsample factor."""
    return shuffle_square(state, run.model.config.downsample_factor)


ARCHITECTURE = Architecture(
    name="cohere2_vision",
    class_names=("Cohere2VisionForConditionalGeneration",),
    dissect=dissect,
    checkpoints=("CohereLabs/command-a-vision-07-2025",),
    towers="SigLIP",
    arrange=arrange,
)
