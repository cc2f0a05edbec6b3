"""What the Mistral 3 layout shares: packed Pixtral patches, a norm, a learned merge of windows.

The first matrix reads merged windows; the connector's rows are the windows themselves, joined as
the merging matrix reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dcsurgery.anatomy import Anatomy, VisionTower
from dcsurgery.architectures import Config, Tensors
from dcsurgery.architectures import _reading as reading

if TYPE_CHECKING:
    from torch import Tensor

# The towers of these families where a config has none; PixtralVisionConfig's own sizes otherwise.
VISION = {"model_type": "pixtral", "image_size": 1540, "patch_size": 14}


@dataclass(frozen=True)
class Names:
    """Paths of the tower, of the first matrix and of all parts of the projector."""

    tower: str = "vision_tower"
    matrix: str = "multi_modal_projector.linear_1"
    parts: tuple[str, ...] = ("multi_modal_projector",)

    @property
    def blocks(self) -> str:
        """Path of the tower's blocks."""
        return f"{self.tower}.transformer.layers"


def read_anatomy(
    config: Config,
    tensors: Tensors,
    name: str,
    language_model: str,
    modules: Names,
    files: Names,
) -> Anatomy:
    """Return the anatomy of a model whose parts have these names, loaded and in its files.

    Raises AnatomyError, also for a list of several feature layers: the config class takes one, norm
    and merge do not.
    """
    vision = reading.section(config, "vision_config") or dict(VISION)
    kind = vision.get("model_type", "pixtral")
    reading.require(kind == "pixtral", f"vision tower {kind!r} is not pixtral")
    projector = reading.read_projector(
        tensors, {modules.matrix: f"{files.matrix}.weight"}, *files.parts
    )
    width, window = reading.find_tensor(tensors, "patch_merger.merging_layer.weight").shape
    merge = reading.positive(config, "spatial_merge_size", 2)
    reading.require(
        projector.sites[0].in_features == width and window == merge**2 * width,
        f"the patch merger makes {width} channels of {window}; spatial_merge_size {merge} and "
        f"{projector.sites[0].weight} want {projector.sites[0].in_features} of {merge**2} times",
    )
    tower = VisionTower(
        kind=kind,
        module=modules.tower,
        blocks=modules.blocks,
        width=width,
        depth=reading.count_blocks(tensors, files.blocks),
        prefix_tokens=0,
        image_size=reading.positive(vision, "image_size", 1024),
        patch_size=reading.positive(vision, "patch_size", 16),
    )
    reading.check_tower(tower, vision)
    layers = reading.read_feature_layers(config.get("vision_feature_layer", -1), tower.depth)
    reading.require(
        len(layers) == 1,
        f"vision_feature_layer {config.get('vision_feature_layer')} names several layers: the norm "
        "and the patch merger of this family read one",
    )
    return Anatomy(
        architecture=name,
        tower=tower,
        projector=projector,
        feature_layers=layers,
        feature_width=window,
        dropped_tokens=0,
        image_tokens=(tower.grid // merge) ** 2,
        variable_resolution=True,
        language_model=reading.language_model(config, language_model),
        dtype=tensors[projector.sites[0].weight].dtype,
    )


def arrange(run: Any, state: Tensor) -> Tensor:
    """Return windows [T, C * m * m] of all pictures of a state [1, N, C]: channels, rows, columns.

    What does not fill a window at the right and lower edge is dropped.
    """
    import torch

    config = run.model.config
    sizes = torch.as_tensor(run.argument("image_sizes", 1)).tolist()
    patch, merge = config.vision_config.patch_size, config.spatial_merge_size
    grids = [(height // patch, width // patch) for height, width in sizes]
    pictures = torch.split(state.flatten(0, 1), [height * width for height, width in grids])
    rows = []
    for (height, width), picture in zip(grids, pictures, strict=True):
        high, wide = height // merge, width // merge
        grid = picture.reshape(height, width, -1)[: high * merge, : wide * merge]
        windows = grid.reshape(high, merge, wide, merge, -1).permute(0, 2, 4, 1, 3)
        rows.append(windows.flatten(2).flatten(0, 1))
    return torch.cat(rows)
