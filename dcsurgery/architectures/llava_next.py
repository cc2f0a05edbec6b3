"""LLaVA-NeXT (1.6) and Granite Vision: the projector sees tiles of an image one by one."""

from __future__ import annotations

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Architecture, Config, Tensors, _anyres, _llava


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of a LlavaNextForConditionalGeneration checkpoint.

    `image_tokens` counts one tile; an image has a copy of the whole and as many tiles as its shape
    asks for, and one token more per line.
    """
    return _llava.read_anatomy(config, tensors, name="llava_next", defaults=_llava.DEFAULTS)


ARCHITECTURE = Architecture(
    name="llava_next",
    class_names=("LlavaNextForConditionalGeneration",),
    dissect=dissect,
    checkpoints=(
        "llava-hf/llava-v1.6-mistral-7b-hf",
        "llava-hf/llava-v1.6-vicuna-7b-hf",
        "llava-hf/llava-v1.6-34b-hf",
        "ibm-granite/granite-vision-3.3-2b",
        "liuhaotian/llava-v1.6-mistral-7b",
        "HuanjinYao/DenseConnector-v1.5-SigLIP-7B-AnyRes",
    ),
    towers="CLIP, SigLIP",
    stock_config=_llava.stock_config,
    stock_loader="transformers >= 4.49.0, LlavaNextForConditionalGeneration",
    processor=_llava.count_pooled,
    token_connectors=("pool",),
    counting=_llava.counting("LlavaNextProcessor"),
    resize=_llava.resize_grid,
    preprocess=_anyres.tile_images,
)
