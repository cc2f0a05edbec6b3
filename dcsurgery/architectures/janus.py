"""Janus and Janus-Pro, understanding path: SigLIP-like tower behind its last norm."""

from __future__ import annotations

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Architecture, Config, Tensors, _plain

WIRING = _plain.Wiring(
    name="janus",
    site="aligner.fc1",
    language_model="llama",
    module="vision_model",
    towers={"janus_vision_model": 0},
    fixed=True,
    image_size=384,
    output=("vision_config", "projection_dim"),
)


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of a JanusForConditionalGeneration checkpoint."""
    return _plain.read_anatomy(config, tensors, WIRING)


ARCHITECTURE = Architecture(
    name="janus",
    class_names=("JanusForConditionalGeneration",),
    dissect=dissect,
    checkpoints=("deepseek-community/Janus-Pro-1B", "deepseek-community/Janus-Pro-7B"),
    towers="SigLIP-like",
)
