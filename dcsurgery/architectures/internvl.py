"""InternVL in the Hugging Face layout: InternViT, pixel shuffle, LayerNorm, two layers."""

from __future__ import annotations

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Architecture, Config, Tensors, _internvl

WIRING = _internvl.wiring("internvl", "internvl_vision", "qwen2", "encoder.layer")


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of an InternVLForConditionalGeneration checkpoint."""
    return _internvl.read_anatomy(config, tensors, WIRING)


ARCHITECTURE = Architecture(
    name="internvl",
    class_names=("InternVLForConditionalGeneration",),
    dissect=dissect,
    checkpoints=("OpenGVLab/InternVL3-1B-hf", "OpenGVLab/InternVL3_5-8B-HF"),
    towers="InternViT",
    arrange=_internvl.arrange,
)
