"""Tiny Qianfan-OCR checkpoints, with published names: those of InternVL's original code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcsurgery.tiny.weights import model_shapes, rename, seeded_tensors, write_json, write_weights
from tests.tiny.internvl import SPECIALS, internvl_config, write_pictures_processor
from tests.tiny.parts import text_section

CLASS = "QianfanOCRForConditionalGeneration"
_BLOCKS = r"^model\.vision_tower\.layers\.(\d+)\."
_BLOCK = r"vision_model.encoder.layers.\1."
HUB_NAMES = (
    (r"^model\.vision_tower\.embeddings\.cls_token", "vision_model.embeddings.class_embedding"),
    (
        r"^model\.vision_tower\.embeddings\.position_embeddings",
        "vision_model.embeddings.position_embedding",
    ),
    (
        r"^model\.vision_tower\.embeddings\.patch_embeddings\.projection\.",
        "vision_model.embeddings.patch_embedding.",
    ),
    (_BLOCKS + r"attention\.q_proj\.", _BLOCK + "attn.qkv."),
    (_BLOCKS + r"attention\.projection_layer\.", _BLOCK + "attn.proj."),
    (_BLOCKS + r"lambda_", _BLOCK + "ls"),
    (_BLOCKS + r"layernorm_before\.", _BLOCK + "norm1."),
    (_BLOCKS + r"layernorm_after\.", _BLOCK + "norm2."),
    (_BLOCKS, _BLOCK),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.multi_modal_projector\.layer_norm\.", "mlp1.0."),
    (r"^model\.multi_modal_projector\.linear_1\.", "mlp1.1."),
    (r"^model\.multi_modal_projector\.linear_2\.", "mlp1.3."),
)


def qianfan_ocr_config(downsample_ratio: float = 0.5, **sizes: int) -> dict[str, Any]:
    """Return the config.json of a tiny Qianfan-OCR."""
    config = internvl_config(downsample_ratio, **sizes)
    return {
        **config,
        "architectures": [CLASS],
        "model_type": "qianfan_ocr",
        "text_config": text_section("qwen3", SPECIALS),
        "vision_config": {**config["vision_config"], "model_type": "qianfan_ocr_vision"},
    }


def write_tiny_qianfan_ocr(
    folder: Path, *, shards: int = 1, dtype: str = "float32", seed: int = 0, **sizes: int
) -> Path:
    """Write a tiny Qianfan-OCR into `folder` and return it; `sizes` as in vision_section.

    Queries, keys and values of the tower are one tensor, as in published files.
    """
    import torch
    import transformers

    config = qianfan_ocr_config(**sizes)
    folder.mkdir(parents=True, exist_ok=True)
    model_class = getattr(transformers, CLASS)
    shapes = model_shapes(model_class, model_class.config_class.from_dict(dict(config)))
    stored = {}
    for name, shape in rename(shapes, HUB_NAMES).items():
        if "attn.qkv" in name:
            stored[name] = (3 * shape[0], *shape[1:])
        elif ".attention." not in name:
            stored[name] = shape
    weights = seeded_tensors(stored, seed=seed, scale=0.25)
    write_weights(folder, {n: weights[n].to(getattr(torch, dtype)) for n in stored}, shards)
    write_json(folder / "config.json", {**config, "torch_dtype": dtype})
    write_pictures_processor(folder, config, "QianfanOCRProcessor", "<image>")
    return folder
