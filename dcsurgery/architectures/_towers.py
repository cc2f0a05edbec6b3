"""Shared readings of config and tensor shapes; each raises AnatomyError on contradiction."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dcsurgery.anatomy import VisionTower
from dcsurgery.checkpoint.headers import TensorEntry
from dcsurgery.errors import AnatomyError
from dcsurgery.features import resolve_layer

QUANTISED = ("I8", "U8", "I32", "I64", "U32", "F4", "F8_E4M3", "F8_E5M2", "F8_E8M0")
CHECK = "compare config.json with the tensors; the checkpoint may be mixed from two models"


def find_tensor(tensors: Mapping[str, TensorEntry], suffix: str) -> TensorEntry:
    """Return the one tensor whose dotted name ends with `suffix`."""
    found = [name for name in tensors if name == suffix or name.endswith("." + suffix)]
    if len(found) != 1:
        what = "no tensor is" if not found else f"{len(found)} tensors are ({', '.join(found)})"
        raise AnatomyError(f"{what} named ...{suffix}", hint=CHECK)
    return tensors[found[0]]


def require(condition: bool, message: str) -> None:
    """Raise AnatomyError with `message` unless the config and the tensors agree."""
    if not condition:
        raise AnatomyError(message, hint=CHECK)


def count_blocks(tensors: Mapping[str, TensorEntry], blocks: str) -> int:
    """Return how many blocks have tensors under a path such as "vision_tower.encoder.layers"."""
    first, _, rest = blocks.partition(".")
    pattern = re.compile(
        rf"(?:^|\.){re.escape(first)}\.(?:vision_model\.)?{re.escape(rest)}\.(\d+)\."
    )
    indices = {int(match[1]) for name in tensors if (match := pattern.search(name))}
    require(bool(indices), f"no tensor belongs to the vision tower's blocks ({blocks})")
    require(indices == set(range(len(indices))), f"the vision tower's blocks {blocks} have gaps")
    return len(indices)


def positive(config: Mapping[str, Any], key: str, default: int) -> int:
    """Return a positive integer from a config, or its default."""
    value = config.get(key, default)
    require(
        isinstance(value, int) and not isinstance(value, bool) and value > 0,
        f"{key} in config.json is {value!r}, not a positive number",
    )
    return int(value)


def check_tower(tower: VisionTower, config: Mapping[str, Any]) -> None:
    """Compare depth and width with the vision config where it states them."""
    for key, value in (("num_hidden_layers", tower.depth), ("hidden_size", tower.width)):
        stated = config.get(key, value)
        require(
            stated == value,
            f"vision_config.{key} is {stated!r} but the tensors say {value}",
        )


def read_feature_layers(value: Any, depth: int) -> tuple[int, ...]:
    """Resolve a config's vision_feature_layer (an int or a list) against the tower's depth."""
    layers = value if isinstance(value, list) else [value]
    valid = all(isinstance(item, int) and not isinstance(item, bool) for item in layers)
    require(valid and bool(layers), f"vision_feature_layer {value!r} is not a layer or a list")
    in_range = all(-depth - 1 <= item <= depth for item in layers)
    require(in_range, f"vision_feature_layer {value!r} is outside the tower's states 0..{depth}")
    return tuple(resolve_layer(item, depth) for item in layers)


def refuse_quantised(weight: TensorEntry, tensors: Mapping[str, TensorEntry]) -> None:
    """Raise AnatomyError when the projector's first matrix is stored quantised."""
    stem = weight.name.removesuffix("weight")
    extra = sorted(
        name
        for name in tensors
        if name.startswith(stem) and name not in (weight.name, stem + "bias")
    )
    if weight.dtype in QUANTISED or extra:
        found = f"dtype {weight.dtype}" + (f", beside {', '.join(extra)}" if extra else "")
        raise AnatomyError(
            f"the projector's first matrix {weight.name} is quantised ({found})",
            hint="convert the unquantised model first, then quantise the result",
        )
    require(
        weight.dtype in ("F64", "F32", "F16", "BF16"),
        f"{weight.name} has dtype {weight.dtype}, not a floating-point one",
    )
    require(len(weight.shape) == 2, f"{weight.name} has shape {list(weight.shape)}, not a matrix")
