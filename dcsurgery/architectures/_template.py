"""Template: copy to <family>.py, say in one line which models this is."""

from __future__ import annotations

from dcsurgery.anatomy import Anatomy, Projector, VisionTower
from dcsurgery.architectures import Architecture, Config, Tensors, _towers


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of a <Family>ForConditionalGeneration checkpoint."""
    weight = _towers.find_tensor(tensors, "projector.linear_1.weight")
    _towers.refuse_quantised(weight, tensors)
    out_features, in_features = weight.shape
    vision = config.get("vision_config") or {}
    blocks = "vision_tower.encoder.layers"
    depth = _towers.count_blocks(tensors, blocks)
    tower = VisionTower(
        kind=vision.get("model_type", "siglip_vision_model"),
        blocks=blocks,
        width=in_features,
        depth=depth,
        prefix_tokens=0,
        image_size=_towers.positive(vision, "image_size", 224),
        patch_size=_towers.positive(vision, "patch_size", 16),
    )
    _towers.check_tower(tower, vision)
    return Anatomy(
        architecture="family",
        tower=tower,
        projector=Projector(
            "projector.linear_1", weight.name, in_features, out_features, (weight.name,)
        ),
        feature_layers=(depth,),
        dropped_tokens=0,
        image_tokens=tower.grid**2,
        variable_resolution=False,
        language_model=(config.get("text_config") or {}).get("model_type", "llama"),
        dtype=weight.dtype,
    )


ARCHITECTURE = Architecture(
    name="family",
    class_names=("FamilyForConditionalGeneration",),
    dissect=dissect,
    checkpoints=("organisation/model",),
)
