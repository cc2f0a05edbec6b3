"""Originals with the golden tower and projectors, and what the reference computes from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear

from dcsurgery.tiny.llava import Tower
from dcsurgery.tiny.original_llava import OriginalSizes, write_original_llava, write_tower
from tests.golden.numbers import golden

INSIDE = "model.vision_tower."
PROJECTOR = "model.mm_projector."
PARTS = ("0.weight", "0.bias", "2.weight", "2.bias")


def golden_sizes(tower: Tower) -> OriginalSizes:
    found = golden(f"llava_dc_{tower}")[1]["config"]
    return OriginalSizes(
        tower=tower,
        depth=found["layers"],
        width=found["hidden"],
        inter=found["inter"],
        image=found["image"],
        patch=found["patch"],
        hidden=found["llm"],
        heads=1,
    )


def golden_tower(folder: Path, tower: Tower, *, pickled: bool = False) -> Path:
    """The tower in a repository of its own."""
    tensors, _ = golden(f"llava_dc_{tower}")
    own = {
        n.removeprefix("vision_tower."): t for n, t in tensors.items() if n.startswith("vision_")
    }
    return write_tower(folder, golden_sizes(tower), tensors=own, pickled=pickled)


def golden_original(
    folder: Path, tower: Tower, kind: str, named: Path, *, wide: bool, **options: Any
) -> Path:
    """An original whose projector is the golden one of `kind`, or only its columns on x."""
    tensors, _ = golden(f"llava_dc_{tower}")
    given = {INSIDE + name: value for name, value in tensors.items() if name.startswith("vision_")}
    given |= {PROJECTOR + part: tensors[f"{kind}.mm_projector.{part}"] for part in PARTS}
    sizes = golden_sizes(tower)
    if not wide:
        first = given[f"{PROJECTOR}0.weight"]
        given[f"{PROJECTOR}0.weight"] = first[:, : sizes.width].contiguous()
    connector = kind if wide else None
    return write_original_llava(
        folder, sizes, str(named), tensors=given, connector=connector, **options
    )


def golden_features(tower: Tower, kind: str) -> Tensor:
    """The image features of the base part of a golden projector, from the reference's tower."""
    tensors, _ = golden(f"llava_dc_{tower}")
    own = [tensors[f"{kind}.mm_projector.{part}"] for part in PARTS]
    x = tensors["tower.image_features"]
    hidden = linear(x, own[0][:, : x.shape[-1]], own[1])
    return linear(gelu(hidden), own[2], own[3])


def spliced_logits(
    tensors: Mapping[str, Tensor], config: dict[str, Any], ids: list[int | None], image: Tensor
) -> Tensor:
    """Logits of the original's language model alone, image features in the place of None."""
    from transformers import LlamaConfig, LlamaForCausalLM

    words = {key: value for key, value in config.items() if not key.startswith("mm_")}
    text = LlamaConfig.from_dict({**words, "model_type": "llama", "architectures": None})
    model = LlamaForCausalLM(text).eval()
    own = {n: t for n, t in tensors.items() if "vision_tower" not in n and "mm_projector" not in n}
    model.load_state_dict(own, strict=True)
    rows = tensors["model.embed_tokens.weight"]
    parts = [image if index is None else rows[index][None] for index in ids]
    with torch.no_grad():
        logits: Tensor = model(inputs_embeds=torch.cat(parts)[None]).logits
    return logits
