"""What InternVL and Qianfan-OCR share: InternViT, pixel shuffle, LayerNorm, two layers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dcsurgery.anatomy import Anatomy, Projector
from dcsurgery.architectures import Config, Tensors, _plain
from dcsurgery.architectures import _reading as reading
from dcsurgery.architectures._shuffle import shuffle_square

if TYPE_CHECKING:
    from torch import Tensor

SITE = "multi_modal_projector.linear_1"


def wiring(name: str, kind: str, language_model: str, blocks: str) -> _plain.Wiring:
    """Return where one of the two families keeps its parts."""
    return _plain.Wiring(
        name=name,
        site=SITE,
        language_model=language_model,
        blocks=blocks,
        norm="layernorm_before",
        towers={kind: 1},
        fixed=True,
        image_size=448,
        patch_size=14,
    )


def read_anatomy(
    config: Config,
    tensors: Tensors,
    wired: _plain.Wiring,
    *,
    projector: Projector | None = None,
    tied: bool = False,
) -> Anatomy:
    """Return the anatomy of a model of one of the two families. Raises AnatomyError.

    `tied` towers give their output as the last hidden state.
    """
    ratio = config.get("downsample_ratio", 0.5)
    known = isinstance(ratio, int | float) and 0 < ratio <= 1
    reading.require(known, f"downsample_ratio is {ratio!r}, not a number between 0 and 1")
    merged = int(1 / ratio)
    anatomy = _plain.read_anatomy(config, tensors, wired, merged=merged, projector=projector)
    layer = _plain.read_layer(config, anatomy.tower, "default")
    # The output has passed a last norm unless patches are mean-pooled; untied towers name it by -1
    # alone, and the same state by its positive number has not passed it.
    output = config.get("vision_feature_layer", -1) == -1 or (tied and layer == anatomy.tower.depth)
    pooled = reading.section(config, "vision_config").get("use_mean_pooling", True)
    return replace(anatomy, feature_layers=(layer,), normed=output and not pooled)


def arrange(run: Any, state: Tensor) -> Tensor:
    """Return rows [B, N / s^2, s^2 C] of a state [B, 1 + N, C], without CLS, 1 / s the ratio."""
    return shuffle_square(state[:, 1:], int(1 / run.model.config.downsample_ratio))
