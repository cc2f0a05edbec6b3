"""ViP-LLaVA: the projector reads five layers behind one LayerNorm, so only a branch is exact."""

from __future__ import annotations

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Architecture, Config, Tensors, _llava

# VipLlavaConfig; its code cuts the CLS token whatever the tower, there is no key for it.
LAYERS = [-2, -5, -8, -11, 6]


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of a VipLlavaForConditionalGeneration checkpoint.

    The added states do not pass the LayerNorm, which runs over the channels of all five layers.
    """
    # transformers 4.x wrote vision_feature_layers; 5.x reads both and prefers the old one.
    layers = config.get("vision_feature_layers", config.get("vision_feature_layer", LAYERS))
    stated = {"vision_feature_layer": layers, "vision_feature_select_strategy": "default"}
    return _llava.read_anatomy(
        {**config, **stated}, tensors, name="vipllava", defaults=_llava.DEFAULTS
    )


ARCHITECTURE = Architecture(
    name="vipllava",
    class_names=("VipLlavaForConditionalGeneration",),
    dissect=dissect,
    checkpoints=("llava-hf/vip-llava-7b-hf", "llava-hf/vip-llava-13b-hf"),
    towers="CLIP",
    processor=_llava.count_appended,
    token_connectors=("pool",),
    counting=_llava.counting("LlavaProcessor"),
)
