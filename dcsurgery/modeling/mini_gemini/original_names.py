"""Tensor names: Mini-Gemini's own checkpoints, open_clip's ConvNeXt, and this package's model.

Torch-free. A table is pairs of templates; "{a}" and "{b}" stand for a number, "{}" at the end for
whatever follows. Both directions are read from it, so that writing gives back what was read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

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
