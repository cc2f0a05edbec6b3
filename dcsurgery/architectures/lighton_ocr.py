"""LightOnOCR: the layout of Mistral 3 under module names of its own."""

from __future__ import annotations

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Architecture, Config, Tensors, _mistral

NAMES = _mistral.Names(
    tower="vision_encoder", matrix="vision_projection.linear_1", parts=("vision_projection",)
)


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of a LightOnOcrForConditionalGeneration checkpoint."""
    # The code reads the last state whatever a config says.
    config = {**config, "vision_feature_layer": -1}
    return _mistral.read_anatomy(config, tensors, "lighton_ocr", "qwen3", NAMES, NAMES)


ARCHITECTURE = Architecture(
    name="lighton_ocr",
    class_names=("LightOnOcrForConditionalGeneration",),
    dissect=dissect,
    checkpoints=("lightonai/LightOnOCR-1B-1025",),
    towers="Pixtral",
    arrange=_mistral.arrange,
)
