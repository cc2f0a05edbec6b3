"""What families with one tower and one first matrix share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dcsurgery.anatomy import Anatomy, Projector, Site, VisionTower
from dcsurgery.architectures import Config, Tensors
from dcsurgery.architectures import _reading as reading


@dataclass(frozen=True)
class Wiring:
    """Where a family keeps its parts, and what its config classes mean by absent keys.

    `site` is the module suffix of the first matrix, `module` of the tower, `blocks` of its list of
    blocks inside it, `norm` of a norm over the channels in every block. `towers` maps the tower
    kinds the family's code can drive to their prefix tokens, the default first; `fixed` when its
    config class builds that one whatever model_type says. `image_size` and `patch_size` are pixels
    where a vision_config does not say; `vision_config` stands for one that is absent altogether.
    `normed` means that the last norm of the tower lies before the projector; `output` is the path
    in the config of the number of channels the first matrix writes, empty when it has no words.
    """

    name: str
    site: str
    language_model: str
    module: str = "vision_tower"
    blocks: str = "encoder.layers"
    norm: str = "layer_norm1"
    towers: Mapping[str, int] = field(default_factory=lambda: {"siglip_vision_model": 0})
    fixed: bool = False
    image_size: int = 224
    patch_size: int = 16
    vision_config: Mapping[str, Any] = field(default_factory=dict)
    normed: bool = True
    output: tuple[str, ...] = ("text_config", "hidden_size")


def read_tower(config: Config, tensors: Tensors, wiring: Wiring) -> VisionTower:
    """Return the tower. Raises AnatomyError when it contradicts its config or is another kind."""
    vision = reading.section(config, "vision_config") or dict(wiring.vision_config)
    default = next(iter(wiring.towers))
    kind = default if wiring.fixed else reading.kind_of(vision, default)
    reading.require(
        kind in wiring.towers, f"vision tower {kind!r} is not one of {', '.join(wiring.towers)}"
    )
    blocks = f"{wiring.module}.{wiring.blocks}"
    tower = VisionTower(
        kind=kind,
        module=wiring.module,
        blocks=blocks,
        width=reading.block_width(tensors, blocks, wiring.norm),
        depth=reading.count_blocks(tensors, blocks),
        prefix_tokens=wiring.towers[kind],
        image_size=reading.positive(vision, "image_size", wiring.image_size),
        patch_size=reading.positive(vision, "patch_size", wiring.patch_size),
    )
    return reading.check_tower(tower, vision)


def read_projector(tensors: Tensors, wiring: Wiring) -> Projector:
    """Return the projector, all modules beside the first matrix included."""
    prefix = wiring.site.partition(".")[0]
    return reading.read_projector(tensors, {wiring.site: f"{wiring.site}.weight"}, prefix)


def read_layer(config: Config, tower: VisionTower, strategy: str) -> int:
    """Return the one hidden state that vision_feature_layer names, non-negative.

    `strategy` is the family's default for vision_feature_select_strategy: "default" cuts the first
    token off, which only a tower with CLS can spare. Raises AnatomyError for a list, which these
    families accept in the config and cannot compute.
    """
    strategy = config.get("vision_feature_select_strategy", strategy)
    reading.require(
        strategy == ("default" if tower.prefix_tokens else "full"),
        f"vision_feature_select_strategy is {strategy!r}: what it keeps of the vision tower's "
        f"{tower.grid**2 + tower.prefix_tokens} tokens is no square grid",
    )
    stated = config.get("vision_feature_layer", -1)
    reading.require(
        not isinstance(stated, list),
        f"vision_feature_layer is the list {stated}: the code of this family reads one layer",
    )
    return reading.read_feature_layers(stated, tower.depth)[0]


def _check_matrix(config: Config, tensors: Tensors, wiring: Wiring, site: Site) -> None:
    shape = tensors[site.weight].shape
    reading.require(len(shape) == 2, f"{site.weight} has shape {list(shape)}, not a matrix")
    if not wiring.output:
        return
    *sections, key = wiring.output
    table = reading.section(config, sections[0]) if sections else config
    stated = table.get(key, site.out_features)
    reading.require(
        stated == site.out_features,
        f"{'.'.join(wiring.output)} is {stated!r} but {site.weight} writes {site.out_features}",
    )


def read_anatomy(
    config: Config,
    tensors: Tensors,
    wiring: Wiring,
    *,
    merged: int = 1,
    projector: Projector | None = None,
) -> Anatomy:
    """Return the anatomy of a model whose projector reads the last state of its tower.

    The channels of `merged` x `merged` neighbouring patches are joined before the first matrix.
    Raises AnatomyError.
    """
    tower = read_tower(config, tensors, wiring)
    projector = projector or read_projector(tensors, wiring)
    site = projector.sites[0]
    _check_matrix(config, tensors, wiring, site)
    width = tower.width * merged**2
    joined = f" ({merged} x {merged} patches of {tower.width})" if merged > 1 else ""
    reading.require(
        site.in_features == width,
        f"{site.weight} reads {site.in_features} channels, the vision tower gives {width}{joined}",
    )
    return Anatomy(
        architecture=wiring.name,
        tower=tower,
        projector=projector,
        feature_layers=(tower.depth,),
        feature_width=width,
        dropped_tokens=tower.prefix_tokens,
        image_tokens=(tower.grid // merged) ** 2,
        variable_resolution=False,
        language_model=reading.language_model(config, wiring.language_model),
        dtype=tensors[site.weight].dtype,
        normed=wiring.normed,
    )
