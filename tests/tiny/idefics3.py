"""Tiny Idefics3 and SmolVLM checkpoints; published names are the module names."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from dcsurgery.tiny.weights import write_model
from tests.tiny.parts import base_config, text_section, vision_section, write_processor

Family = Literal["idefics3", "smolvlm"]

_CLASS = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}
SPECIALS = ("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>")


def idefics3_config(
    family: Family = "idefics3", scale_factor: int = 2, **sizes: int
) -> dict[str, Any]:
    """Return the config.json of a tiny Idefics3 or SmolVLM.

    The vision model type is the one published Idefics3 configs have; no class goes by it.
    """
    vision = vision_section(**sizes)
    return {
        **base_config(f"{_CLASS[family]}ForConditionalGeneration", family, SPECIALS),
        "scale_factor": scale_factor,
        "text_config": text_section("llama", SPECIALS),
        "vision_config": {
            **vision,
            "max_image_size": {"longest_edge": vision["image_size"]},
            "model_type": "idefics3" if family == "idefics3" else "smolvlm_vision",
            "size": {"longest_edge": 2 * vision["image_size"]},
        },
    }


def write_idefics3(folder: Path, config: dict[str, Any], **writing: Any) -> Path:
    """Write weights and processor of either family; `writing` as in write_model."""
    name = _CLASS[config["model_type"]]
    write_model(folder, f"{name}ForConditionalGeneration", config, **writing)
    vision = config["vision_config"]
    image_processor = {
        "do_image_splitting": True,
        "image_processor_type": f"{name}ImageProcessor",
        "max_image_size": vision["max_image_size"],
        "size": vision["size"],
    }
    side = vision["image_size"] // vision["patch_size"]
    processor = {
        "image_seq_len": (side // config["scale_factor"]) ** 2,
        "processor_class": f"{name}Processor",
    }
    write_processor(folder, SPECIALS, image_processor, processor)
    return folder


def write_tiny_idefics3(
    folder: Path,
    *,
    scale_factor: int = 2,
    shards: int = 1,
    dtype: str = "float32",
    seed: int = 0,
    **sizes: int,
) -> Path:
    """Write a tiny Idefics3 into `folder` and return it; `sizes` as in vision_section."""
    config = idefics3_config("idefics3", scale_factor, **sizes)
    return write_idefics3(folder, config, shards=shards, dtype=dtype, seed=seed)


def write_tiny_smolvlm(
    folder: Path,
    *,
    scale_factor: int = 2,
    shards: int = 1,
    dtype: str = "float32",
    seed: int = 0,
    **sizes: int,
) -> Path:
    """Write a tiny SmolVLM into `folder` and return it; `sizes` as in vision_section."""
    config = idefics3_config("smolvlm", scale_factor, **sizes)
    return write_idefics3(folder, config, shards=shards, dtype=dtype, seed=seed)
