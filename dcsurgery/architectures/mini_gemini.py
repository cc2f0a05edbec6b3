"""Mini-Gemini (MGM): CLIP tower mined with a ConvNeXt's detail, two-layer projector.

The connector's branch sits at the projector's first matrix, which reads [feature + mined]; mining
itself reads the feature layer alone, as in the published Dense Connector with MGM, where the mining
matrices keep the width of one state (mm_hidden_size_uni).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Architecture, Config, Tensors, _llava
from dcsurgery.architectures import _reading as reading

if TYPE_CHECKING:
    from torch import Tensor

SITE = "multi_modal_projector.linear_1"
MINING = "patch_info_mining"


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of a MiniGeminiForConditionalGeneration checkpoint."""
    projector = reading.read_projector(tensors, {SITE: f"{SITE}.weight"}, "multi_modal_projector")
    mining = tuple(sorted(name for name in tensors if f".{MINING}." in f".{name}"))
    # The reference trains both together (train.py: tune_mm_mlp_adapter, initialize_uni_modules).
    projector = replace(projector, beside=mining)
    site = projector.sites[0]
    hidden = reading.section(config, "text_config").get("hidden_size", site.out_features)
    reading.require(
        hidden == site.out_features,
        f"text_config.hidden_size is {hidden!r} but {site.weight} writes {site.out_features}",
    )
    vision = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14}
    vision |= reading.section(config, "vision_config")
    width = reading.block_width(tensors, "vision_tower.encoder.layers", "layer_norm1")
    tower = _llava.read_tower(vision, tensors, width, "vision_tower")
    reading.require(
        site.in_features == width,
        f"{site.weight} reads {site.in_features} channels, the vision tower gives {width}",
    )
    _check_mining(config, tensors, width)
    grid = reading.positive(config, "image_grid", 1)
    whole = bool(config.get("image_global", False))
    reading.require(grid > 1 or not whole, "image_global is true, but image_grid 1 has no tiles")
    _check_places(config, grid * tower.grid)
    return Anatomy(
        architecture="mini_gemini",
        tower=tower,
        projector=projector,
        feature_layers=reading.read_feature_layers(
            config.get("vision_feature_layer", -2), tower.depth
        )[:1],
        feature_width=width,
        dropped_tokens=tower.prefix_tokens,
        image_tokens=(grid**2 + whole) * tower.grid**2,
        variable_resolution=False,
        language_model=reading.language_model(config, "llama"),
        dtype=tensors[site.weight].dtype,
    )


def _check_mining(config: Config, tensors: Tensors, width: int) -> None:
    """Compare the matrices of patch-info mining with both towers."""
    stated = reading.section(config, "vision_config_aux").get("hidden_sizes", ())
    stem = reading.find_tensor(tensors, "vision_tower_aux.embeddings.patch_embeddings.weight")
    reading.require(
        not stated or stem.shape[0] == stated[0],
        f"vision_config_aux.hidden_sizes is {stated} but {stem.name} writes {stem.shape[0]}",
    )
    key = reading.find_tensor(tensors, f"{MINING}.key.proj.weight").shape
    wanted = {"query": width, "key": sum(stated) or key[-1], "value": sum(stated) or key[-1]}
    for part, read in wanted.items():
        entry = reading.find_tensor(tensors, f"{MINING}.{part}.proj.weight")
        reading.require(
            entry.shape == (width, read),
            f"{entry.name} is {list(entry.shape)}, the towers need {[width, read]}",
        )


def _check_places(config: Config, patches: int) -> None:
    """Every patch needs a whole number of places of the large picture's map."""
    aux = reading.section(config, "vision_config_aux")
    side = reading.positive(aux, "image_size", 768) // reading.positive(aux, "patch_size", 4)
    reading.require(
        side > 0 and side % patches == 0,
        f"the large picture's map of {side} x {side} places does not divide by "
        f"{patches} x {patches} patches",
    )


def rows(run: Any, state: Tensor) -> list[Tensor]:
    """Order patch tokens as the projector reads them: the whole picture, then tile by tile.

    The reference joins tokens that way and never defined where the groups of a connector go; here
    they follow their own tokens.
    """
    return [run.model.model.image_tokens(state[:, 1:])]


def preprocess(config: Config, images: Sequence[Any]) -> dict[str, Tensor]:
    """Return both sizes of PIL images, as the model's own processor makes them."""
    from dcsurgery.modeling.mini_gemini import MiniGeminiConfig, MiniGeminiImageProcessor

    processor = MiniGeminiImageProcessor.from_model_config(MiniGeminiConfig(**config))
    return dict(processor(list(images)))


ARCHITECTURES = (
    Architecture(
        name="mini_gemini",
        class_names=("MiniGeminiForConditionalGeneration",),
        dissect=dissect,
        checkpoints=(
            "YanweiLi/MGM-7B",
            "YanweiLi/MGM-2B",
            "YanweiLi/MGM-8x7B",
            "YanweiLi/MGM-7B-HD",
        ),
        towers="CLIP with ConvNeXt",
        rows=rows,
        preprocess=preprocess,
    ),
)
