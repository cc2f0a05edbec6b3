"""DeepSeek-VL 7B: SigLIP beside SAM; the connector reads SigLIP, whose half the projector has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Architecture, Config, Tensors, _plain
from dcsurgery.architectures import _reading as reading
from dcsurgery.architectures._pictures import square_pictures

if TYPE_CHECKING:
    from torch import Tensor

WIRING = _plain.Wiring(
    name="deepseek_vl_hybrid",
    site="aligner.vision_proj",
    language_model="llama",
    module="vision_model",
    output=(),
)


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of a DeepseekVLHybridForConditionalGeneration checkpoint."""
    return _plain.read_anatomy(config, tensors, WIRING)


def preprocess(config: Config, images: Sequence[Any]) -> dict[str, Tensor]:
    """Return pixel_values and high_res_pixel_values [n, 3, S, S], each of its tower's size."""
    low = reading.positive(reading.section(config, "vision_config"), "image_size", 224)
    high = reading.positive(reading.section(config, "high_res_vision_config"), "image_size", 1024)
    return {
        "pixel_values": square_pictures(images, low),
        "high_res_pixel_values": square_pictures(images, high),
    }


ARCHITECTURE = Architecture(
    name="deepseek_vl_hybrid",
    class_names=("DeepseekVLHybridForConditionalGeneration",),
    dissect=dissect,
    checkpoints=("deepseek-community/deepseek-vl-7b-chat",),
    towers="SigLIP (SAM is left alone)",
    preprocess=preprocess,
)
