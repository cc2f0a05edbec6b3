"""config.json as the reference (dvlab-research/MGM) saves it. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What the reference's config has for every model, whatever its sizes.
_ALWAYS = {
    "image_aspect_ratio": "pad",
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_feature": "patch",
    "optimize_vision_tower": False,
    "optimize_vision_tower_aux": False,
    "transformers_version": "4.36.2",
    "use_cache": True,
    "use_mm_proj": True,
}
TOWERS = {
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "mm_vision_tower_aux": "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup",
}


def original_names(language_model: str) -> dict[str, Any]:
    """Return the class and model type by which the reference's code knows a model."""
    return {
        "architectures": [f"MGM{language_model.capitalize()}ForCausalLM"],
        "model_type": "mgm" if language_model == "llama" else f"mgm_{language_model}",
    }


def original_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the reference's config of a model whose config is a MiniGeminiConfig's.

    The towers it names are the public ones: a model in this package's layout does not say where its
    own came from, and holds them.
    """
    text = dict(config.get("text_config") or {})
    language = text.pop("model_type", "llama")
    text.pop("architectures", None)
    rope = text.pop("rope_parameters", None)
    if isinstance(rope, dict) and rope.get("rope_type", "default") == "default":
        text.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
        text.setdefault("rope_scaling", None)
    aux, vision = config["vision_config_aux"], config["vision_config"]
    return {
        **text,
        **_ALWAYS,
        **TOWERS,
        **original_names(language),
        "image_global": bool(config.get("image_global", False)),
        "image_grid": config.get("image_grid", 1),
        "image_size_aux": aux.get("image_size", 768),
        "mm_hidden_size": vision["hidden_size"],
        "mm_hidden_size_aux": sum(aux["hidden_sizes"]),
        "mm_vision_select_layer": config.get("vision_feature_layer", -2),
        "torch_dtype": config.get("torch_dtype") or config.get("dtype") or "float16",
    }
