"""Tiny VideoLLaMA 3 checkpoints: module names and nested config.json as published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcsurgery.tiny.tokenizer import special_ids
from tests.tiny import _packed

TOKENS = ("<|vision_start|>", "<|vision_end|>", "<image>", "<video>")


def video_llama_3_config(*, depth: int = 4, width: int = 16, patch_size: int = 4) -> dict[str, Any]:
    """Return config.json."""
    text = {
        **_packed.text_config(TOKENS),
        "model_type": "qwen2",
        "rope_theta": 20000.0,
        "use_sliding_window": False,
    }
    vision = {
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "layer_norm_eps": 1e-06,
        "model_type": "video_llama_3_vision",
        "num_attention_heads": 2,
        "num_channels": 3,
        "num_hidden_layers": depth,
        "patch_size": patch_size,
    }
    ids = special_ids(TOKENS)
    return {
        "architectures": ["VideoLlama3ForConditionalGeneration"],
        "image_token_id": ids["<image>"],
        "model_type": "video_llama_3",
        "text_config": text,
        "tie_word_embeddings": False,
        "video_token_id": ids["<video>"],
        "vision_config": vision,
    }


def write_tiny_video_llama_3(
    folder: Path, *, shards: int = 1, dtype: str = "float32", seed: int = 0, **sizes: int
) -> Path:
    """Write a tiny VideoLlama3ForConditionalGeneration checkpoint into `folder` and return it.

    `sizes` are depth, width and patch_size. Pictures keep every patch, as published.
    """
    config = video_llama_3_config(**sizes)
    preprocessor = {
        "image_processor_type": "VideoLlama3ImageProcessor",
        "processor_class": "VideoLlama3Processor",
        "merge_size": 1,
        "min_pixels": 64,
        "max_pixels": 4096,
        "patch_size": config["vision_config"]["patch_size"],
        "temporal_patch_size": 1,
    }
    return _packed.write_packed(
        folder, config, TOKENS, preprocessor, shards=shards, dtype=dtype, seed=seed
    )
