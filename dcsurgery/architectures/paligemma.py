"""PaliGemma 1 and 2: SigLIP tower behind its last norm, one linear projector."""

from __future__ import annotations

from dcsurgery.anatomy import Anatomy, VisionTower
from dcsurgery.architectures import Architecture, Config, Tensors
from dcsurgery.architectures import _reading as reading

SITE = "multi_modal_projector.linear"


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of a PaliGemmaForConditionalGeneration checkpoint."""
    projector = reading.read_projector(tensors, {SITE: f"{SITE}.weight"}, "multi_modal_projector")
    vision = reading.section(config, "vision_config")
    blocks = "vision_tower.encoder.layers"
    tower = VisionTower(
        kind=vision.get("model_type", "siglip_vision_model"),
        module="vision_tower",
        blocks=blocks,
        width=projector.sites[0].in_features,
        depth=reading.count_blocks(tensors, blocks),
        prefix_tokens=0,
        image_size=reading.positive(vision, "image_size", 224),
        patch_size=reading.positive(vision, "patch_size", 14),
    )
    reading.check_tower(tower, vision)
    return Anatomy(
        architecture="paligemma",
        tower=tower,
        projector=projector,
        feature_layers=(tower.depth,),
        feature_width=tower.width,
        dropped_tokens=0,
        image_tokens=tower.grid**2,
        variable_resolution=False,
        language_model=reading.language_model(config, "gemma"),
        dtype=tensors[projector.sites[0].weight].dtype,
        normed=True,
    )


ARCHITECTURE = Architecture(
    name="paligemma",
    class_names=("PaliGemmaForConditionalGeneration",),
    dissect=dissect,
    checkpoints=("google/paligemma-3b-pt-224", "google/paligemma2-3b-pt-224"),
    towers="SigLIP",
)
