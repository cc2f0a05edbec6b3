"""What Idefics3 and SmolVLM share: SigLIP behind its last norm, pixel shuffle, one matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Config, Tensors, _plain
from dcsurgery.architectures import _reading as reading
from dcsurgery.architectures._pictures import square_pictures
from dcsurgery.architectures._shuffle import shuffle_square

if TYPE_CHECKING:
    from torch import Tensor


def wiring(name: str) -> _plain.Wiring:
    """Return where one of the two families keeps its parts."""
    return _plain.Wiring(
        name=name,
        site="connector.modality_projection.proj",
        language_model="llama",
        module="vision_model",
        towers={f"{name}_vision": 0},
        fixed=True,
        patch_size=32,
    )


def read_anatomy(config: Config, tensors: Tensors, name: str) -> Anatomy:
    """Return the anatomy of a model of one of the two families. Raises AnatomyError."""
    merged = reading.positive(config, "scale_factor", 2)
    return _plain.read_anatomy(config, tensors, wiring(name), merged=merged)


def arrange(run: Any, state: Tensor) -> Tensor:
    """Return rows [B, N / s^2, s^2 C] of a state [B, N, C], s the scale factor."""
    return shuffle_square(state, run.model.config.scale_factor)


def preprocess(config: Config, images: Sequence[Any]) -> dict[str, Tensor]:
    """Return pixel_values [1, n, 3, S, S]: one prompt with all the images, not cut into tiles."""
    side = reading.positive(reading.section(config, "vision_config"), "image_size", 224)
    return {"pixel_values": square_pictures(images, side)[None]}
