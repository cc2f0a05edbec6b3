"""Seeded weights and safetensors files laid out as the Hub has them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def seeded_tensors(
    shapes: Mapping[str, Sequence[int]], *, seed: int, scale: float
) -> dict[str, torch.Tensor]:
    """Return a float32 tensor per name: normal with deviation `scale`, norm weights 1 + 0.2 normal.

    Default initialisation is so small that a wrong layer changes no digit that a test looks at.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in sorted(shapes):
        noise = torch.randn(tuple(shapes[name]), generator=generator)
        is_norm = any(part in name for part in ("norm", "ln_pre")) and name.endswith(".weight")
        tensors[name] = 1.0 + 0.2 * noise if is_norm else scale * noise
    return tensors


def model_shapes(model_class: Callable[[Any], Any], config: Any) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of the tensors a file of the model holds, tied ones once.

    The model is built without memory.
    """
    import torch

    with torch.device("meta"):
        model = model_class(config)
    tied = model._tied_weights_keys if getattr(config, "tie_word_embeddings", False) else {}
    return {
        name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied
    }


def write_model(  # noqa: PLR0913
    folder: Path,
    class_name: str,
    config: Mapping[str, Any],
    *,
    names: Sequence[tuple[str, str]] = (),
    tensors: Mapping[str, torch.Tensor] | None = None,
    shards: int = 1,
    dtype: str = "float32",
    seed: int = 0,
    scale: float = 0.25,
) -> Path:
    """Write config.json and seeded weights of a transformers model class; return `folder`.

    `config` is the config.json. `names` are (pattern, replacement) pairs, first match wins, that
    turn module names into the file names of the family's published checkpoints; the file keeps
    their order. `tensors` (file name -> tensor) replaces seeded weights.
    """
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    model_class = getattr(transformers, class_name)
    shapes = model_shapes(model_class, model_class.config_class.from_dict(dict(config)))
    stored = rename(shapes, names)
    weights = {**seeded_tensors(stored, seed=seed, scale=scale)}
    weights |= {name: value for name, value in (tensors or {}).items() if name in stored}
    write_weights(folder, {n: weights[n].to(getattr(torch, dtype)) for n in stored}, shards)
    write_json(folder / "config.json", {**config, "torch_dtype": dtype})
    return folder


def rename(
    shapes: Mapping[str, tuple[int, ...]], names: Sequence[tuple[str, str]]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes under their file names, ordered by the first pattern that matches."""
    ordered = {}
    for pattern, replacement in (*names, ("", "")):
        for name, shape in shapes.items():
            first = next((p for p, _ in names if re.match(p, name)), "")
            if first == pattern:
                ordered[re.sub(pattern, replacement, name) if pattern else name] = shape
    return ordered


def write_json(path: Path, content: object) -> None:
    """Write indented JSON, keys sorted."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_weights(folder: Path, tensors: Mapping[str, torch.Tensor], shards: int = 1) -> None:
    """Write model.safetensors, or `shards` files and their index; tensors keep the given order."""
    from safetensors.torch import save_file

    names = list(tensors)
    bounds = [index * len(names) // shards for index in range(shards + 1)]
    weight_map = {}
    for index in range(shards):
        part = names[bounds[index] : bounds[index + 1]]
        file = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        file = "model.safetensors" if shards == 1 else file
        chunk = {name: tensors[name].contiguous() for name in part}
        save_file(chunk, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    if shards > 1:
        total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        index_json = {
            "metadata": {"total_size": total},
            "weight_map": dict(sorted(weight_map.items())),
        }
        text = json.dumps(index_json, indent=2) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
