"""What tiny models share whose tower reads packed patches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcsurgery.tiny.tokenizer import CHAT_TEMPLATE, special_ids, vocab_size, write_tokenizer
from dcsurgery.tiny.weights import write_json, write_model

QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def text_config(specials: tuple[str, ...]) -> dict[str, Any]:
    """Return the keys of a tiny decoder: width 24, two layers, the tokenizer's vocabulary."""
    return {
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "hidden_act": "silu",
        "hidden_size": 24,
        "intermediate_size": 48,
        "max_position_embeddings": 4096,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "tie_word_embeddings": False,
        "vocab_size": vocab_size(specials),
    }


def vision_ids(tokens: tuple[str, ...] = QWEN_TOKENS) -> dict[str, int]:
    """Return the config's ids of the start, end, image and video token."""
    ids = special_ids(tokens)
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    return {name: ids[token] for name, token in zip(names, tokens, strict=True)}


def qwen_processor(vision: Mapping[str, Any]) -> dict[str, Any]:
    """Return preprocessor_config.json for a vision config; pictures get 64 to 4096 pixels."""
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
        "merge_size": vision["spatial_merge_size"],
        "min_pixels": 64,
        "max_pixels": 4096,
        "patch_size": vision["patch_size"],
        "temporal_patch_size": 2,
    }


def write_packed(
    folder: Path,
    config: Mapping[str, Any],
    tokens: tuple[str, ...],
    preprocessor: Mapping[str, Any],
    named: Mapping[str, str] | None = None,
    **options: Any,
) -> Path:
    """Write model, tokenizer, chat template and the settings of the image processor.

    `tokens` begin with start, end and image token; `named` are those that the processor asks the
    tokenizer for by name, the image token when None; `options` are those of write_model. The whole
    processor needs torchvision (it has a video half); AutoImageProcessor and AutoTokenizer load
    without. Returns `folder`.
    """
    write_model(folder, config["architectures"][0], config, **options)
    start, end, image = tokens[:3]
    template = CHAT_TEMPLATE.replace("<image>", start + image + end)
    write_tokenizer(folder, tokens, template, named or {"image_token": image})
    write_json(folder / "preprocessor_config.json", dict(preprocessor))
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    write_json(folder / "generation_config.json", generation)
    return folder
