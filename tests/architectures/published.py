"""Checkpoints known by their config and names alone: no tensor has data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import dcsurgery
from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import find_architecture
from dcsurgery.checkpoint.headers import TensorEntry


def entries(shapes: Mapping[str, tuple[int, ...]], dtype: str = "BF16") -> dict[str, TensorEntry]:
    """Return header entries for names and shapes."""
    return {
        name: TensorEntry(name, dtype, shape, 0, 2 * math.prod(shape))
        for name, shape in shapes.items()
    }


def llava_shapes(
    depth: int, width: int, text: int, read: int, tower: str = "vision_tower.vision_model."
) -> dict[str, tuple[int, ...]]:
    """Return a tensor of every block and a projector that reads `read` channels."""
    shapes: dict[str, tuple[int, ...]] = {
        f"{tower}encoder.layers.{index}.layer_norm1.weight": (width,) for index in range(depth)
    }
    for index, columns in ((1, read), (2, text)):
        shapes[f"multi_modal_projector.linear_{index}.weight"] = (text, columns)
        shapes[f"multi_modal_projector.linear_{index}.bias"] = (text,)
    return shapes


def dissect(config: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Anatomy:
    """Return the anatomy of a config and tensor shapes."""
    assert dcsurgery.__version__
    return find_architecture(config).dissect(config, entries(shapes))
