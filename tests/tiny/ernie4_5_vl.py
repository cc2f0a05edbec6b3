"""Tiny ERNIE 4.5 VL checkpoints: mixture of experts, a resampler of two merging steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcsurgery.tiny.tokenizer import special_ids
from tests.tiny import _packed

TOKENS = (
    "<|IMAGE_START|>",
    "<|IMAGE_END|>",
    "<|IMAGE_PLACEHOLDER|>",
    "<|VIDEO_START|>",
    "<|VIDEO_END|>",
    "<|video@placeholder|>",
)
IDS = (
    "image_start_token_id",
    "image_end_token_id",
    "image_token_id",
    "video_start_token_id",
    "video_end_token_id",
    "video_token_id",
)
# Published names of tower and resampler; transformers renames them as it loads.
HUB_NAMES = (
    (r"^model\.vision_tower\.", "model.vision_model."),
    *(
        (rf"^model\.resampler_model\.{part}\.{new}\.", rf"model.resampler_model.{part}.{old}.")
        for part in ("spatial_linear", "temporal_linear")
        for new, old in (("fc1", "0"), ("fc2", "2"), ("ln", "3"))
    ),
)


def ernie4_5_vl_config(
    *, depth: int = 4, width: int = 16, patch_size: int = 4, merge: int = 2
) -> dict[str, Any]:
    """Return config.json; the first block of the language model is dense."""
    text = {
        **_packed.text_config(TOKENS),
        "mlp_layer_types": ["dense", "sparse"],
        "model_type": "ernie4_5_vl_moe_text",
        "moe_intermediate_size": [16, 8],
        "moe_k": 1,
        "moe_num_experts": 2,
        "moe_num_shared_experts": 1,
        "rope_parameters": {
            "mrope_section": [2, 2, 2],
            "rope_theta": 20000.0,
            "rope_type": "default",
        },
    }
    vision = {
        "depth": depth,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "model_type": "ernie4_5_vl_moe_vision",
        "num_heads": 2,
        "patch_size": patch_size,
        "spatial_merge_size": merge,
    }
    ids = special_ids(TOKENS)
    return {
        "architectures": ["Ernie4_5_VLMoeForConditionalGeneration"],
        "model_type": "ernie4_5_vl_moe",
        "text_config": text,
        "tie_word_embeddings": False,
        **{name: ids[token] for name, token in zip(IDS, TOKENS, strict=True)},
        "vision_config": vision,
    }


def write_tiny_ernie4_5_vl(
    folder: Path, *, shards: int = 1, dtype: str = "float32", seed: int = 0, **sizes: int
) -> Path:
    """Write a tiny Ernie4_5_VLMoeForConditionalGeneration checkpoint into `folder`; return it.

    `sizes` are depth, width, patch_size and merge.
    """
    config = ernie4_5_vl_config(**sizes)
    vision = config["vision_config"]
    preprocessor = {
        "image_processor_type": "Ernie4_5_VLMoeImageProcessor",
        "merge_size": vision["spatial_merge_size"],
        "patch_size": vision["patch_size"],
        "size": {"shortest_edge": 64, "longest_edge": 4096},
        "temporal_patch_size": 1,
    }
    return _packed.write_packed(
        folder,
        config,
        TOKENS,
        preprocessor,
        dict(zip((name.removesuffix("_id") for name in IDS), TOKENS, strict=True)),
        names=HUB_NAMES,
        shards=shards,
        dtype=dtype,
        seed=seed,
    )
