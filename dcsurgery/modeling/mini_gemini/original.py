"""What the reference (dvlab-research/MGM) saves: its tensor names and its config.json. Torch-free.

A table of names is pairs of templates; "{a}" and "{b}" stand for a number, "{}" at the end for
whatever follows. Both directions are read from it, so that writing gives back what was read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

Table = tuple[tuple[str, str], ...]

# timm's ConvNeXt (open_clip's visual trunk) beside transformers' ConvNextModel.
CONVNEXT: Table = (
    ("stem.0.{}", "embeddings.patch_embeddings.{}"),
    ("stem.1.{}", "embeddings.layernorm.{}"),
    ("stages.{a}.downsample.{b}.{}", "encoder.stages.{a}.downsampling_layer.{b}.{}"),
    ("stages.{a}.blocks.{b}.conv_dw.{}", "encoder.stages.{a}.layers.{b}.dwconv.{}"),
    ("stages.{a}.blocks.{b}.norm.{}", "encoder.stages.{a}.layers.{b}.layernorm.{}"),
    ("stages.{a}.blocks.{b}.mlp.fc1.{}", "encoder.stages.{a}.layers.{b}.pwconv1.{}"),
    ("stages.{a}.blocks.{b}.mlp.fc2.{}", "encoder.stages.{a}.layers.{b}.pwconv2.{}"),
    ("stages.{a}.blocks.{b}.gamma", "encoder.stages.{a}.layers.{b}.layer_scale_parameter"),
)
# What the auxiliary tower keeps of timm's model: stem and stages, by names of its own.
AUX_TOWER: Table = tuple(
    (f"model.vision_tower_aux.vision_{theirs}", f"model.vision_tower_aux.{ours}")
    for theirs, ours in CONVNEXT
)
OPEN_CLIP: Table = tuple(
    (f"visual.trunk.{theirs}", f"model.vision_tower_aux.{ours}") for theirs, ours in CONVNEXT
)
MINING: Table = tuple(
    (
        f"model.vlm_uni_{their}_projector.{at}.{{}}",
        f"model.patch_info_mining.{our}.{part}.{{}}",
    )
    for their, our in (("query", "query"), ("aux", "key"), ("val", "value"))
    for at, part in enumerate(("norm", "proj"))
)
PROJECTOR: Table = (
    ("model.mm_projector.0.{}", "model.multi_modal_projector.linear_1.{}"),
    ("model.mm_projector.2.{}", "model.multi_modal_projector.linear_2.{}"),
)
CLIP_TOWER: Table = (
    ("model.vision_tower.vision_tower.vision_model.{}", "model.vision_tower.vision_model.{}"),
)
LANGUAGE: Table = (
    ("model.embed_tokens.{}", "model.language_model.embed_tokens.{}"),
    ("model.layers.{a}.{}", "model.language_model.layers.{a}.{}"),
    ("model.norm.{}", "model.language_model.norm.{}"),
    ("lm_head.{}", "lm_head.{}"),
)
CHECKPOINT: Table = (*PROJECTOR, *MINING, *AUX_TOWER, *CLIP_TOWER, *LANGUAGE)

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


def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"(\{\w*\})", template)
    groups = {"{a}": r"(?P<a>\d+)", "{b}": r"(?P<b>\d+)", "{}": "(?P<rest>.+)"}
    return re.compile("".join(groups.get(part) or re.escape(part) for part in parts))


def _fill(template: str, found: dict[str, str]) -> str:
    return template.replace("{}", "{rest}").format(**found)


def renamed(name: str, table: Table) -> str | None:
    """Return a tensor's name on the right side of a table, None when the table has none for it."""
    for theirs, ours in table:
        match = _pattern(theirs).fullmatch(name)
        if match:
            return _fill(ours, match.groupdict())
    return None


def turned(table: Iterable[tuple[str, str]]) -> Table:
    """Return the table read from right to left."""
    return tuple((ours, theirs) for theirs, ours in table)


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
