"""Molmo2: attention pools windows of patches; its query, key and value matrices read them first.

The query reads the mean of a window, key and value the patches of the window themselves, in all
cases the channels of the listed block outputs side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dcsurgery.anatomy import Anatomy, Projector, VisionTower
from dcsurgery.architectures import Architecture, Config, Tensors
from dcsurgery.architectures import _reading as reading
from dcsurgery.architectures._pictures import square_patches
from dcsurgery.features import block_outputs

if TYPE_CHECKING:
    from torch import Tensor

PROJECTOR = "multi_modal_projector"
POOLING = "image_pooling_2d"
# Module name -> name in published files, which transformers renames while loading.
MATRICES = {"q_proj": "wq", "k_proj": "wk", "v_proj": "wv"}
LAYERS, HUB_LAYERS = "vision_feature_layer", "vit_layers"


def _vision(config: Config) -> tuple[Config, bool]:
    """Return the vision config, in transformers' words, and whether it goes by its older name.

    The older one states more blocks than the model has: those behind the deepest listed are cut.
    """
    older = "vit_config" in config and not config.get("vision_config")
    vision = reading.section(config, "vit_config" if older else "vision_config")
    for old, new in (
        ("image_default_input_size", "image_size"),
        ("image_patch_size", "patch_size"),
    ):
        vision[new] = vision.get(old, vision.get(new))
    return {key: value for key, value in vision.items() if value is not None}, older


def _projector(tensors: Tensors) -> Projector:
    published = any(name.endswith(f"{POOLING}.wq.weight") for name in tensors)
    sites = {
        f"{PROJECTOR}.{POOLING}.{module}": f"{POOLING}.{file if published else module}.weight"
        for module, file in MATRICES.items()
    }
    found = reading.read_projector(tensors, sites, POOLING, "image_projector")
    return Projector(found.sites, found.tensors, PROJECTOR)


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of a Molmo2ForConditionalGeneration checkpoint."""
    projector = _projector(tensors)
    vision, older = _vision(config)
    published = any(".resblocks." in name for name in tensors)
    depth = reading.count_blocks(
        tensors, "image_vit.transformer.resblocks" if published else "vision_tower.layers"
    )
    tower = VisionTower(
        kind="molmo2_vision",
        module="vision_tower",
        blocks="vision_tower.layers",
        width=reading.find_tensor(tensors, "positional_embedding").shape[-1],
        depth=depth,
        prefix_tokens=0,
        image_size=reading.positive(vision, "image_size", 378),
        patch_size=reading.positive(vision, "patch_size", 14),
    )
    stated = vision.pop("num_hidden_layers", 25) if older else depth
    reading.check_tower(tower, vision)
    adapter = reading.section(config, "adapter_config")
    listed = adapter.get(HUB_LAYERS) or adapter.get(LAYERS) or [24, 18]
    layers = reading.read_block_outputs(listed, stated, LAYERS)
    if older:
        reading.require(
            max(layers) == depth,
            f"{HUB_LAYERS} {listed} of {stated} blocks needs {max(layers)} blocks, found {depth}",
        )
    for site in projector.sites:
        wanted = tower.width * len(layers)
        reading.require(
            site.in_features == wanted,
            f"{site.weight} reads {site.in_features} channels, not {len(layers)} x {tower.width}",
        )
    # The whole picture and one crop of it, both pooled by 2 x 2 (the last window is padded).
    tokens = 2 * (-(-tower.grid // 2)) ** 2
    # The query reads one row per window, key and value the four patches of it.
    rows = (tokens, 4 * tokens, 4 * tokens)
    return Anatomy(
        architecture="molmo2",
        tower=tower,
        projector=projector.reading(*rows),
        feature_layers=layers,
        feature_width=tower.width,
        dropped_tokens=0,
        image_tokens=tokens,
        variable_resolution=False,
        language_model=reading.language_model(config, "molmo2_text"),
        dtype=tensors[projector.sites[0].weight].dtype,
        first_state=1,
    )


def stock_config(config: Config, layers: Sequence[int]) -> Config:
    """Return a copy of `config` whose projector joins `layers`, ascending."""
    adapter = reading.section(config, "adapter_config")
    adapter[HUB_LAYERS if HUB_LAYERS in adapter else LAYERS] = block_outputs(layers)
    return {**config, "adapter_config": adapter}


def preprocess(config: Config, images: Sequence[Any]) -> dict[str, Tensor]:
    """Return every picture twice, whole and as its only crop, with the windows of 2 x 2 patches."""
    import torch
    from torch.nn.functional import pad

    vision, _ = _vision(config)
    patch = reading.positive(vision, "patch_size", 14)
    grid = reading.positive(vision, "image_size", 378) // patch
    patches = square_patches(images, grid, patch).repeat_interleave(2, dim=0)
    rows = -(-grid // 2)
    numbers = torch.arange(len(patches) * grid**2).view(-1, grid, grid)
    numbers = pad(numbers, (0, grid % 2, 0, grid % 2), value=-1)
    windows = numbers.view(-1, rows, 2, rows, 2).transpose(2, 3).reshape(-1, 4)
    return {
        "pixel_values": patches,
        "image_token_pooling": windows,
        "image_grids": torch.tensor([[rows] * 4] * len(images)),
        "image_num_crops": torch.tensor([2] * len(images)),
    }


ARCHITECTURES = (
    Architecture(
        name="molmo2",
        class_names=("Molmo2ForConditionalGeneration",),
        dissect=dissect,
        checkpoints=("allenai/Molmo2-4B", "allenai/Molmo2-8B"),
        towers="own, cut behind the deepest layer it reads",
        steps=lambda anatomy, _: [["gather", "pooled_patches_idx", 1]],
        parameter_names=(
            (f"vision_backbone.{POOLING}.w", f"{PROJECTOR}.{POOLING}.w"),
            ("vision_backbone.image_projector.w", f"{PROJECTOR}.image_projector.w"),
            *((f"{POOLING}.w{letter}.", f"{POOLING}.{letter}_proj.") for letter in "qkvo"),
            ("image_projector.w1.", "image_projector.gate_proj."),
            ("image_projector.w2.", "image_projector.down_proj."),
            ("image_projector.w3.", "image_projector.up_proj."),
        ),
        stock_config=stock_config,
        stock_loader="transformers >= 5.20.0, Molmo2ForConditionalGeneration",
        preprocess=preprocess,
    ),
)
