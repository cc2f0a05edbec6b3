"""InternVL in the Hugging Face layout: InternViT, pixel shuffle, LayerNorm, two layers."""

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
    name="internvl",
    site="multi_modal_projector.linear_1",
    language_model="qwen2",
    blocks="encoder.layer",
    norm="layernorm_before",
    towers={"internvl_vision": 1},
    fixed=True,
    image_size=448,
    patch_size=14,
)


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of an InternVLForConditionalGeneration checkpoint."""
    ratio = config.get("downsample_ratio", 0.5)
    known = isinstance(ratio, int | float) and 0 < ratio <= 1
    reading.require(known, f"downsample_ratio is {ratio!r}, not a number between 0 and 1")
    anatomy = _plain.read_anatomy(config, tensors, WIRING, merged=int(1 / ratio))
    layer = _plain.read_layer(config, anatomy.tower, "default")
    # Only -1 means the tower's output; its last norm is there unless patches are mean-pooled.
    output = config.get("vision_feature_layer", -1) == -1
    pooled = reading.section(config, "vision_config").get("use_mean_pooling", True)
    return replace(anatomy, feature_layers=(layer,), normed=output and not pooled)


def arrange(run: Any, state: Tensor) -> Tensor:
    """Return rows [B, N / s^2, s^2 C] of a state [B, 1 + N, C], without CLS, 1 / s the ratio."""
    return shuffle_square(state[:, 1:], int(1 / run.model.config.downsample_ratio))


ARCHITECTURE = Architecture(
    name="internvl",
    class_names=("InternVLForConditionalGeneration",),
    dissect=dissect,
    checkpoints=("OpenGVLab/InternVL3-1B-hf", "OpenGVLab/InternVL3_5-8B-HF"),
    towers="InternViT",
    arrange=arrange,
)
