"""Tiny Llama 4 checkpoints: published names, an adapter inside the tower, mixture of experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcsurgery.tiny.tokenizer import CHAT_TEMPLATE, special_ids, vocab_size, write_tokenizer
from dcsurgery.tiny.weights import write_model
from tests.tiny.parts import vision_section

CLASS = "Llama4ForConditionalGeneration"
SPECIALS = ("<|patch|>", "<|image_start|>", "<|image_end|>")


def llama4_config(side: int = 2, **sizes: int) -> dict[str, Any]:
    """Return the config.json of a tiny Llama 4 that joins `side` x `side` patches."""
    vision = vision_section(**sizes)
    ids = special_ids(SPECIALS)
    text = {
        "model_type": "llama4_text",
        "attention_chunk_size": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": 12,
        "hidden_size": 24,
        "interleave_moe_layer_step": 1,
        "intermediate_size": 16,
        "intermediate_size_mlp": 32,
        "max_position_embeddings": 4096,
        "num_attention_heads": 2,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "num_local_experts": 2,
        "pad_token_id": 0,
        "rope_theta": 20000.0,
        "vocab_size": vocab_size(SPECIALS),
    }
    return {
        "architectures": [CLASS],
        "model_type": "llama4",
        "boi_token_index": ids["<|image_start|>"],
        "eoi_token_index": ids["<|image_end|>"],
        "image_token_index": ids["<|patch|>"],
        "text_config": text,
        "tie_word_embeddings": False,
        "vision_config": {
            **vision,
            "intermediate_size": side**2 * vision["hidden_size"],
            "model_type": "llama4_vision_model",
            "pixel_shuffle_ratio": 1 / side,
            "projector_input_dim": 20,
            "projector_output_dim": 20,
            "rope_theta": 10000.0,
            "vision_output_dim": 20,
        },
    }


def write_tiny_llama4(
    folder: Path, *, shards: int = 1, dtype: str = "float32", seed: int = 0, **sizes: int
) -> Path:
    """Write a tiny Llama4ForConditionalGeneration into `folder`; `sizes` as in vision_section.

    It has a tokenizer and no image processor: transformers' own for this family needs torchvision.
    """
    config = llama4_config(**sizes)
    write_model(folder, CLASS, config, shards=shards, dtype=dtype, seed=seed)
    write_tokenizer(folder, SPECIALS, CHAT_TEMPLATE.replace("<image>", SPECIALS[0]))
    return folder
