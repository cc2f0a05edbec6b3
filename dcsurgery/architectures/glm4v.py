"""GLM-4.1V, 4.5V, 4.6V and GLM-OCR: the first matrix is a strided convolution in the tower."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Architecture, Config, Tensors, _packed
from dcsurgery.architectures import _reading as reading

if TYPE_CHECKING:
    from torch import Tensor

SITE = "visual.downsample"
TOWER = _packed.PackedTower()


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of a Glm4vForConditionalGeneration checkpoint."""
    projector = reading.read_projector(tensors, {SITE: f"{SITE}.weight"}, SITE)
    merger = reading.read_projector(tensors, {}, "visual.merger")
    projector = replace(projector, tensors=tuple(sorted(projector.tensors + merger.tensors)))
    vision = reading.section(config, "vision_config")
    grid = reading.positive(vision, "image_size", 336) // reading.positive(vision, "patch_size", 14)
    return _packed.read_anatomy(config, tensors, "glm4v", TOWER, projector, grid)


def arrange(run: Any, state: Tensor) -> Tensor:
    """Return one state [N, C] as flattened windows [N / m^2, C m^2], channels first as in the
    convolution's weight."""
    merge = run.model.config.vision_config.spatial_merge_size
    windows = state.reshape(-1, merge, merge, state.shape[-1])
    return windows.permute(0, 3, 1, 2).flatten(1)


ARCHITECTURE = Architecture(
    name="glm4v",
    class_names=(
        "Glm4vForConditionalGeneration",
        "Glm4vMoeForConditionalGeneration",
        "Glm46VForConditionalGeneration",
        "GlmOcrForConditionalGeneration",
    ),
    dissect=dissect,
    checkpoints=("zai-org/GLM-4.1V-9B-Thinking", "zai-org/GLM-4.5V", "zai-org/GLM-OCR"),
    towers="GLM-V ViT",
    arrange=arrange,
    preprocess=_packed.pack_squares,
)
