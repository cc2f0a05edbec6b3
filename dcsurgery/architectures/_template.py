"""Template: copy to <family>.py, say in one line which models this is."""

from __future__ import annotations

from dcsurgery.anatomy import Anatomy, VisionTower
from dcsurgery.architectures import Architecture, Config, Tensors
from dcsurgery.architectures import _reading as reading

SITE = "multi_modal_projector.linear_1"
BLOCKS = "vision_tower.encoder.layers"


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of a <Family>ForConditionalGeneration checkpoint."""
    projector = reading.read_projector(tensors, {SITE: f"{SITE}.weight"}, "multi_modal_projector")
    vision = reading.section(config, "vision_config")
    tower = VisionTower(
        kind=vision.get("model_type", "siglip_vision_model"),
        module="vision_tower",
        blocks=BLOCKS,
        width=projector.sites[0].in_features,
        depth=reading.count_blocks(tensors, BLOCKS),
        prefix_tokens=0,
        image_size=reading.positive(vision, "image_size", 224),
        patch_size=reading.positive(vision, "patch_size", 16),
    )
    reading.check_tower(tower, vision)
    return Anatomy(
        architecture="family",
        tower=tower,
        projector=projector,
        feature_layers=(tower.depth,),
        feature_width=tower.width,
        dropped_tokens=0,
        image_tokens=tower.grid**2,
        variable_resolution=False,
        language_model=reading.language_model(config, "llama"),
        dtype=tensors[projector.sites[0].weight].dtype,
    )


ARCHITECTURE = Architecture(
    name="family",
    class_names=("FamilyForConditionalGeneration",),
    dissect=dissect,
    checkpoints=("organisation/model",),
    towers="SigLIP",
)
