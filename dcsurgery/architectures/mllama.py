"""Llama 3.2 Vision: a tower with a second, global transformer; one matrix reads both.

The projector reads the global transformer's output, then the outputs of some blocks of the first
one with their channels interleaved: column D + d * n + j is channel d of the j-th of n blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dcsurgery.anatomy import Anatomy, VisionTower
from dcsurgery.architectures import Architecture, Config, Tensors
from dcsurgery.architectures import _reading as reading
from dcsurgery.architectures._pictures import square_pictures
from dcsurgery.features import Columns, block_outputs

if TYPE_CHECKING:
    from torch import Tensor

SITE = "multi_modal_projector"
BLOCKS = "vision_model.transformer.layers"
LAYERS = "intermediate_layers_indices"
DEFAULT_LAYERS = [3, 7, 15, 23, 30]
INPUTS = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of a MllamaForConditionalGeneration checkpoint."""
    projector = reading.read_projector(tensors, {SITE: f"{SITE}.weight"}, SITE)
    vision = reading.section(config, "vision_config")
    tower = VisionTower(
        kind=vision.get("model_type", "mllama_vision_model"),
        module="vision_model",
        blocks=BLOCKS,
        width=reading.find_tensor(tensors, "vision_model.class_embedding").shape[0],
        depth=reading.count_blocks(tensors, BLOCKS),
        prefix_tokens=1,
        image_size=reading.positive(vision, "image_size", 448),
        patch_size=reading.positive(vision, "patch_size", 14),
    )
    reading.check_tower(tower, vision)
    layers = reading.read_block_outputs(vision.get(LAYERS) or DEFAULT_LAYERS, tower.depth, LAYERS)
    site, wanted = projector.sites[0], tower.width * (1 + len(layers))
    for what, size in (
        (site.weight, site.in_features),
        ("vision_output_dim", vision.get("vision_output_dim", 7680)),
    ):
        reading.require(
            size == wanted, f"{what} has {size} channels but {LAYERS} makes it {wanted}"
        )
    return Anatomy(
        architecture="mllama",
        tower=tower,
        projector=projector,
        feature_layers=layers,
        feature_width=tower.width,
        dropped_tokens=0,
        # What the language model attends to: pictures are padded to the largest number of tiles.
        image_tokens=reading.positive(vision, "max_num_tiles", 4) * (tower.grid**2 + 1),
        variable_resolution=False,
        language_model=reading.language_model(config, "mllama_text_model"),
        dtype=tensors[site.weight].dtype,
        first_state=1,
    )


def stock_config(config: Config, layers: Sequence[int]) -> Config:
    """Return a copy of `config` whose tower hands on `layers`, ascending."""
    vision = reading.section(config, "vision_config")
    vision[LAYERS] = block_outputs(layers)
    vision["vision_output_dim"] = vision.get("hidden_size", 1280) * (1 + len(layers))
    return {**config, "vision_config": vision}


def stock_columns(anatomy: Anatomy, layers: Sequence[int]) -> Columns:
    """Return the interleaved columns; the global output keeps the first ones."""
    width = anatomy.feature_width

    def every(count: int, position: int) -> slice:
        return slice(width + position, width * (1 + count), count)

    states = {layer: every(len(layers), index) for index, layer in enumerate(layers)}
    before = len(anatomy.feature_layers)
    base = [(slice(0, width), slice(0, width))]
    base += [(every(before, i), states[layer]) for i, layer in enumerate(anatomy.feature_layers)]
    return Columns(width * (1 + len(layers)), tuple(base), states)


def preprocess(config: Config, images: Sequence[Any]) -> dict[str, Tensor]:
    """Return every picture as one tile, the other tiles masked."""
    import torch

    vision = reading.section(config, "vision_config")
    squares = square_pictures(images, reading.positive(vision, "image_size", 448))
    tiles = reading.positive(vision, "max_num_tiles", 4)
    pixels = torch.zeros(len(images), 1, tiles, *squares.shape[1:])
    pixels[:, 0, 0] = squares
    mask = torch.zeros(len(images), 1, tiles, dtype=torch.long)
    mask[..., 0] = 1
    # Id 0 is padding, id 1 the first supported ratio, 1 x 1.
    ids = torch.ones(len(images), 1, dtype=torch.long)
    return dict(zip(INPUTS, (pixels, ids, mask), strict=True))


def encode(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Return what the cross-attention reads, [tokens, width]."""
    tower, projector = model.model.vision_model, model.model.multi_modal_projector
    found: Tensor = projector(tower(**{key: inputs[key] for key in INPUTS}).last_hidden_state)
    return found.flatten(0, -2)


def prompt(model: Any, inputs: dict[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
    """Return the prompt with a single image token, which it and later tokens attend to."""
    import torch

    image = ids[0] == model.config.image_token_id
    kept = ids[:, ~image | (image.cumsum(0) == 1)]
    seen = (kept == model.config.image_token_id).cumsum(1)[:, :, None, None]
    return {
        "input_ids": kept,
        "attention_mask": torch.ones_like(kept),
        "cross_attention_mask": seen * inputs["aspect_ratio_mask"][:, None],
    }


ARCHITECTURES = (
    Architecture(
        name="mllama",
        class_names=("MllamaForConditionalGeneration",),
        dissect=dissect,
        checkpoints=(
            "meta-llama/Llama-3.2-11B-Vision-Instruct",
            "meta-llama/Llama-3.2-90B-Vision-Instruct",
        ),
        towers="own, with a global transformer",
        steps=lambda anatomy, _: [["tiles", anatomy.tower.patch_size, 1, "pixel_values", 0]],
        stock_config=stock_config,
        stock_columns=stock_columns,
        # Older ones count the embeddings in the list: the base itself computes something else.
        stock_loader="transformers >= 4.57.0, MllamaForConditionalGeneration",
        preprocess=preprocess,
        encode=encode,
        prompt=prompt,
    ),
)
