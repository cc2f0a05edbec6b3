"""Tiny Molmo2 checkpoints with the names and config words of the published ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dcsurgery.tiny.tokenizer import special_ids
from dcsurgery.tiny.weights import model_shapes, seeded_tensors, write_json, write_weights
from tests.tiny.parts import base_config, square, text_section, write_processor

SPECIALS = (
    "<im_patch>", "<im_start>", "<im_end>", "<low_res_im_start>", "<frame_start>", "<frame_end>",
)  # fmt: skip
# Every one is applied; what gets one name is one tensor in the file, row after row.
HUB_NAMES = (
    (r"^model\.language_model\.layers\.", "model.transformer.blocks."),
    (r"^model\.language_model\.norm\.", "model.transformer.ln_f."),
    (r"^model\.language_model\.embed_tokens\.weight", "model.transformer.wte.embedding"),
    (r"(blocks\.\d+)\.self_attn\.[qkv]_proj\.", r"\1.self_attn.att_proj."),
    (r"(blocks\.\d+)\.self_attn\.o_proj\.", r"\1.self_attn.attn_out."),
    (r"(blocks\.\d+)\.mlp\.(up|gate)_proj\.", r"\1.mlp.ff_proj."),
    (r"(blocks\.\d+)\.mlp\.down_proj\.", r"\1.mlp.ff_out."),
    (r"\.input_layernorm\.", ".attn_norm."),
    (r"\.post_attention_layernorm\.", ".ff_norm."),
    (r"^model\.vision_tower\.layers\.", "model.vision_backbone.image_vit.transformer.resblocks."),
    (r"^model\.vision_tower\.", "model.vision_backbone.image_vit."),
    (r"(resblocks\.\d+)\.self_attn\.([qkvo])_proj\.", r"\1.attention.w\2."),
    (r"(resblocks\.\d+)\.mlp\.fc([12])\.", r"\1.feed_forward.w\2."),
    (r"\.layer_norm1\.", ".attention_norm."),
    (r"\.layer_norm2\.", ".ffn_norm."),
    (r"^model\.multi_modal_projector\.", "model.vision_backbone."),
    (r"image_pooling_2d\.([qkvo])_proj\.", r"image_pooling_2d.w\1."),
    (r"image_projector\.gate_proj\.", "image_projector.w1."),
    (r"image_projector\.down_proj\.", "image_projector.w2."),
    (r"image_projector\.up_proj\.", "image_projector.w3."),
)
EMBEDDING = "model.transformer.wte.embedding"
MORE_TOKENS = 8


def molmo2_config(
    *,
    layers: Sequence[int] = (3, 1),
    depth: int = 4,
    width: int = 16,
    image_size: int = 20,
    patch_size: int = 4,
) -> dict[str, Any]:
    """Return the config.json of a tiny Molmo2 in the words of transformers.

    `layers` are the block outputs the projector reads; sizes in blocks, channels and pixels.
    """
    ids = special_ids(SPECIALS)
    heads = {"head_dim": width // 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = base_config("Molmo2ForConditionalGeneration", "molmo2", SPECIALS)
    return {
        **config,
        "adapter_config": {
            **heads,
            "hidden_size": width,
            "intermediate_size": 40,
            "model_type": "molmo2_adapter",
            "text_hidden_size": 24,
            "vision_feature_layer": list(layers),
        },
        "image_patch_id": config.pop("image_token_id"),
        "image_start_token_id": ids["<im_start>"],
        "image_end_token_id": ids["<im_end>"],
        "low_res_image_start_token_id": ids["<low_res_im_start>"],
        "frame_start_token_id": ids["<frame_start>"],
        "frame_end_token_id": ids["<frame_end>"],
        "text_config": {
            **text_section("llama", SPECIALS),
            "additional_vocab_size": MORE_TOKENS,
            "head_dim": 12,
            "model_type": "molmo2_text",
        },
        "vision_config": {
            **heads,
            "hidden_size": width,
            "image_size": [image_size, image_size],
            "intermediate_size": 2 * width,
            "model_type": "molmo2_vision",
            "num_hidden_layers": depth,
            "patch_size": patch_size,
        },
    }


def published_words(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config as the published ones have it: other keys, layers counted from the end.

    Two more blocks are stated than the file holds: they lie behind the deepest layer listed.
    """
    vision, adapter = dict(config["vision_config"]), dict(config["adapter_config"])
    size, patch = vision.pop("image_size"), vision.pop("patch_size")
    stated = vision["num_hidden_layers"] + 2
    layers = [layer - stated for layer in adapter.pop("vision_feature_layer")]
    kept = {key: value for key, value in config.items() if key != "vision_config"}
    return {
        **kept,
        "adapter_config": {**adapter, "model_type": "molmo2", "vit_layers": layers},
        "vit_config": {
            **vision,
            "image_default_input_size": size,
            "image_num_pos": (size[0] // patch) ** 2,
            "image_patch_size": patch,
            "model_type": "molmo2",
            "num_hidden_layers": stated,
        },
    }


def _hub_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    import transformers

    model_class = transformers.Molmo2ForConditionalGeneration
    stored: dict[str, tuple[int, ...]] = {}
    for name, shape in model_shapes(
        model_class, model_class.config_class.from_dict(config)
    ).items():
        for pattern, replacement in HUB_NAMES:
            name = re.sub(pattern, replacement, name)
        rows = stored[name][0] if name in stored else 0
        stored[name] = (rows + shape[0], *shape[1:])
    rows, width = stored[EMBEDDING]
    stored[EMBEDDING] = (rows - MORE_TOKENS, width)
    stored[EMBEDDING.replace("embedding", "new_embedding")] = (MORE_TOKENS, width)
    # The projector in the last shard.
    return dict(sorted(stored.items(), key=lambda item: "vision_backbone" in item[0]))


def write_tiny_molmo2(
    folder: Path, *, shards: int = 1, dtype: str = "float32", seed: int = 0, **sizes: Any
) -> Path:
    """Write a tiny Molmo2 into `folder` and return it; `sizes` as in molmo2_config."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    config = published_words(molmo2_config(**sizes))
    shapes = _hub_shapes(config)
    weights = seeded_tensors(shapes, seed=seed, scale=0.25)
    write_weights(folder, {n: weights[n].to(getattr(torch, dtype)) for n in shapes}, shards)
    write_json(folder / "config.json", {**config, "torch_dtype": dtype})
    vision = config["vit_config"]
    image_processor = {
        "auto_map": {"AutoImageProcessor": "image_processing_molmo2.Molmo2ImageProcessor"},
        "image_processor_type": "Molmo2ImageProcessor",
        "max_crops": 8,
        "overlap_margins": [1, 1],
        "patch_size": vision["image_patch_size"],
        "pooling_size": [2, 2],
        "size": square(vision["image_default_input_size"][0]),
    }
    write_processor(folder, SPECIALS, image_processor)
    return folder
