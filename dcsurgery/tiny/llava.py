"""Tiny LLaVA checkpoints as transformers 4.49 wrote them: old tensor names, old config keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dcsurgery.tiny.tokenizer import CHAT_TEMPLATE, special_ids, vocab_size, write_tokenizer
from dcsurgery.tiny.weights import write_json, write_model

if TYPE_CHECKING:
    import torch

Tower = Literal["clip", "siglip", "pixtral", "dinov2", "dinov2_with_registers", "dinov3_vit"]

_PIXTRAL = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")
# Tokens before the patches; dinov3_vit's config class means no registers, published ones have 4.
PREFIX_TOKENS = {"clip": 1, "dinov2": 1, "dinov2_with_registers": 5, "dinov3_vit": 5}
# Order is file order: the projector is in the last shard, as in llava-hf/llava-1.5-7b-hf.
_REST = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.image_newline$", "image_newline"),
    (r"^model\.multi_modal_projector\.", "multi_modal_projector."),
)
HUB_NAMES = ((r"^model\.(\w+)_tower\.(vision_model\.)?", r"\1_tower.vision_model."), *_REST)
HUB_NAMES_PLAIN = ((r"^model\.vision_tower\.(?:model\.)?", "vision_tower."), *_REST)
_DINO = r"^model\.vision_tower\.(encoder\..*)attention\."
HUB_NAMES_DINOV2 = (
    *(
        (rf"{_DINO}{new}_proj", rf"vision_tower.\1attention.{old}")
        for new, old in {
            "q": "attention.query",
            "k": "attention.key",
            "v": "attention.value",
            "o": "output.dense",
        }.items()
    ),
    *HUB_NAMES_PLAIN,
)


def llava_config(
    tower: Tower,
    *,
    depth: int = 4,
    width: int = 16,
    image_size: int = 16,
    patch_size: int = 4,
    feature_layer: int | list[int] = -2,
) -> dict[str, Any]:
    """Return the config.json of a tiny LLaVA, in words that transformers 4.49 to 5.x all read."""
    specials = _specials(tower)
    vision: dict[str, Any] = {
        "hidden_size": width,
        "image_size": image_size,
        "intermediate_size": 2 * width,
        "num_attention_heads": 2,
        "num_hidden_layers": depth,
        "patch_size": patch_size,
    }
    kinds: dict[str, dict[str, Any]] = {
        "clip": {"model_type": "clip_vision_model", "projection_dim": 8},
        "siglip": {"model_type": "siglip_vision_model", "vision_use_head": False},
        "pixtral": {"model_type": "pixtral", "head_dim": width // 2, "rope_theta": 10000.0},
        "dinov2": {"mlp_ratio": 2},
        "dinov2_with_registers": {"mlp_ratio": 2, "num_register_tokens": 4},
        "dinov3_vit": {"num_register_tokens": 4},
    }
    vision |= {"model_type": tower, **kinds[tower]}
    text = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 24,
        "intermediate_size": 48,
        "max_position_embeddings": 4096,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-05,
        # Not the default on purpose: a reader that loses the key computes other logits.
        "rope_theta": 20000.0,
        "vocab_size": vocab_size(specials),
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "image_seq_length": (image_size // patch_size) ** 2,
        "image_token_index": special_ids(specials)[specials[0]],
        "model_type": "llava",
        "pad_token_id": 0,
        "projector_hidden_act": "gelu",
        "text_config": text,
        "tie_word_embeddings": False,
        "transformers_version": "4.49.0",
        "vision_config": vision,
        "vision_feature_layer": feature_layer,
        "vision_feature_select_strategy": _strategy(tower),
    }


def _specials(tower: Tower) -> tuple[str, ...]:
    return _PIXTRAL if tower == "pixtral" else ("<image>",)


def _strategy(tower: Tower) -> str:
    return "default" if tower in PREFIX_TOKENS else "full"


def write_llava(  # noqa: PLR0913
    folder: Path,
    config: Mapping[str, Any],
    *,
    tensors: Mapping[str, torch.Tensor] | None = None,
    shards: int = 1,
    dtype: str = "float32",
    seed: int = 0,
    scale: float = 0.25,
) -> Path:
    """Write config.json, generation_config.json and weights; return `folder`.

    `config` may be that of any LLaVA family (LLaVA-NeXT, Video-LLaVA, ...). `tensors` (Hub name ->
    tensor) replaces seeded weights; names the model lacks are ignored.
    """
    kind = config["vision_config"]["model_type"]
    plain = HUB_NAMES_PLAIN if kind in ("pixtral", "dinov3_vit") else HUB_NAMES
    write_model(
        folder,
        config["architectures"][0],
        config,
        names=HUB_NAMES_DINOV2 if kind.startswith("dinov2") else plain,
        tensors=tensors,
        shards=shards,
        dtype=dtype,
        seed=seed,
        scale=scale,
    )
    generation = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2}
    write_json(folder / "generation_config.json", {**generation, "pad_token_id": 0})
    return folder


def write_tiny_llava(  # noqa: PLR0913
    folder: Path,
    tower: Tower = "clip",
    *,
    depth: int = 4,
    width: int = 16,
    image_size: int = 16,
    patch_size: int = 4,
    shards: int = 1,
    dtype: str = "float32",
    feature_layer: int | None = None,
    seed: int = 0,
    processor: bool = True,
    scale: float = 0.25,
) -> Path:
    """Write a tiny, real LlavaForConditionalGeneration checkpoint into `folder` and return it.

    `feature_layer` defaults to -2 (Pixtral: -1); `shards` > 1 writes an index, projector last;
    `processor` adds tokenizer, image processor and chat template. Pixtral gets LlavaProcessor too
    (its own needs torchvision): right for images of one size per batch, without row breaks.
    """
    if feature_layer is None:
        feature_layer = -1 if tower == "pixtral" else -2
    config = llava_config(
        tower,
        depth=depth,
        width=width,
        image_size=image_size,
        patch_size=patch_size,
        feature_layer=feature_layer,
    )
    write_llava(folder, config, shards=shards, dtype=dtype, seed=seed, scale=scale)
    if processor:
        write_llava_processor(folder, tower, image_size, patch_size)
    return folder


def write_llava_processor(folder: Path, tower: Tower, image_size: int, patch_size: int) -> None:
    """Write tokenizer and processor files by hand, with the class names every version resolves."""
    image_token = _specials(tower)[0]
    template = CHAT_TEMPLATE.replace("<image>", image_token)
    write_tokenizer(folder, _specials(tower), template)
    square = {"height": image_size, "width": image_size}
    # facebook's DINOv2 has BitImageProcessor, the same by another name; DINOv3's needs torchvision.
    cropped = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": image_size},
        "crop_size": square,
        "do_center_crop": True,
    }
    kinds: dict[str, dict[str, Any]] = {
        "siglip": {"image_processor_type": "SiglipImageProcessor", "size": square},
        "pixtral": {
            "image_processor_type": "PixtralImageProcessor",
            "size": {"longest_edge": image_size},
            "patch_size": {"height": patch_size, "width": patch_size},
        },
    }
    processor = {
        "image_token": image_token,
        "num_additional_image_tokens": PREFIX_TOKENS.get(tower, 0),
        "patch_size": patch_size,
        "processor_class": "LlavaProcessor",
        "vision_feature_select_strategy": _strategy(tower),
    }
    write_json(folder / "processor_config.json", processor)
    image_processor = {**kinds.get(tower, cropped), "processor_class": "LlavaProcessor"}
    write_json(folder / "preprocessor_config.json", image_processor)
