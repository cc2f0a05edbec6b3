"""Seeded weights and safetensors files laid out as the Hub has them."""

from __future__ import annotations

import json
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
    """Return name -> shape of the model's state dict; the model is built without memory."""
    import torch

    with torch.device("meta"):
        model = model_class(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


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
