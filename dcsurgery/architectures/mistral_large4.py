"""Mistral Large 4: the layout of Mistral 3, other names in its files."""

from __future__ import annotations

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Architecture, Config, Tensors, _mistral

NAMES = _mistral.Names()
PUBLISHED = _mistral.Names(
    tower="vision_encoder",
    matrix="vision_language_adapter.w_in",
    parts=("vision_language_adapter", "patch_merger", "pre_mm_projector_norm"),
)


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of a MistralLarge4ForConditionalGeneration checkpoint."""
    published = any(name.endswith(f"{PUBLISHED.matrix}.weight") for name in tensors)
    files = PUBLISHED if published else NAMES
    return _mistral.read_anatomy(
        config, tensors, "mistral_large4", "mistral_large4_text", NAMES, files
    )


ARCHITECTURE = Architecture(
    name="mistral_large4",
    class_names=("MistralLarge4ForConditionalGeneration",),
    dissect=dissect,
    checkpoints=("mistralai/Mistral-Large-4-1T-A52B",),
    towers="Pixtral",
    arrange=_mistral.arrange,
    parameter_names=(
        ("vision_language_adapter.w_in.", "multi_modal_projector.linear_1."),
        ("vision_language_adapter.w_out.", "multi_modal_projector.linear_2."),
        ("patch_merger.merging_layer.", "multi_modal_projector.patch_merger.merging_layer."),
        ("pre_mm_projector_norm.", "multi_modal_projector.norm."),
    ),
)
