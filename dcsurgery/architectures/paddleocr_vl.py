"""PaddleOCR-VL: SigLIP-like tower on packed patches in raster order, projector image by image."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Architecture, Config, Tensors, _packed
from dcsurgery.architectures import _reading as reading

if TYPE_CHECKING:
    from torch import Tensor

SITE = "projector.linear_1"
TOWER = _packed.PackedTower(
    blocks="visual.encoder.layers",
    patches="embeddings.patch_embedding.weight",
    depth="num_hidden_layers",
)


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of a PaddleOCRVLForConditionalGeneration checkpoint."""
    # Published files name the projector otherwise than the module is called.
    published = any("mlp_AR." in name for name in tensors)
    prefix = "mlp_AR" if published else "projector"
    projector = reading.read_projector(tensors, {SITE: f"{prefix}.linear_1.weight"}, prefix)
    vision = reading.section(config, "vision_config")
    grid = reading.positive(vision, "image_size", 384) // reading.positive(vision, "patch_size", 14)
    return _packed.read_anatomy(config, tensors, "paddleocr_vl", TOWER, projector, grid)


def arrange(run: Any, state: Tensor) -> list[Tensor]:
    """Return one state [N, C] as rows [h w / m^2, m^2 C] picture by picture, as they are read."""
    import torch

    m = run.model.config.vision_config.spatial_merge_size
    grids = run.argument("grid_thw", 1)
    parts = torch.split(state, grids.prod(dim=1).tolist())
    rows = []
    for part, (t, h, w) in zip(parts, grids.tolist(), strict=True):
        windows = part.reshape(t, h // m, m, w // m, m, -1).transpose(2, 3)
        rows.append(windows.reshape(t * h * w // m**2, -1))
    return rows


ARCHITECTURE = Architecture(
    name="paddleocr_vl",
    class_names=("PaddleOCRVLForConditionalGeneration",),
    dissect=dissect,
    checkpoints=("PaddlePaddle/PaddleOCR-VL",),
    towers="PaddleOCR-VL ViT",
    arrange=arrange,
    parameter_names=(("mlp_AR.", "projector."),),
    preprocess=partial(
        _packed.pack_squares, processor="PaddleOCRVLImageProcessor", words=_packed.MERGE_WORDS
    ),
)
