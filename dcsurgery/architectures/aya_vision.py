"""Aya Vision: SigLIP tower, pixel shuffle, LayerNorm, SwiGLU projector."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Architecture, Config, Tensors, _plain
from dcsurgery.architectures import _reading as reading
from dcsurgery.architectures._shuffle import shuffle_square

if TYPE_CHECKING:
    from torch import Tensor

WIRING = _plain.Wiring(
    name="aya_vision",
    site="multi_modal_projector.linear_1",
    language_model="cohere2",
    towers={"siglip_vision_model": 0, "clip_vision_model": 1},
    vision_config={"image_size": 384, "patch_size": 14},
    normed=False,
    output=("alignment_intermediate_size",),
)


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of an AyaVisionForConditionalGeneration checkpoint."""
    merged = reading.positive(config, "downsample_factor", 2)
    anatomy = _plain.read_anatomy(config, tensors, WIRING, merged=merged)
    layer = _plain.read_layer(config, anatomy.tower, "full")
    return replace(anatomy, feature_layers=(layer,))


def arrange(run: Any, state: Tensor) -> Tensor:
    """Return rows [B, N / s^2, s^2 C] of a state, without CLS, s the downsample factor."""
    config = run.model.config
    cropped = 1 if config.vision_feature_select_strategy == "default" else 0
    return shuffle_square(state[:, cropped:], config.downsample_factor)


ARCHITECTURE = Architecture(
    name="aya_vision",
    class_names=("AyaVisionForConditionalGeneration",),
    dissect=dissect,
    checkpoints=("CohereLabs/aya-vision-8b", "CohereLabs/aya-vision-32b"),
    towers="SigLIP",
    arrange=arrange,
)
