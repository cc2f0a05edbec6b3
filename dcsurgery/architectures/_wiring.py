"""Most families in one description: a tower, and a projector whose matrix reads its states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import isqrt
from typing import Any

from dcsurgery.anatomy import Anatomy, Site, VisionTower
from dcsurgery.architectures import Config, Tensors
from dcsurgery.architectures import _reading as reading

# Patches along one side of the square that figures are given for, where the config names no size.
NOMINAL_GRID = 32


@dataclass(frozen=True)
class Wiring:
    """Where a family keeps its parts, and what its config classes mean by absent keys.

    Names: `site` is the module suffix of the first matrix, `second` of another one that reads the
    same rows, `parts` the paths of all the projector's
    tensors (default: the site's first word), `matrix` the suffix of the tensor where it is not
    "weight" of the site (`transposed`: stored [in, out]); `module` the path of the tower, `blocks`
    of its list of blocks inside it, `norm` of a norm over the channels in every block, `patches` of
    the patch embedding where the patch size is to be compared with it. `published` are the fields
    that differ in files whose names transformers changes as it loads them.

    Config: `towers` maps the tower kinds the family's code can drive to their prefix tokens, the
    default first; `fixed` when its config class builds that one whatever model_type says; empty
    where the kind is the model's own type and "_vision". `vision_config` stands for one that is
    absent altogether, `image_size` and `patch_size` are pixels where it does not say, `depth` and
    `width` its keys of both. `text` is the language model's type ("": the model's own and "_text").
    `output` is the path of the number of channels the matrix writes, empty when there is none.

    Between tower and matrix: `window` is the path of the number of patches a side that are joined
    ("": one), `merger` the suffix of a matrix that brings a window back to the tower's width.
    `layer` names the default of vision_feature_select_strategy ("any" when there is no such key) in
    families whose config names the state that is read; "" where it is the last. `normed`: the
    tower's last norm lies before the matrix. `grid` counts the patches a side of the picture that
    figures are given for, where the tower reads pictures of any size.
    """

    site: str
    second: str = ""
    text: str = ""
    parts: tuple[str, ...] = ()
    matrix: str = ""
    transposed: bool = False
    module: str = "vision_tower"
    blocks: str = "encoder.layers"
    norm: str = "layer_norm1"
    patches: str = ""
    published: Mapping[str, Any] = field(default_factory=dict)
    towers: Mapping[str, int] = field(default_factory=lambda: {"siglip_vision_model": 0})
    fixed: bool = False
    vision_config: Mapping[str, Any] = field(default_factory=dict)
    image_size: int = 224
    patch_size: int = 16
    depth: str = "num_hidden_layers"
    width: str = "hidden_size"
    output: str = "text_config.hidden_size"
    window: str = ""
    merger: str = ""
    layer: str = ""
    normed: bool = True
    grid: Callable[[Config, Tensors, int, int], int] | None = None

    @property
    def path(self) -> str:
        """Path of the tower's blocks."""
        return f"{self.module}.{self.blocks}"

    @property
    def tensor(self) -> str:
        """Suffix of the first matrix."""
        return self.matrix or f"{self.site}.weight"

    def in_files(self, tensors: Tensors) -> Wiring:
        """Return the wiring under the names that the files have."""
        if not self.published:
            return self
        files = replace(self, **self.published)
        found = any(name == files.tensor or name.endswith(f".{files.tensor}") for name in tensors)
        return files if found else self


def nominal(config: Config, tensors: Tensors, image_size: int, patch_size: int) -> int:
    """Return the grid of towers whose config names no picture's size."""
    return NOMINAL_GRID


def sized(config: Config, tensors: Tensors, image_size: int, patch_size: int) -> int:
    """Return the grid of a picture of the config's own size."""
    return image_size // patch_size


def counted(config: Config, tensors: Tensors, image_size: int, patch_size: int) -> int:
    """Return the grid of vision_config.num_patches."""
    return isqrt(reading.positive(reading.section(config, "vision_config"), "num_patches", 256))


def positioned(config: Config, tensors: Tensors, image_size: int, patch_size: int) -> int:
    """Return the side of a square table of learned positions [side * side, C]."""
    entry = reading.find_tensor(tensors, "visual.pos_embed.weight")
    side = isqrt(entry.shape[0])
    reading.require(side**2 == entry.shape[0], f"{entry.name} is not a square grid of positions")
    return side


def window_side(config: Config, wiring: Wiring) -> int:
    """Return how many patches a side are joined before the first matrix."""
    if not wiring.window:
        return 1
    sections, _, key = wiring.window.rpartition(".")
    table = reading.section(config, sections) if sections else config
    if not key.endswith("_ratio"):
        return reading.positive(table, key, 2)
    ratio = table.get(key, 0.5)
    known = isinstance(ratio, int | float) and 0 < ratio <= 1
    reading.require(known, f"{key} is {ratio!r}, not a number between 0 and 1")
    return int(1 / ratio)


def read_anatomy(config: Config, tensors: Tensors, *, name: str, wiring: Wiring) -> Anatomy:
    """Return the anatomy of a model of a family; raises AnatomyError for contradictions."""
    files = wiring.in_files(tensors)
    window = window_side(config, wiring)
    tower = _read_tower(config, tensors, wiring, files, window)
    parts = files.parts or (files.site.partition(".")[0],)
    sites = {wiring.site: files.tensor}
    if wiring.second:
        sites[wiring.second] = f"{files.second}.weight"
    projector = reading.read_projector(tensors, sites, *parts, transposed=wiring.transposed)
    _check_matrix(config, tensors, files, projector.sites[0], tower, window)
    return Anatomy(
        architecture=name,
        tower=tower,
        projector=projector,
        feature_layers=(_read_layer(config, tower, wiring),),
        feature_width=window**2 * tower.width,
        dropped_tokens=tower.prefix_tokens,
        image_tokens=(tower.grid // window) ** 2,
        variable_resolution=wiring.grid is not None,
        language_model=reading.language_model(
            config, wiring.text or f"{config.get('model_type', name)}_text"
        ),
        dtype=tensors[projector.sites[0].weight].dtype,
        normed=wiring.normed,
    )


def _read_tower(
    config: Config, tensors: Tensors, wiring: Wiring, files: Wiring, window: int
) -> VisionTower:
    vision = reading.section(config, "vision_config") or dict(wiring.vision_config)
    patch = reading.positive(vision, "patch_size", wiring.patch_size)
    image = reading.positive(vision, "image_size", wiring.image_size)
    if wiring.patches:
        stem = reading.find_tensor(tensors, wiring.patches)
        reading.require(
            len(stem.shape) in (4, 5) and stem.shape[-1] == patch,
            f"vision_config.patch_size is {patch} but {stem.name} is {list(stem.shape)}",
        )
    if wiring.grid is not None:
        grid = wiring.grid(config, tensors, image, patch)
        image = (grid - grid % window) * patch
    kind = _read_kind(config, vision, wiring)
    tower = VisionTower(
        kind=kind,
        module=wiring.module,
        blocks=wiring.path,
        width=reading.block_width(tensors, files.path, files.norm),
        depth=reading.count_blocks(tensors, files.path),
        prefix_tokens=wiring.towers.get(kind, 0),
        image_size=image,
        patch_size=patch,
    )
    return reading.check_tower(tower, vision, wiring.depth, wiring.width)


def _read_kind(config: Config, vision: Config, wiring: Wiring) -> str:
    if not wiring.towers:
        # Published configs repeat the whole model's type here.
        kind = reading.kind_of(vision, str(config.get("model_type", "")))
        return kind if kind.endswith("_vision") else f"{kind}_vision"
    default = next(iter(wiring.towers))
    kind = default if wiring.fixed else reading.kind_of(vision, default)
    known = ", ".join(wiring.towers)
    reading.require(kind in wiring.towers, f"vision tower {kind!r} is not one of {known}")
    return kind


def _read_layer(config: Config, tower: VisionTower, wiring: Wiring) -> int:
    """Return the one hidden state that is read, non-negative.

    "default" cuts the first token off, which only a tower with CLS can spare; configs may hold
    lists of layers, which the code of these families cannot compute.
    """
    if not wiring.layer:
        return tower.depth
    if wiring.layer != "any":
        strategy = config.get("vision_feature_select_strategy", wiring.layer)
        reading.require(
            strategy == ("default" if tower.prefix_tokens else "full"),
            f"vision_feature_select_strategy is {strategy!r}: what it keeps of the vision tower's "
            f"{tower.grid**2 + tower.prefix_tokens} tokens is not a square grid",
        )
    stated = config.get("vision_feature_layer", -1)
    layers = reading.read_feature_layers(stated, tower.depth)
    reading.require(
        len(layers) == 1 and (wiring.layer == "any" or not isinstance(stated, list)),
        f"vision_feature_layer {stated} names several layers: this family's code reads one layer",
    )
    return layers[0]


def _check_matrix(
    config: Config, tensors: Tensors, files: Wiring, site: Site, tower: VisionTower, window: int
) -> None:
    """Compare the channels that the first matrix reads and writes with tower and config."""
    width, joined = window**2 * tower.width, ""
    shape = tensors[site.weight].shape
    reading.require(
        len(shape) == 2 or (window > 1 and shape[2:] == (window, window)),
        f"{site.weight} has shape {list(shape)}, not a matrix",
    )
    if window > 1:
        joined = f" ({window} x {window} patches of {tower.width})"
    if files.merger:
        merger = reading.find_tensor(tensors, files.merger).shape
        reading.require(
            merger == (tower.width, width),
            f"{files.merger} is {list(merger)}, the vision tower gives {width}{joined}",
        )
        width, joined = tower.width, ""
    reading.require(
        site.in_features == width,
        f"{site.weight} reads {site.in_features} channels, the vision tower gives {width}{joined}",
    )
    if files.output:
        sections, _, key = files.output.rpartition(".")
        table = reading.section(config, sections) if sections else config
        stated = table.get(key, site.out_features)
        reading.require(
            stated == site.out_features,
            f"{files.output} is {stated!r} but {site.weight} writes {site.out_features}",
        )
