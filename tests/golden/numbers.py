"""The authors' numbers, and what a model must compute to have them; see README.md."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, safe_open
from torch import Tensor

from dcsurgery.tiny.llava import Tower
from tests.closeness import PAPER, assert_near

GOLDEN = Path(__file__).parent
TOWERS: tuple[Tower, ...] = ("clip", "siglip")


@cache
def golden(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = GOLDEN / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        return load_file(path), json.loads(file.metadata()["golden"])


def image_features(model: Any, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        found = model.get_image_features(pixel_values=pixels)
    found = getattr(found, "pooler_output", found)
    return torch.stack(list(found)) if isinstance(found, (tuple, list)) else found


def check_path(model: Any, tower: Tower, kind: str) -> None:
    tensors, _ = golden(f"llava_dc_{tower}")
    expected = tensors[f"{kind}.image_features"]
    found = image_features(model, tensors["pixel_values"]).reshape(expected.shape)
    assert_near(found, expected, PAPER)
