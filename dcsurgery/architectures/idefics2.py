"""Idefics2: SigLIP behind its last norm; two first matrices, gate and up, then a perceiver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dcsurgery.anatomy import Anatomy, VisionTower
from dcsurgery.architectures import Architecture, Config, Tensors
from dcsurgery.architectures import _reading as reading
from dcsurgery.architectures._pictures import square_pictures

if TYPE_CHECKING:
    from torch import Tensor

PROJECTOR = "connector.modality_projection"
SITES = (f"{PROJECTOR}.gate_proj", f"{PROJECTOR}.up_proj")
BLOCKS = "vision_model.encoder.layers"


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of an Idefics2ForConditionalGeneration checkpoint."""
    projector = reading.read_projector(
        tensors, {site: f"{site}.weight" for site in SITES}, PROJECTOR
    )
    vision = reading.section(config, "vision_config")
    tower = VisionTower(
        # Published configs say "idefics2"; the config class goes by this name whatever they say.
        kind="idefics2_vision",
        module="vision_model",
        blocks=BLOCKS,
        width=projector.sites[0].in_features,
        depth=reading.count_blocks(tensors, BLOCKS),
        prefix_tokens=0,
        image_size=reading.positive(vision, "image_size", 224),
        patch_size=reading.positive(vision, "patch_size", 32),
    )
    reading.check_tower(tower, vision)
    perceiver = reading.section(config, "perceiver_config")
    return Anatomy(
        architecture="idefics2",
        tower=tower,
        # Both matrices read every patch; the perceiver behind them leaves its latents.
        projector=projector.reading(tower.grid**2, tower.grid**2),
        feature_layers=(tower.depth,),
        feature_width=tower.width,
        dropped_tokens=0,
        # The perceiver's latents; a processor that cuts a picture in four gives five times as many.
        image_tokens=reading.positive(perceiver, "resampler_n_latents", 64),
        variable_resolution=True,
        language_model=reading.language_model(config, "mistral"),
        dtype=tensors[projector.sites[0].weight].dtype,
        normed=True,
    )


def preprocess(config: Config, images: Sequence[Any]) -> dict[str, Tensor]:
    """Return pixel_values [1, n, 3, S, S]: one prompt with all the images, none of them cut."""
    side = reading.positive(reading.section(config, "vision_config"), "image_size", 224)
    return {"pixel_values": square_pictures(images, side)[None]}


ARCHITECTURE = Architecture(
    name="idefics2",
    class_names=("Idefics2ForConditionalGeneration",),
    dissect=dissect,
    checkpoints=("HuggingFaceM4/idefics2-8b", "HuggingFaceM4/idefics2-8b-chatty"),
    towers="SigLIP",
    preprocess=preprocess,
)
