"""LLaVA-1.5 and its relatives: CLIP, SigLIP or Pixtral tower, two-layer projector."""

from __future__ import annotations

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Architecture, Config, Tensors, _llava


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of a LlavaForConditionalGeneration checkpoint."""
    return _llava.read_anatomy(config, tensors, name="llava", defaults=_llava.DEFAULTS)


ARCHITECTURE = Architecture(
    name="llava",
    class_names=("LlavaForConditionalGeneration",),
    dissect=dissect,
    checkpoints=(
        "llava-hf/llava-1.5-7b-hf",
        "llava-hf/llava-1.5-13b-hf",
        "llava-hf/llava-interleave-qwen-0.5b-hf",
        "mistral-community/pixtral-12b",
        "liuhaotian/llava-v1.5-7b",
        "HuanjinYao/DenseConnector-v1.5-7B",
    ),
    towers="CLIP, SigLIP, Pixtral",
    stock_config=_llava.stock_config,
    stock_loader="transformers >= 4.49.0, LlavaForConditionalGeneration",
    processor=_llava.count_appended,
    token_connectors=("sti", "pool"),
    counting=_llava.counting("LlavaProcessor"),
)
