"""Qwen3-VL, dense and mixture of experts: the main merger; DeepStack's own stay as they are."""

from __future__ import annotations

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Architecture, Config, Tensors, _packed
from dcsurgery.architectures import _reading as reading

SITE = "visual.merger.linear_fc1"
TOWER = _packed.PackedTower(patch_size=16)


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of a Qwen3VLForConditionalGeneration checkpoint."""
    projector = reading.read_projector(tensors, {SITE: f"{SITE}.weight"}, "visual.merger")
    grid = _packed.position_grid(reading.find_tensor(tensors, "visual.pos_embed.weight"))
    return _packed.read_anatomy(config, tensors, "qwen3_vl", TOWER, projector, grid)


ARCHITECTURE = Architecture(
    name="qwen3_vl",
    class_names=(
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLMoeForConditionalGeneration",
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5MoeForConditionalGeneration",
    ),
    dissect=dissect,
    checkpoints=("Qwen/Qwen3-VL-4B-Instruct", "Qwen/Qwen3-VL-30B-A3B-Instruct"),
    towers="Qwen3-VL ViT",
    arrange=_packed.merge_neighbours,
    preprocess=_packed.pack_squares,
)
