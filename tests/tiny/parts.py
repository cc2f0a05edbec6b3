"""Parts that tiny models of many families share: config sections and processor files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dcsurgery.tiny.tokenizer import CHAT_TEMPLATE, special_ids, vocab_size, write_tokenizer
from dcsurgery.tiny.weights import write_json

# What a text config needs beside the common sizes, by model type.
_TEXT: dict[str, dict[str, Any]] = {
    "llama": {"rms_norm_eps": 1e-05},
    "qwen2": {"rms_norm_eps": 1e-05},
    "qwen3": {"rms_norm_eps": 1e-05, "head_dim": 12},
    "cohere2": {"layer_types": ["full_attention"] * 2, "logit_scale": 1.0, "sliding_window": 64},
    "gemma": {"head_dim": 12},
    "gemma2": {"head_dim": 12, "query_pre_attn_scalar": 12, "sliding_window": 64},
    "gemma3_text": {
        "head_dim": 12,
        "query_pre_attn_scalar": 12,
        "sliding_window": 64,
        "sliding_window_pattern": 2,
    },
}


def text_section(model_type: str, specials: Sequence[str]) -> dict[str, Any]:
    """Return the text_config of a language model of two blocks, 24 channels and two heads."""
    return {
        "model_type": model_type,
        "hidden_size": 24,
        "intermediate_size": 48,
        "max_position_embeddings": 4096,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        # Not the default on purpose: a reader that loses the key computes other logits.
        "rope_theta": 20000.0,
        "vocab_size": vocab_size(specials),
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **_TEXT[model_type],
    }


def vision_section(
    *, depth: int = 4, width: int = 16, image_size: int = 16, patch_size: int = 4
) -> dict[str, Any]:
    """Return the sizes of a vision_config in the words most towers share; sizes in pixels."""
    return {
        "hidden_size": width,
        "image_size": image_size,
        "intermediate_size": 2 * width,
        "num_attention_heads": 2,
        "num_hidden_layers": depth,
        "patch_size": patch_size,
    }


def siglip_section(**sizes: int) -> dict[str, Any]:
    """Return the vision_config of a SigLIP tower without the pooling head."""
    siglip = {"model_type": "siglip_vision_model", "vision_use_head": False}
    return {**vision_section(**sizes), **siglip}


def base_config(class_name: str, model_type: str, specials: Sequence[str]) -> dict[str, Any]:
    """Return the top level of a config.json; the first special token stands for an image."""
    return {
        "architectures": [class_name],
        "model_type": model_type,
        "image_token_id": special_ids(specials)[specials[0]],
        "tie_word_embeddings": False,
        "transformers_version": "4.57.0",
    }


def write_processor(
    folder: Path,
    specials: Sequence[str],
    image_processor: Mapping[str, Any],
    processor: Mapping[str, Any] | None = None,
    named: Mapping[str, str] | None = None,
    shown: str | None = None,
) -> None:
    """Write tokenizer, image processor and, when given, processor files.

    `shown` (default: the first special token) is what the chat template writes for an image;
    `named` as in write_tokenizer.
    """
    template = CHAT_TEMPLATE.replace("<image>", shown or specials[0])
    write_tokenizer(folder, specials, template, named)
    write_json(folder / "preprocessor_config.json", dict(image_processor))
    if processor is not None:
        write_json(folder / "processor_config.json", dict(processor))


def square(side: int) -> dict[str, int]:
    """Return a size in pixels as image processors write it."""
    return {"height": side, "width": side}
