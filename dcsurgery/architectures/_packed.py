"""What families share whose tower reads images of any size, their patches in one sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING, Any

from dcsurgery.anatomy import Anatomy, Projector, VisionTower
from dcsurgery.architectures import _reading as reading
from dcsurgery.checkpoint.headers import TensorEntry

if TYPE_CHECKING:
    from torch import Tensor

# Patches along one side of the square that figures are given for, where the config names no size.
NOMINAL_GRID = 32
MERGE_WORDS = {"merge_size": "spatial_merge_size"}
QWEN_WORDS = {**MERGE_WORDS, "temporal_patch_size": "temporal_patch_size"}


@dataclass(frozen=True)
class PackedTower:
    """How a family spells its tower.

    `module` and `blocks` are paths, `patches` the suffix of the patch embedding [C, 3, (t,) p, p];
    `depth` and `width` are keys of the vision config; `patch_size` and `merge` are the defaults of
    the family's own config class (`merge` patches a side become one row of the first matrix), and
    so is `text`, the language model's type ("": the model's own type and "_text").
    """

    module: str = "visual"
    blocks: str = "visual.blocks"
    patches: str = "visual.patch_embed.proj.weight"
    depth: str = "depth"
    width: str = "hidden_size"
    patch_size: int = 14
    merge: int = 2
    text: str = ""


def read_anatomy(
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorEntry],
    name: str,
    spelling: PackedTower,
    projector: Projector,
    grid: int = NOMINAL_GRID,
) -> Anatomy:
    """Return the anatomy of a model whose projector merges neighbouring patches behind a norm.

    `grid` is the number of patches along one side of the picture that image tokens are counted for
    (less where the merger would leave some over). Raises AnatomyError where config and tensors
    disagree.
    """
    vision = reading.section(config, "vision_config")
    patches = reading.find_tensor(tensors, spelling.patches)
    reading.require(
        len(patches.shape) in (4, 5), f"{patches.name} has shape {list(patches.shape)}, no patches"
    )
    width, patch = patches.shape[0], patches.shape[-1]
    stated = reading.positive(vision, "patch_size", spelling.patch_size)
    reading.require(
        stated == patch, f"vision_config.patch_size is {stated} but {patches.name} says {patch}"
    )
    site = projector.sites[0]
    merge = reading.positive(vision, "spatial_merge_size", spelling.merge)
    reading.require(
        site.in_features == merge**2 * width,
        f"{site.weight} reads {site.in_features} channels, "
        f"not those of {merge} x {merge} patches of {width}",
    )
    grid -= grid % merge
    model_type = str(config.get("model_type", name))
    kind = str(vision.get("model_type", model_type))
    tower = VisionTower(
        # Published configs repeat the whole model's type here.
        kind=kind if kind.endswith("_vision") else f"{kind}_vision",
        module=spelling.module,
        blocks=spelling.blocks,
        width=width,
        depth=reading.count_blocks(tensors, spelling.blocks),
        prefix_tokens=0,
        image_size=grid * patch,
        patch_size=patch,
    )
    reading.check_tower(tower, vision, spelling.depth, spelling.width)
    return Anatomy(
        architecture=name,
        tower=tower,
        projector=projector,
        feature_layers=(tower.depth,),
        feature_width=site.in_features,
        dropped_tokens=0,
        image_tokens=(grid // merge) ** 2,
        variable_resolution=True,
        # Published configs keep the language model's keys at the top level, without its type.
        language_model=reading.language_model(config, spelling.text or f"{model_type}_text"),
        dtype=tensors[site.weight].dtype,
        normed=True,
    )


def position_grid(entry: TensorEntry) -> int:
    """Return the side of a square table of learned positions [side * side, C]."""
    side = isqrt(entry.shape[0])
    reading.require(side**2 == entry.shape[0], f"{entry.name} is no square grid of positions")
    return side


def merge_neighbours(run: Any, state: Tensor) -> Tensor:
    """Return one state [N, C] as rows [N / m^2, m^2 C].

    The tower keeps the m x m patches that the merger joins next to each other (window order
    included), so that nothing has to move.
    """
    merge = run.model.config.vision_config.spatial_merge_size
    return state.reshape(-1, merge**2 * state.shape[-1])


def pack_squares(
    config: Mapping[str, Any],
    pictures: Sequence[Any],
    processor: str = "Qwen2VLImageProcessor",
    words: Mapping[str, str] = QWEN_WORDS,
) -> dict[str, Tensor]:
    """Return PIL images as the tower's arguments: squares of about NOMINAL_GRID patches a side.

    `processor` is the transformers class that cuts patches in the tower's order; `words` map its
    keywords to keys of the vision config, 2 where that leaves them out.
    """
    import transformers

    vision = reading.section(config, "vision_config")
    patch = reading.positive(vision, "patch_size", 14)
    sizes = {word: reading.positive(vision, key, 2) for word, key in words.items()}
    grain = patch * sizes.get("merge_size", 1)
    side = max(NOMINAL_GRID * patch // grain, 1) * grain
    half = [0.5] * 3
    cut = getattr(transformers, processor)(
        do_resize=False, image_mean=half, image_std=half, patch_size=patch, **sizes
    )
    squares = [picture.resize((side, side)) for picture in pictures]
    return dict(cut(images=squares, return_tensors="pt"))
