"""Tiny Mini-Gemini checkpoints in this package's own layout, any of its language models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dcsurgery.tiny.tokenizer import special_ids, vocab_size, write_tokenizer
from dcsurgery.tiny.weights import (
    model_shapes,
    rename,
    seeded_tensors,
    write_json,
    write_weights,
)

if TYPE_CHECKING:
    import torch

Language = Literal["llama", "gemma", "mistral", "mixtral"]

SPECIALS = ("<image>",)
# Published CLIP towers have "vision_model." inside; order is file order, the projector last.
NAMES = (
    (r"^model\.vision_tower\.(vision_model\.)?", "model.vision_tower.vision_model."),
    (r"^model\.vision_tower_aux\.", "model.vision_tower_aux."),
    (r"^model\.language_model\.", "model.language_model."),
    (r"^lm_head\.", "lm_head."),
    (r"^model\.patch_info_mining\.", "model.patch_info_mining."),
    (r"^model\.multi_modal_projector\.", "model.multi_modal_projector."),
)
# transformers joins Mixtral's experts in memory; files hold them one by one, under older names.
EXPERTS = 2


def text_config(language: Language) -> dict[str, Any]:
    """Return the config of a tiny language model, in words that published configs use."""
    text: dict[str, Any] = {
        "model_type": language,
        "hidden_size": 24,
        "intermediate_size": 48,
        "max_position_embeddings": 4096,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-05,
        "rope_theta": 20000.0,
        "vocab_size": vocab_size(SPECIALS),
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": language == "gemma",
    }
    if language == "gemma":
        text |= {"hidden_act": "gelu_pytorch_tanh", "head_dim": 12, "num_key_value_heads": 1}
    if language == "mixtral":
        text |= {"num_local_experts": EXPERTS, "num_experts_per_tok": 1, "sliding_window": None}
    return text


def mini_gemini_config(
    language: Language = "llama", *, grid: int = 1, whole: bool = False, depth: int = 4
) -> dict[str, Any]:
    """Return the config.json of a tiny Mini-Gemini: CLIP of 16 pixels, ConvNeXt of 32 x grid."""
    return {
        "architectures": ["MiniGeminiForConditionalGeneration"],
        "model_type": "mini_gemini",
        "image_token_id": special_ids(SPECIALS)["<image>"],
        "image_grid": grid,
        "image_global": whole,
        "vision_feature_layer": -2,
        "pad_token_id": 0,
        "tie_word_embeddings": language == "gemma",
        "text_config": text_config(language),
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 16,
            "image_size": 16,
            "intermediate_size": 32,
            "num_attention_heads": 2,
            "num_hidden_layers": depth,
            "patch_size": 4,
            "projection_dim": 8,
        },
        "vision_config_aux": {
            "model_type": "convnext",
            "depths": [1, 1, 2, 1],
            "hidden_sizes": [8, 8, 12, 16],
            "image_size": 32 * grid,
        },
    }


def mini_gemini_tensors(config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return seeded weights under the names of a file."""
    from dcsurgery.modeling.mini_gemini import MiniGeminiConfig, MiniGeminiForConditionalGeneration

    built = MiniGeminiConfig(**config)
    stored = rename(model_shapes(MiniGeminiForConditionalGeneration, built), NAMES)
    return _split_experts(seeded_tensors(stored, seed=0, scale=0.25), list(stored))


def _split_experts(tensors: dict[str, torch.Tensor], order: list[str]) -> dict[str, torch.Tensor]:
    split: dict[str, torch.Tensor] = {}
    for name in order:
        value = tensors[name]
        base = name.rpartition(".")[0].replace(".mlp.", ".block_sparse_moe.")
        if name.endswith(".experts.gate_up_proj"):
            for index, both in enumerate(value):
                gate, up = both.chunk(2)
                split |= {f"{base}.{index}.w1.weight": gate, f"{base}.{index}.w3.weight": up}
        elif name.endswith(".experts.down_proj"):
            split |= {f"{base}.{index}.w2.weight": down for index, down in enumerate(value)}
        else:
            split[name.replace(".mlp.gate.", ".block_sparse_moe.gate.")] = value
    return split


def write_tiny_mini_gemini(  # noqa: PLR0913
    folder: Path,
    language: Language = "llama",
    *,
    grid: int = 1,
    whole: bool = False,
    depth: int = 4,
    shards: int = 1,
    dtype: str = "float32",
    processor: bool = True,
) -> Path:
    """Write a tiny, real MiniGeminiForConditionalGeneration checkpoint; return `folder`.

    `processor` adds tokenizer, image processor and chat template.
    """
    config = mini_gemini_config(language, grid=grid, whole=whole, depth=depth)
    return write_mini_gemini(folder, config, shards=shards, dtype=dtype, processor=processor)


def write_mini_gemini(
    folder: Path,
    config: Mapping[str, Any],
    *,
    shards: int = 1,
    dtype: str = "float32",
    processor: bool = True,
) -> Path:
    """Write config.json, generation_config.json and seeded weights; return `folder`."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    kind = getattr(torch, dtype)
    tensors = {name: value.to(kind) for name, value in mini_gemini_tensors(config).items()}
    write_weights(folder, tensors, shards)
    write_json(folder / "config.json", {**config, "torch_dtype": dtype})
    generation = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2}
    write_json(folder / "generation_config.json", {**generation, "pad_token_id": 0})
    if processor:
        write_processor(folder, config)
    return folder


def write_processor(folder: Path, config: Mapping[str, Any]) -> None:
    """Write the files of a MiniGeminiProcessor that fits `config`."""
    from dcsurgery.modeling.chat_templates import chat_template

    prompts = {"gemma": "gemma", "mixtral": "mgm_mistral_instruct"}
    template = chat_template(prompts.get(config["text_config"]["model_type"], "v1"))
    write_tokenizer(folder, SPECIALS, template)
    vision = config["vision_config"]
    processor = {
        "image_token": "<image>",
        "patch_size": vision["patch_size"],
        "processor_class": "MiniGeminiProcessor",
    }
    write_json(folder / "processor_config.json", processor)
    images = {
        "image_processor_type": "MiniGeminiImageProcessor",
        "processor_class": "MiniGeminiProcessor",
        "size": vision["image_size"],
        "size_aux": config["vision_config_aux"]["image_size"],
        "image_grid": config["image_grid"],
        "image_global": config["image_global"],
    }
    write_json(folder / "preprocessor_config.json", images)
