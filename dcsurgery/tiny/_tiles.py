"""Processor files of the families that cut images into tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dcsurgery.tiny.tokenizer import CHAT_TEMPLATE, write_tokenizer
from dcsurgery.tiny.weights import write_json


def pinpoints(side: int) -> list[list[int]]:
    """Return the resolutions an image may be cut from: two tiles abreast, two above, four."""
    return [[side, 2 * side], [2 * side, side], [2 * side, 2 * side]]


def cropped(side: int) -> dict[str, Any]:
    """Return the words of an image processor that scales and crops to a square."""
    square = {"height": side, "width": side}
    return {"size": {"shortest_edge": side}, "crop_size": square, "do_center_crop": True}


def write_tile_processor(
    folder: Path,
    config: Mapping[str, Any],
    specials: Sequence[str],
    image_processor: Mapping[str, Any],
    processor: Mapping[str, Any],
) -> None:
    """Write tokenizer, preprocessor_config.json and processor_config.json of a model.

    `image_processor` names its class and sizes, `processor` is the whole processor_config.json.
    """
    write_tokenizer(folder, specials, CHAT_TEMPLATE)
    words = {
        "image_grid_pinpoints": config["image_grid_pinpoints"],
        "processor_class": processor["processor_class"],
    }
    write_json(folder / "preprocessor_config.json", {**image_processor, **words})
    write_json(folder / "processor_config.json", dict(processor))


def patch_words(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a processor that counts patches must know of the model."""
    vision = config["vision_config"]
    return {
        "image_token": "<image>",
        "num_additional_image_tokens": int(vision["model_type"] in ("clip_vision_model", "dinov2")),
        "patch_size": vision["patch_size"],
        "vision_feature_select_strategy": config["vision_feature_select_strategy"],
    }
