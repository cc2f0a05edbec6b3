"""Qwen2.5-VL and EXAONE 4.5: packed patches in window order, the merger inside the tower."""

from __future__ import annotations

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Architecture, Config, Tensors, _packed
from dcsurgery.architectures import _reading as reading

SITE = "visual.merger.mlp.0"
TOWER = _packed.PackedTower()


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of a Qwen2_5_VLForConditionalGeneration checkpoint."""
    projector = reading.read_projector(tensors, {SITE: f"{SITE}.weight"}, "visual.merger")
    return _packed.read_anatomy(config, tensors, "qwen2_5_vl", TOWER, projector)


ARCHITECTURE = Architecture(
    name="qwen2_5_vl",
    class_names=("Qwen2_5_VLForConditionalGeneration", "Exaone4_5_ForConditionalGeneration"),
    dissect=dissect,
    checkpoints=(
        "Qwen/Qwen2.5-VL-3B-Instruct",
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "LGAI-EXAONE/EXAONE-4.5-33B",
    ),
    towers="Qwen2.5-VL ViT",
    # Blocks and merger work in window order; what they give is put back in raster order after it.
    arrange=_packed.merge_neighbours,
    preprocess=_packed.pack_squares,
)
