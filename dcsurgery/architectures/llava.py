"""LLaVA-1.5 and its relatives: CLIP, SigLIP or Pixtral tower, two-layer projector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dcsurgery.anatomy import Anatomy, Projector, VisionTower
from dcsurgery.architectures import Architecture, Config, Tensors, _towers

# Tower kind -> path of the blocks, prefix tokens, defaults of transformers' own config classes.
TOWERS: dict[str, tuple[str, int, int, int]] = {
    "clip_vision_model": ("vision_tower.encoder.layers", 1, 224, 32),
    "siglip_vision_model": ("vision_tower.encoder.layers", 0, 224, 16),
    "pixtral": ("vision_tower.transformer.layers", 0, 1024, 16),
}
# LlavaConfig without a vision_config means CLIP-L/336.
DEFAULT_TOWER = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14}


def _tower(config: Config, tensors: Tensors, width: int) -> VisionTower:
    vision: dict[str, Any] = config.get("vision_config") or DEFAULT_TOWER
    kind = vision.get("model_type", "clip_vision_model")
    _towers.require(kind in TOWERS, f"vision tower {kind!r} is not one of {', '.join(TOWERS)}")
    blocks, prefix, image, patch = TOWERS[kind]
    depth = _towers.count_blocks(tensors, blocks)
    image_size = _towers.positive(vision, "image_size", image)
    patch_size = _towers.positive(vision, "patch_size", patch)
    tower = VisionTower(kind, blocks, width, depth, prefix, image_size, patch_size)
    _towers.check_tower(tower, vision)
    return tower


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of a LlavaForConditionalGeneration checkpoint."""
    weight = _towers.find_tensor(tensors, "multi_modal_projector.linear_1.weight")
    _towers.refuse_quantised(weight, tensors)
    prefix = weight.name.removesuffix("linear_1.weight")
    out_features, in_features = weight.shape
    stated = config.get("vision_feature_layer", -2)
    count = len(stated) if isinstance(stated, list) else 1
    _towers.require(
        bool(count) and in_features % count == 0,
        f"{weight.name} reads {in_features} channels, which vision_feature_layer {stated!r} "
        "does not divide",
    )
    tower = _tower(config, tensors, in_features // count)
    strategy = config.get("vision_feature_select_strategy", "default")
    _towers.require(
        strategy in ("default", "full"), f"vision_feature_select_strategy is {strategy!r}"
    )
    # "default" crops the first token whatever the tower: on a tower without CLS it drops a patch.
    cropped = 1 if strategy == "default" else 0
    text = config.get("text_config") or {}
    return Anatomy(
        architecture="llava",
        tower=tower,
        projector=Projector(
            site="multi_modal_projector.linear_1",
            weight=weight.name,
            in_features=in_features,
            out_features=out_features,
            tensors=tuple(sorted(name for name in tensors if name.startswith(prefix))),
        ),
        feature_layers=_towers.read_feature_layers(stated, tower.depth),
        dropped_tokens=cropped,
        image_tokens=tower.grid**2 + tower.prefix_tokens - cropped,
        variable_resolution=tower.kind == "pixtral",
        language_model=text.get("model_type", "llama"),
        dtype=weight.dtype,
    )


def stock_config(config: Config, layers: Sequence[int]) -> Config:
    """Return a copy of `config` whose model joins the channels of `layers`, in that order."""
    return {**config, "vision_feature_layer": list(layers)}


ARCHITECTURE = Architecture(
    name="llava",
    class_names=("LlavaForConditionalGeneration",),
    dissect=dissect,
    stock_config=stock_config,
    stock_loader="transformers >= 4.49.0, LlavaForConditionalGeneration",
    checkpoints=(
        "llava-hf/llava-1.5-7b-hf",
        "llava-hf/llava-1.5-13b-hf",
        "llava-hf/llava-interleave-qwen-0.5b-hf",
        "mistral-community/pixtral-12b",
    ),
)
