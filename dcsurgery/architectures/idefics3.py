"""Idefics3, the first SmolVLM, granite-docling-258M: SigLIP tower, pixel shuffle, one matrix."""

from __future__ import annotations

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Architecture, Config, Tensors, _idefics3


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of an Idefics3ForConditionalGeneration checkpoint."""
    return _idefics3.read_anatomy(config, tensors, "idefics3")


ARCHITECTURE = Architecture(
    name="idefics3",
    class_names=("Idefics3ForConditionalGeneration",),
    dissect=dissect,
    checkpoints=("HuggingFaceM4/Idefics3-8B-Llama3", "HuggingFaceTB/SmolVLM-256M-Instruct"),
    towers="SigLIP",
    arrange=_idefics3.arrange,
    preprocess=_idefics3.preprocess,
)
