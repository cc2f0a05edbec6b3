"""PaliGemma 1 and 2: SigLIP tower behind its last norm, one linear projector."""

from __future__ import annotations

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Architecture, Config, Tensors, _plain

WIRING = _plain.Wiring(
    name="paligemma",
    site="multi_modal_projector.linear",
    language_model="gemma",
    vision_config={"patch_size": 14},
    output=("projection_dim",),
)


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of a PaliGemmaForConditionalGeneration checkpoint."""
    return _plain.read_anatomy(config, tensors, WIRING)


ARCHITECTURE = Architecture(
    name="paligemma",
    class_names=("PaliGemmaForConditionalGeneration",),
    dissect=dissect,
    checkpoints=("google/paligemma-3b-pt-224", "google/paligemma2-3b-pt-224"),
    towers="SigLIP",
)
