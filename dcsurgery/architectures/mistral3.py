"""Mistral 3 (Mistral Small 3.1 and 3.2, Ministral 3): Pixtral tower, patch merger."""

from __future__ import annotations

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Architecture, Config, Tensors, _mistral

NAMES = _mistral.Names()


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of a Mistral3ForConditionalGeneration checkpoint."""
    return _mistral.read_anatomy(config, tensors, "mistral3", "mistral", NAMES, NAMES)


ARCHITECTURE = Architecture(
    name="mistral3",
    class_names=("Mistral3ForConditionalGeneration",),
    dissect=dissect,
    checkpoints=(
        "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
        "mistralai/Mistral-Small-3.2-24B-Instruct-2506",
    ),
    towers="Pixtral",
    arrange=_mistral.arrange,
)
