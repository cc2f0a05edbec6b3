"""Checkpoints that exist as a config and tensor shapes alone: what a plan is made from."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

from dcsurgery.checkpoint.contents import Checkpoint, WeightFile
from dcsurgery.checkpoint.headers import Header, lay_out
from dcsurgery.checkpoint.model_ref import ModelRef

Shapes = dict[str, tuple[str, tuple[int, ...]]]
FIRST = "multi_modal_projector.linear_1.weight"


def llava_like(
    kind: str = "clip_vision_model",
    *,
    width: int = 1024,
    depth: int = 24,
    hidden: int = 4096,
    image_size: int = 336,
) -> tuple[dict[str, Any], Shapes]:
    """Config and shapes of a LLaVA: blocks stand for themselves by one tensor each."""
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "text_config": {"model_type": "llama", "hidden_size": hidden},
        "vision_config": {
            "model_type": kind,
            "hidden_size": width,
            "num_hidden_layers": depth,
            "image_size": image_size,
            "patch_size": 14,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default" if kind == "clip_vision_model" else "full",
    }
    blocks = "vision_tower.vision_model.encoder.layers."
    if kind == "pixtral":
        blocks = "vision_tower.transformer.layers."
    shapes: Shapes = {f"{blocks}{i}.norm.weight": ("F16", (width,)) for i in range(depth)}
    shapes[FIRST] = ("F16", (hidden, width))
    shapes["multi_modal_projector.linear_1.bias"] = ("F16", (hidden,))
    shapes["multi_modal_projector.linear_2.weight"] = ("F16", (hidden, hidden))
    shapes["multi_modal_projector.linear_2.bias"] = ("F16", (hidden,))
    return config, shapes


def checkpoint(config: Mapping[str, Any], shapes: Mapping[str, Any]) -> Checkpoint:
    """A checkpoint without files: reading any byte of it would fail."""
    entries = lay_out([(name, dtype, shape) for name, (dtype, shape) in shapes.items()])
    header = Header({entry.name: entry for entry in entries}, {"format": "pt"}, 4096)
    return Checkpoint(
        ref=ModelRef(name="org/model", repo_id="org/model", commit="c" * 40),
        config=copy.deepcopy(dict(config)),
        config_text=json.dumps(config),
        weights=(WeightFile("model.safetensors", header.file_size, header),),
        index=None,
        side_files=(),
        left_out=(),
    )
