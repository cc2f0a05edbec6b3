"""SmolVLM2: SigLIP tower, pixel shuffle, one matrix; videos are frames among the images."""

from __future__ import annotations

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Architecture, Config, Tensors, _idefics3


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of a SmolVLMForConditionalGeneration checkpoint."""
    return _idefics3.read_anatomy(config, tensors, "smolvlm")


ARCHITECTURE = Architecture(
    name="smolvlm",
    class_names=("SmolVLMForConditionalGeneration",),
    dissect=dissect,
    checkpoints=(
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        "HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
    ),
    towers="SigLIP",
    arrange=_idefics3.arrange,
    preprocess=_idefics3.preprocess,
)
