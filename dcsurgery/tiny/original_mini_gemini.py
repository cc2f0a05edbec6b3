"""Tiny checkpoints as dvlab-research/MGM writes them, and the two vision towers they name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcsurgery.modeling.mini_gemini.original import (
    CHECKPOINT,
    OPEN_CLIP,
    original_config,
    renamed,
    turned,
)
from dcsurgery.tiny.mini_gemini import Language, mini_gemini_config, mini_gemini_tensors
from dcsurgery.tiny.tokenizer import write_tokenizer
from dcsurgery.tiny.weights import write_json, write_weights

if TYPE_CHECKING:
    import torch

TOWERS = ("model.vision_tower.", "model.vision_tower_aux.")
CLIP_FOLDER = "clip-tiny"
AUX_FOLDER = "openclip-convnext-tiny"


def original_tensors(
    tensors: Mapping[str, torch.Tensor], *, inside: bool = True
) -> dict[str, torch.Tensor]:
    """Return tensors of this package's layout under the reference's names, a file's order kept."""
    back = turned(CHECKPOINT)
    named = {str(renamed(name, back)): value for name, value in tensors.items()}
    return {n: value for n, value in named.items() if inside or not n.startswith(TOWERS)}


def stated_config(config: Mapping[str, Any], *, old_name: bool = False) -> dict[str, Any]:
    """Return config.json as the reference saves it, for a config in this package's layout.

    Published ones (`old_name`) have the class's older name and no model_type.
    """
    stated = original_config(config)
    if old_name:
        del stated["model_type"]
        (name,) = stated["architectures"]
        stated["architectures"] = [name.replace("MGM", "MiniGemini")]
    if config["text_config"]["model_type"] == "gemma":
        del stated["tie_word_embeddings"]  # equal to the default of its class: left out
        stated["hidden_act"] = "gelu"
    return stated


def write_towers(folder: Path, config: Mapping[str, Any], *, pickled: bool = False) -> Path:
    """Write both towers as their own repositories have them, in folders below `folder`.

    A text tower and heads lie beside them. `pickled` writes torch's zip files.
    """
    import torch

    tensors = mini_gemini_tensors(config)
    clip = folder / CLIP_FOLDER
    aux = folder / AUX_FOLDER
    for place in (clip, aux):
        place.mkdir(parents=True)
    prefix = "model.vision_tower.vision_model."
    own = {
        name.removeprefix("model.vision_tower."): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
    own["text_model.final_layer_norm.weight"] = torch.zeros(4)
    vision = config["vision_config"]
    write_json(clip / "config.json", {"model_type": "clip", "vision_config": vision})
    side = vision["image_size"]
    square = {"height": side, "width": side}
    images = {"image_processor_type": "CLIPImageProcessor", "crop_size": square}
    write_json(clip / "preprocessor_config.json", {**images, "size": {"shortest_edge": side}})
    back = turned(OPEN_CLIP)
    trunk = {new: value for name, value in tensors.items() if (new := renamed(name, back))}
    trunk |= {"logit_scale": torch.tensor(1.0), "visual.head.proj.weight": torch.zeros(4, 4)}
    stated = {"timm_model_name": "convnext_tiny", "timm_drop_path": 0.1}
    write_json(aux / "open_clip_config.json", {"model_cfg": {"vision_cfg": stated}})
    if pickled:
        torch.save(own, clip / "pytorch_model.bin")
        torch.save(trunk, aux / "open_clip_pytorch_model.bin")
    else:
        write_weights(clip, own)
        write_weights(aux, trunk)
        (aux / "model.safetensors").rename(aux / "open_clip_model.safetensors")
    return folder


def write_original_mini_gemini(
    folder: Path,
    language: Language = "llama",
    *,
    grid: int = 1,
    whole: bool = False,
    depth: int = 4,
    **options: Any,
) -> Path:
    """Write a tiny original Mini-Gemini; return `folder`. `options` are those of write_original."""
    config = mini_gemini_config(language, grid=grid, whole=whole, depth=depth)
    return write_original(folder, config, **options)


def write_original(  # noqa: PLR0913
    folder: Path,
    config: Mapping[str, Any],
    *,
    shards: int = 1,
    towers: str | Path = "model_zoo/OpenAI",
    inside: bool = True,
    old_name: bool = True,
    dtype: str = "float32",
    stated: Mapping[str, Any] | None = None,
    tensors: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write an original Mini-Gemini of a config in this package's layout; return `folder`.

    The original's config names two folders below `towers`; the towers' tensors are `inside` or only
    there. `stated` replaces keys of it, `tensors` (reference's name -> tensor) seeded weights.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    weights = original_tensors(mini_gemini_tensors(config), inside=inside)
    weights |= {name: value for name, value in (tensors or {}).items() if name in weights}
    kind = getattr(torch, dtype)
    write_weights(folder, {name: value.to(kind) for name, value in weights.items()}, shards)
    named = {
        "mm_vision_tower": f"{towers}/{CLIP_FOLDER}",
        "mm_vision_tower_aux": f"{towers}/{AUX_FOLDER}",
        "torch_dtype": dtype,
    }
    made = {**stated_config(config, old_name=old_name), **named, **(stated or {})}
    write_json(folder / "config.json", made)
    write_tokenizer(folder, ())
    generation = {"bos_token_id": 1, "eos_token_id": 2, "transformers_version": "4.36.2"}
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return folder
