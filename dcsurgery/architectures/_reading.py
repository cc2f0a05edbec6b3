"""Shared readings of config and tensor shapes; each raises AnatomyError on contradiction."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dcsurgery.anatomy import Projector, Site, VisionTower
from dcsurgery.checkpoint.headers import TensorEntry
from dcsurgery.errors import AnatomyError
from dcsurgery.features import output_states, resolve_layer

# Pixels of an image or a patch; beyond it, a config is broken.
LARGEST = 2**20
FLOATS = ("F64", "F32", "F16", "BF16")
CHECK = "compare config.json with the tensors; the checkpoint may be mixed from two models"


def require(condition: bool, message: str) -> None:
    """Raise AnatomyError with `message` unless the config and the tensors agree."""
    if not condition:
        raise AnatomyError(message, hint=CHECK)


# Names of tensors that a method of quantisation puts beside, or instead of, a matrix.
_METHODS = {
    " by GPTQ": {"g_idx"},
    " by AWQ": {"qzeros"},
    " by bitsandbytes": {"absmax", "quant_map", "SCB"},
    " by compressed-tensors": {"weight_packed", "weight_scale"},
    " by MLX": {"scales", "biases"},
}


def find_tensor(tensors: Mapping[str, TensorEntry], suffix: str) -> TensorEntry:
    """Return the one tensor whose dotted name ends with `suffix`."""
    found = [name for name in tensors if name == suffix or name.endswith("." + suffix)]
    if len(found) != 1:
        what = "no tensor is" if not found else f"{len(found)} tensors are ({', '.join(found)})"
        raise AnatomyError(f"{what} named ...{suffix}", hint=CHECK)
    return tensors[found[0]]


def _in_block(blocks: str, inner: str) -> re.Pattern[str]:
    """Match names under a path of blocks, with or without a "vision_model." or "model." inside."""
    first, _, rest = blocks.partition(".")
    return re.compile(
        rf"(?:^|\.){re.escape(first)}\.(?:(?:vision_)?model\.)?{re.escape(rest)}\.(\d+)\.{inner}"
    )


def count_blocks(tensors: Mapping[str, TensorEntry], blocks: str) -> int:
    """Return how many blocks have tensors under a path such as "vision_tower.encoder.layers"."""
    pattern = _in_block(blocks, "")
    indices = {int(match[1]) for name in tensors if (match := pattern.search(name))}
    require(bool(indices), f"no tensor belongs to the vision tower's blocks ({blocks})")
    require(indices == set(range(len(indices))), f"the vision tower's blocks {blocks} have gaps")
    return len(indices)


def block_width(tensors: Mapping[str, TensorEntry], blocks: str, norm: str) -> int:
    """Return the channels C of a tower: the length of the weight of a norm [C] in every block."""
    pattern = _in_block(blocks, re.escape(norm) + r"\.weight$")
    shapes = {entry.shape for name, entry in tensors.items() if pattern.search(name)}
    one = len(shapes) == 1 and all(len(shape) == 1 for shape in shapes)
    require(one, f"the blocks {blocks} have no common width (shapes of {norm}: {sorted(shapes)})")
    return next(iter(shapes))[0]


def positive(config: Mapping[str, Any], key: str, default: int) -> int:
    """Return a positive integer from a config (the first of a [height, width]), or its default."""
    value = config.get(key, default)
    if isinstance(value, list) and value:
        value = value[0]
    require(
        isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST,
        f"{key} in config.json is {str(value)[:40]!r}, not a number from 1 to {LARGEST}",
    )
    return int(value)


def section(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return a sub-config, empty when absent."""
    value = config.get(key) or {}
    require(isinstance(value, dict), f"{key} in config.json is {type(value).__name__}, not a table")
    return dict(value)


def language_model(config: Mapping[str, Any], default: str) -> str:
    """Return the text config's model type."""
    return kind_of(section(config, "text_config"), default)


def kind_of(config: Mapping[str, Any], default: str) -> str:
    """Return the model_type of a config section, or its default."""
    value = config.get("model_type", default)
    require(isinstance(value, str), f"model_type in config.json is {str(value)[:40]!r}, not a name")
    return str(value)


def check_tower(
    tower: VisionTower,
    config: Mapping[str, Any],
    depth: str = "num_hidden_layers",
    width: str = "hidden_size",
) -> VisionTower:
    """Compare depth and width with the vision config where it states them; return the tower."""
    require(
        tower.grid > 0,
        f"patch_size {tower.patch_size} in config.json is larger than image_size "
        f"{tower.image_size}",
    )
    for key, value in ((depth, tower.depth), (width, tower.width)):
        stated = config.get(key, value)
        require(stated == value, f"vision_config.{key} is {stated!r} but the tensors say {value}")
    return tower


def read_feature_layers(value: Any, depth: int) -> tuple[int, ...]:
    """Resolve a config's vision_feature_layer (an int or a list) against the tower's depth."""
    layers = value if isinstance(value, list) else [value]
    valid = all(isinstance(item, int) and not isinstance(item, bool) for item in layers)
    require(valid and bool(layers), f"vision_feature_layer {value!r} is not a layer or a list")
    in_range = all(-depth - 1 <= item <= depth for item in layers)
    require(in_range, f"vision_feature_layer {value!r} is outside the tower's states 0..{depth}")
    return tuple(resolve_layer(item, depth) for item in layers)


def read_block_outputs(value: Any, depth: int, key: str) -> tuple[int, ...]:
    """Resolve a config's list of block outputs, in which entry i is hidden state i + 1."""
    require(
        isinstance(value, list) and bool(value) and all(type(item) is int for item in value),
        f"{key} {value!r} is not a list of block outputs",
    )
    in_range = all(-depth <= item < depth for item in value)
    require(in_range, f"{key} {value!r} is outside the tower's block outputs 0..{depth - 1}")
    return output_states(value, depth)


def read_projector(
    tensors: Mapping[str, TensorEntry],
    sites: Mapping[str, str],
    *prefixes: str,
    transposed: bool = False,
) -> Projector:
    """Return the projector: `sites` maps module suffixes to tensor suffixes of first matrices.

    A matrix is [out, in] ([in, out] when `transposed`, as bare parameters may be), a convolution
    [out, in, h, w]. `prefixes` are the dotted paths of all the projector's tensors. Raises
    AnatomyError for a matrix that is missing or quantised.
    """
    found = []
    for module, suffix in sites.items():
        if not any(name.endswith(suffix) for name in tensors):
            _refuse_packed(suffix, tensors)
        entry = find_tensor(tensors, suffix)
        _refuse_quantised(entry, tensors)
        is_matrix = len(entry.shape) in (2, 4)
        require(is_matrix, f"{entry.name} has shape {list(entry.shape)}, not a matrix")
        require(all(entry.shape), f"{entry.name} is empty: {list(entry.shape)}")
        out, *read = reversed(entry.shape) if transposed else entry.shape
        in_features = 1
        for size in read:
            in_features *= size
        found.append(Site(module, entry.name, in_features, out))
    pattern = re.compile(rf"(?:^|\.)(?:{'|'.join(map(re.escape, prefixes))})\.")
    own = tuple(sorted(name for name in tensors if pattern.search(name)))
    return Projector(tuple(found), own)


def _refuse_quantised(weight: TensorEntry, tensors: Mapping[str, TensorEntry]) -> None:
    stem = weight.name.removesuffix("weight")
    extra = sorted(
        name
        for name in tensors
        if stem != weight.name
        and name.startswith(stem)
        and name not in (weight.name, stem + "bias")
    )
    if weight.dtype not in FLOATS or extra:
        found = f"dtype {weight.dtype}" + (f", beside {', '.join(extra)}" if extra else "")
        raise _quantised(weight.name, found, extra)


def _refuse_packed(suffix: str, tensors: Mapping[str, TensorEntry]) -> None:
    """Refuse a matrix that is there in packed words alone, under names of its method."""
    stem = suffix.removesuffix("weight")
    packed = [n for n in tensors if n.endswith((f"{stem}qweight", f"{stem}weight_packed"))]
    if packed:
        extra = [name for name in tensors if name.startswith(packed[0].rpartition(".")[0] + ".")]
        raise _quantised(f"...{suffix}", f"stored as {packed[0]}", extra)


def _quantised(name: str, found: str, extra: Sequence[str]) -> AnatomyError:
    ends = {part for item in extra for part in item.split(".")}
    method = next((by for by, marks in _METHODS.items() if ends & marks), "")
    return AnatomyError(
        f"the projector's first matrix {name} is quantised{method} ({found})",
        hint="convert the unquantised model first, then quantise the result",
    )
