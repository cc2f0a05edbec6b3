"""Qwen2-VL: packed patches, the merger inside the tower's module."""

from __future__ import annotations

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Architecture, Config, Tensors, _packed
from dcsurgery.architectures import _reading as reading

SITE = "visual.merger.mlp.0"
# vision_config.hidden_size is the language model's width here.
TOWER = _packed.PackedTower(width="embed_dim")


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of a Qwen2VLForConditionalGeneration checkpoint."""
    projector = reading.read_projector(tensors, {SITE: f"{SITE}.weight"}, "visual.merger")
    return _packed.read_anatomy(config, tensors, "qwen2_vl", TOWER, projector)


ARCHITECTURE = Architecture(
    name="qwen2_vl",
    class_names=("Qwen2VLForConditionalGeneration",),
    dissect=dissect,
    checkpoints=("Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-7B-Instruct"),
    towers="Qwen2-VL ViT",
    arrange=_packed.merge_neighbours,
    preprocess=_packed.pack_squares,
)
