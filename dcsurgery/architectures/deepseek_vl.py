"""DeepSeek-VL 1.3B: SigLIP tower behind its last norm, two-layer projector."""

from __future__ import annotations

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Architecture, Config, Tensors, _plain

WIRING = _plain.Wiring(
    name="deepseek_vl", site="aligner.linear1", language_model="llama", module="vision_model"
)


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of a DeepseekVLForConditionalGeneration checkpoint."""
    return _plain.read_anatomy(config, tensors, WIRING)


ARCHITECTURE = Architecture(
    name="deepseek_vl",
    class_names=("DeepseekVLForConditionalGeneration",),
    dissect=dissect,
    checkpoints=("deepseek-community/deepseek-vl-1.3b-chat",),
    towers="SigLIP",
)
