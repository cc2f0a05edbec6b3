"""What the LLaVA families share: towers, projector, config words, processor words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dcsurgery.anatomy import Anatomy, VisionTower
from dcsurgery.architectures import Counting
from dcsurgery.architectures import _reading as reading
from dcsurgery.checkpoint.headers import TensorEntry
from dcsurgery.features import FeatureLayout


@dataclass(frozen=True)
class Tower:
    """A kind of tower: path of its blocks, prefix tokens, sizes its config class means by default.

    `registers` counts further prefix tokens where the config does not (None: the kind has none);
    `files` is the path of the blocks in published files where it is another.
    """

    blocks: str = "encoder.layers"
    prefix: int = 0
    image_size: int = 224
    patch_size: int = 16
    registers: int | None = None
    files: str = ""


# Towers that AutoModel builds and whose hidden states are tokens [B, prefix + patches, C].
TOWERS: dict[str, Tower] = {
    "clip_vision_model": Tower(prefix=1, patch_size=32),
    "siglip_vision_model": Tower(),
    "pixtral": Tower("transformer.layers", image_size=1024),
    "dinov2": Tower("encoder.layer", 1, patch_size=14),
    "dinov2_with_registers": Tower("encoder.layer", 1, registers=4),
    "dinov3_vit": Tower("layer", 1, registers=0),
    "mlcd": Tower(prefix=1, image_size=336, patch_size=14),
    "mlcd_vision_model": Tower(prefix=1, image_size=336, patch_size=14),
    "aimv2_vision_model": Tower(patch_size=14),
    "vit": Tower("layers", 1, files="encoder.layer"),
    "ijepa": Tower("layers", files="encoder.layer"),
}
# LlavaConfig and its relatives without a vision_config mean CLIP-L/336. A sub-config that is there
# but says no model_type means that of the default.
DEFAULTS: dict[str, Any] = {
    "text_config": {"model_type": "llama"},
    "vision_config": {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14},
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}


def read_tower(
    vision: dict[str, Any], tensors: Mapping[str, TensorEntry], width: int, module: str
) -> VisionTower:
    """Return the tower whose tensors lie under `module`. Raises AnatomyError for another kind."""
    kind = reading.kind_of(vision, "")
    reading.require(kind in TOWERS, f"vision tower {kind!r} is not one of {', '.join(TOWERS)}")
    known = TOWERS[kind]
    blocks = f"{module}.{known.blocks}"
    published = known.files and not any(f"{blocks}.0." in name for name in tensors)
    tower = VisionTower(
        kind=kind,
        module=module,
        blocks=blocks,
        width=width,
        depth=reading.count_blocks(tensors, f"{module}.{known.files}" if published else blocks),
        prefix_tokens=known.prefix + _registers(vision, tensors, known, module),
        image_size=reading.positive(vision, "image_size", known.image_size),
        patch_size=reading.positive(vision, "patch_size", known.patch_size),
    )
    reading.require(
        tower.grid > 0,
        f"patch_size {tower.patch_size} is larger than image_size {tower.image_size}",
    )
    return reading.check_tower(tower, vision)


def _registers(
    vision: Mapping[str, Any], tensors: Mapping[str, TensorEntry], known: Tower, module: str
) -> int:
    """Return how many register tokens [1, R, C] follow CLS, as the tensors say."""
    if known.registers is None:
        return 0
    shape = reading.find_tensor(tensors, f"{module}.embeddings.register_tokens").shape
    stated = vision.get("num_register_tokens", known.registers)
    reading.require(
        len(shape) == 3 and shape[1] == stated,
        f"vision_config.num_register_tokens is {stated!r} but {module}.embeddings.register_tokens "
        f"is {list(shape)}",
    )
    return shape[1]


def read_anatomy(
    config: dict[str, Any],
    tensors: Mapping[str, TensorEntry],
    *,
    name: str,
    defaults: Mapping[str, Any] = DEFAULTS,
    module: str = "vision_tower",
    tiled: bool = False,
) -> Anatomy:
    """Return the anatomy of a model with a two-layer projector and vision_feature_layer.

    `defaults` are those of the family's own config class for vision_config, text_config,
    vision_feature_layer and vision_feature_select_strategy; `module` is the path of the tower.
    Families that cut an image into tiles (`tiled`) show the tower squares of one size:
    `image_tokens` counts one tile, without line ends, and the resolution is not variable. Raises
    AnatomyError, also for tiles whose tokens do not form a grid: those families need one.
    """
    config = {**defaults, **config}
    projector = reading.read_projector(
        tensors,
        {"multi_modal_projector.linear_1": "multi_modal_projector.linear_1.weight"},
        "multi_modal_projector",
    )
    site = projector.sites[0]
    shape = tensors[site.weight].shape
    reading.require(len(shape) == 2, f"{site.weight} has shape {list(shape)}, not a matrix")
    stated = config["vision_feature_layer"]
    count = len(stated) if isinstance(stated, list) else 1
    reading.require(
        bool(count) and site.in_features % count == 0,
        f"{site.weight} reads {site.in_features} channels, which vision_feature_layer {stated!r} "
        "does not divide",
    )
    whole = defaults["vision_config"]
    absent = config["vision_config"] is None
    vision = whole if absent else reading.section(config, "vision_config")
    kind = {"model_type": whole["model_type"]}
    tower = read_tower({**kind, **vision}, tensors, site.in_features // count, module)
    hidden = reading.section(config, "text_config").get("hidden_size", site.out_features)
    reading.require(
        hidden == site.out_features,
        f"text_config.hidden_size is {hidden!r} but {site.weight} writes {site.out_features}",
    )
    strategy = config["vision_feature_select_strategy"]
    reading.require(
        strategy in ("default", "full"), f"vision_feature_select_strategy is {strategy!r}"
    )
    # "default" crops the first token whatever the tower: on a tower without CLS it drops a patch.
    cropped = 1 if strategy == "default" else 0
    tokens = tower.grid**2 + tower.prefix_tokens - cropped
    reading.require(
        not tiled or tokens == tower.grid**2,
        f"a tile has {tokens} tokens (vision_feature_select_strategy {strategy!r}, "
        f"{tower.prefix_tokens} before the patches), not {tower.grid} x {tower.grid}: the model "
        "itself cannot join its tiles",
    )
    return Anatomy(
        architecture=name,
        tower=tower,
        projector=projector,
        feature_layers=reading.read_feature_layers(stated, tower.depth),
        feature_width=tower.width,
        dropped_tokens=cropped,
        image_tokens=tokens,
        variable_resolution=tower.kind == "pixtral",
        language_model=reading.language_model(config, defaults["text_config"]["model_type"]),
        dtype=tensors[site.weight].dtype,
    )


def stock_config(config: dict[str, Any], layers: Sequence[int]) -> dict[str, Any]:
    """Return a copy of `config` whose model joins the channels of `layers`, in that order."""
    return {**config, "vision_feature_layer": list(layers)}


def count_appended(
    config: dict[str, Any], anatomy: Anatomy, layout: FeatureLayout
) -> dict[str, Any]:
    """Return processor words for a connector that changes the number of image tokens.

    The processors count (height // patch_size) * (width // patch_size) +
    num_additional_image_tokens: a pooled grid is one of larger patches (their floor is the pooled
    side, odd grids included), appended tokens are additional ones.
    """
    edited = count_pooled(config, anatomy, layout)
    more = layout.appended_tokens(anatomy.image_tokens)
    edited["num_additional_image_tokens"] = config.get("num_additional_image_tokens", 0) + more
    return edited


def count_pooled(config: dict[str, Any], anatomy: Anatomy, layout: FeatureLayout) -> dict[str, Any]:
    """Return processor words for a pooled grid: one of larger patches (see count_appended)."""
    return {**config, "patch_size": anatomy.tower.patch_size * layout.pool}


def counting(class_name: str) -> Callable[[Anatomy], Counting]:
    """Return how LLaVA's processors count; Pixtral's own counts for a Pixtral tower."""

    def find(anatomy: Anatomy) -> Counting:
        tower = anatomy.tower

        def count(words: dict[str, Any]) -> int:
            side = tower.image_size // words["patch_size"]
            cropped = 1 if words["vision_feature_select_strategy"] == "default" else 0
            more: int = words["num_additional_image_tokens"]
            return int(side * side) + more - cropped

        def count_packed(words: dict[str, Any]) -> int:
            side = tower.image_size // (words["patch_size"] * words["spatial_merge_size"])
            return int(side * side)

        patch = {"patch_size": tower.patch_size}
        if anatomy.variable_resolution:
            known = {"patch_size": 16, "spatial_merge_size": 1}
            return Counting("PixtralProcessor", patch, known, count_packed)
        words = {
            **patch,
            "vision_feature_select_strategy": "default" if anatomy.dropped_tokens else "full",
            "num_additional_image_tokens": tower.prefix_tokens,
        }
        absent = {"patch_size": None, "vision_feature_select_strategy": None}
        return Counting(class_name, words, {**absent, "num_additional_image_tokens": 0}, count)

    return find


def resize_grid(model: Any, layout: FeatureLayout) -> None:
    """Make the model's own re-assembly of tiles expect the pooled grid.

    It computes the side of a tile as image_size // patch_size from the config; the tower has read
    its own patch size already.
    """
    model.config.vision_config.patch_size *= layout.pool
