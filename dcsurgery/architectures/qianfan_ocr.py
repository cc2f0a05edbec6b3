"""Qianfan-OCR: InternVL whose files keep the names of InternVL's original code."""

from __future__ import annotations

from dataclasses import replace

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Architecture, Config, Tensors, _internvl
from dcsurgery.architectures import _reading as reading

WIRING = _internvl.wiring("qianfan_ocr", "qianfan_ocr_vision", "qwen3", "layers")
# The first matrix and the tower in files; transformers renames them as it loads.
ORIGINAL = replace(WIRING, module="vision_model", blocks="encoder.layers", norm="norm1")
MATRIX = "mlp1.1.weight"


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of a QianfanOCRForConditionalGeneration checkpoint."""
    if MATRIX not in tensors:
        return _internvl.read_anatomy(config, tensors, WIRING, tied=True)
    projector = reading.read_projector(tensors, {WIRING.site: MATRIX}, "mlp1")
    anatomy = _internvl.read_anatomy(config, tensors, ORIGINAL, projector=projector, tied=True)
    blocks = f"{WIRING.module}.{WIRING.blocks}"
    return replace(anatomy, tower=replace(anatomy.tower, module=WIRING.module, blocks=blocks))


ARCHITECTURE = Architecture(
    name="qianfan_ocr",
    class_names=("QianfanOCRForConditionalGeneration",),
    dissect=dissect,
    checkpoints=("baidu/Qianfan-OCR",),
    towers="InternViT",
    arrange=_internvl.arrange,
    parameter_names=(
        ("mlp1.0.", "multi_modal_projector.layer_norm."),
        (MATRIX.removesuffix("weight"), "multi_modal_projector.linear_1."),
        ("mlp1.3.", "multi_modal_projector.linear_2."),
    ),
)
