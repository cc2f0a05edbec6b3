"""Tiny Kimi K2.5 checkpoints: published names, a tower on packed patches in raster order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcsurgery.tiny.tokenizer import CHAT_TEMPLATE, special_ids, write_tokenizer
from dcsurgery.tiny.weights import seeded_tensors, write_json, write_weights
from tests.tiny import _packed

TOKENS = ("<|media_begin|>", "<|media_end|>", "<|media_pad|>", "<|video_pad|>")


def kimi_k25_config(
    *, depth: int = 4, width: int = 16, patch_size: int = 4, merge: int = 2
) -> dict[str, Any]:
    """Return config.json; the language model is a DeepSeek-V3 without experts."""
    text = {
        **_packed.text_config(TOKENS),
        "first_k_dense_replace": 2,
        "kv_lora_rank": 8,
        "model_type": "deepseek_v3",
        "n_group": 1,
        "n_routed_experts": 2,
        "num_experts_per_tok": 1,
        "q_lora_rank": 8,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "rope_theta": 20000.0,
        "topk_group": 1,
        "v_head_dim": 8,
    }
    vision = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "merge_kernel_size": [merge, merge],
        "model_type": "kimi_k25_vision",
        "num_attention_heads": 2,
        "num_hidden_layers": depth,
        "patch_size": patch_size,
        "pos_emb_height": 8,
        "pos_emb_width": 8,
    }
    ids = special_ids(TOKENS)
    return {
        "architectures": ["Kimi_K25ForConditionalGeneration"],
        "model_type": "kimi_k25",
        "image_token_id": ids["<|media_pad|>"],
        "projection_hidden_size": width,
        "text_config": text,
        "tie_word_embeddings": False,
        "video_token_id": ids["<|video_pad|>"],
        "vision_config": vision,
        "vision_end_token_id": ids["<|media_end|>"],
        "vision_start_token_id": ids["<|media_begin|>"],
    }


def write_tiny_kimi_k25(
    folder: Path, *, shards: int = 1, dtype: str = "float32", seed: int = 0, **sizes: int
) -> Path:
    """Write a tiny Kimi_K25ForConditionalGeneration checkpoint into `folder` and return it.

    `sizes` are depth, width, patch_size and merge. save_pretrained restores the published names and
    the joined matrix of query, key and value. The image processor, which transformers has for
    torchvision alone, is only named.
    """
    import torch
    import transformers
    from safetensors.torch import load_file

    config = kimi_k25_config(**sizes)
    known = transformers.Kimi_K25Config.from_dict(config)
    model = transformers.Kimi_K25ForConditionalGeneration(known)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    model.load_state_dict(seeded_tensors(shapes, seed=seed, scale=0.25), strict=False)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    write_weights(folder, tensors, shards)
    template = CHAT_TEMPLATE.replace("<image>", "".join((TOKENS[0], TOKENS[2], TOKENS[1])))
    write_tokenizer(folder, TOKENS, template)
    preprocessor = {"image_processor_type": "Kimi_K25ImageProcessor"}
    write_json(folder / "preprocessor_config.json", preprocessor)
    return folder
