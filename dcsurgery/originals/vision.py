"""A named vision tower as a Hugging Face LLaVA has it: its tensors, its config, its processor."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from dcsurgery.checkpoint import checks
from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.checkpoint.headers import TensorEntry
from dcsurgery.errors import AnatomyError, CheckpointNotFoundError
from dcsurgery.originals.adopted import Presented, TowerRecord
from dcsurgery.originals.towers import PREPROCESSOR, Towers

KEY = "mm_vision_tower"
TARGET = "vision_tower.vision_model."
# vision_config keys that say what the tower computes; the rest of a published one is history.
_KEPT = (
    "hidden_size", "image_size", "intermediate_size", "num_attention_heads", "num_hidden_layers",
    "num_channels", "patch_size", "projection_dim", "hidden_act", "layer_norm_eps",
)  # fmt: skip
_KINDS = {
    "clip": "clip_vision_model", "clip_vision_model": "clip_vision_model",
    "siglip": "siglip_vision_model", "siglip_vision_model": "siglip_vision_model",
}  # fmt: skip
_SIZES = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
_CLIP_L = {"model_type": "clip_vision_model", **_SIZES, "num_hidden_layers": 24, "patch_size": 14}
_SO400M = {
    "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304,
    "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14,
}  # fmt: skip
# The public towers' own configs, so that a checkpoint with its tower inside needs no network.
KNOWN: dict[str, dict[str, Any]] = {
    "clip-vit-large-patch14-336": {**_CLIP_L, "image_size": 336, "projection_dim": 768},
    "clip-vit-large-patch14": {**_CLIP_L, "image_size": 224, "projection_dim": 768},
    "siglip-so400m-patch14-384": {**_SO400M, "image_size": 384},
}
# Mean and deviation of the pictures OpenAI's CLIP was trained on.
_CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
_CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


@dataclass(frozen=True)
class Tower:
    """A tower ready to be presented: `tensors` under their new names, `config` as vision_config.

    `full_depth` counts the blocks the named tower has, `config["num_hidden_layers"]` those kept.
    """

    config: dict[str, Any]
    preprocessor: dict[str, Any]
    tensors: tuple[Presented, ...]
    full_depth: int
    inside: bool

    @property
    def is_siglip(self) -> bool:
        """True for a SigLIP tower, which has no CLS token."""
        return bool(self.config["model_type"] == "siglip_vision_model")


def find_tower(source: Checkpoint, inside: Mapping[str, str], towers: Towers) -> Tower:
    """Return the tower of an original checkpoint.

    `inside` maps the names of tensors in `source` to what they are called in the tower
    ("vision_model.embeddings..."); when empty the tower is opened where the config says. Raises
    AnatomyError for a tower that does not fit, CheckpointError for one that is missing.
    """
    stated = str(source.config[KEY])
    if inside:
        config, preprocessor = _describe(source, inside, stated, towers)
        origin, names = source, dict(inside)
    else:
        origin = towers.open(stated, KEY)
        config, preprocessor = origin.config, _preprocessor_of(origin)
        names = {name: _tower_name(name) for name in origin.tensors}
        names = {name: own for name, own in names.items() if own}
    vision = _vision_section(config, stated)
    full = int(vision["num_hidden_layers"])
    shapes = {own: origin.tensors[name] for name, own in names.items()}
    depth = _fit(vision, shapes, stated, inside=bool(inside))
    tensors = tuple(
        Presented.renamed(origin, name, TARGET + own.removeprefix("vision_model."))
        for name, own in names.items()
        if _is_kept(own, depth)
    )
    if preprocessor is None:
        preprocessor = _preprocessor(vision)
    return Tower({**vision, "num_hidden_layers": depth}, preprocessor, tensors, full, bool(inside))


def _describe(
    source: Checkpoint, inside: Mapping[str, str], stated: str, towers: Towers
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return config and preprocessor of a tower whose tensors are in the checkpoint itself."""
    last = PurePosixPath(stated).name
    known = KNOWN.get(last)
    if known is not None and not towers.names(stated, KEY):
        shapes = {own: source.tensors[name] for name, own in inside.items()}
        try:
            _fit(dict(known), shapes, stated, inside=True)
        except AnatomyError:
            pass
        else:
            towers.found[stated] = TowerRecord("")
            return known, None
    try:
        return towers.describe(stated, KEY)
    except CheckpointNotFoundError as error:
        raise CheckpointNotFoundError(
            f"{error.message} (its weights are in the checkpoint, but only its config.json says "
            "how many heads it has)",
            hint=error.hint,
        ) from None


def _preprocessor_of(origin: Checkpoint) -> dict[str, Any] | None:
    if PREPROCESSOR not in origin.side_files:
        return None
    raw = origin.read_file(PREPROCESSOR)
    return checks.parse_object(checks.decode(raw, PREPROCESSOR), PREPROCESSOR)


def _tower_name(name: str) -> str:
    """Return a tensor's name in the vision tower, "" for what belongs to another part.

    Towers on their own are saved with and without "vision_model." (transformers 5 leaves it out).
    """
    found = re.search(r"(?:^|\.)vision_model\.(.+)$", name)
    if found:
        return "vision_model." + found[1]
    bare = re.match(r"(?:embeddings|encoder|pre_layrnorm|post_layernorm|head)\.", name)
    return "vision_model." + name if bare else ""


def _is_kept(own: str, depth: int) -> bool:
    """Leave out buffers, SigLIP's pooling head and blocks that nobody runs."""
    block = re.match(r"vision_model\.encoder\.layers\.(\d+)\.", own)
    if block:
        return int(block[1]) < depth
    return not own.endswith("position_ids") and not own.startswith("vision_model.head.")


def _vision_section(config: Mapping[str, Any], stated: str) -> dict[str, Any]:
    inner = config.get("vision_config")
    section = inner if isinstance(inner, dict) else dict(config)
    kind = _KINDS.get(str(section.get("model_type", config.get("model_type"))))
    kind = kind or _KINDS.get(str(config.get("model_type")))
    if kind is None:
        raise AnatomyError(
            f"the vision tower {stated!r} is a {config.get('model_type')!r}; "
            "CLIP and SigLIP towers can be adopted",
            hint=f"name another with --tower {PurePosixPath(stated).name}=PATH",
        )
    clip = kind == "clip_vision_model"
    # Defaults of transformers' own CLIPVisionConfig and SiglipVisionConfig.
    defaults = {
        "hidden_size": 768, "image_size": 224, "intermediate_size": 3072,
        "num_attention_heads": 12, "num_hidden_layers": 12, "patch_size": 32 if clip else 16,
    }  # fmt: skip
    kept = {key: section[key] for key in _KEPT if key in section}
    for key, value in {**defaults, **kept}.items():
        if key in defaults and not (type(value) is int and 0 < value < 2**20):
            raise AnatomyError(
                f"{key} of the vision tower {stated!r} is {str(value)[:40]!r}, not a size",
                hint="compare its config.json with the original model",
            )
    head = {} if clip else {"vision_use_head": False}
    return {"model_type": kind, **defaults, **kept, **head}


def _fit(
    vision: dict[str, Any], shapes: Mapping[str, TensorEntry], stated: str, *, inside: bool
) -> int:
    """Compare a tower's config with its tensors; return how many blocks are kept.

    The reference deletes the last block of a SigLIP tower before it reads or saves weights
    (siglip_encoder.py): what a checkpoint holds is one block shorter than the tower it names.
    """
    siglip = vision["model_type"] == "siglip_vision_model"
    blocks = {int(m[1]) for own in shapes if (m := re.search(r"\.layers\.(\d+)\.", own))}
    depth, full = len(blocks), vision["num_hidden_layers"]
    kept = full - 1 if siglip else full
    patch = shapes.get("vision_model.embeddings.patch_embedding.weight")
    positions = shapes.get("vision_model.embeddings.position_embedding.weight")
    if patch is None or positions is None or blocks != set(range(depth)):
        raise _misfit(stated, inside, "its embeddings or blocks are incomplete")
    for name, shape in _block_shapes(vision, depth).items():
        if name not in shapes or shapes[name].shape != shape:
            state = f"has shape {list(shapes[name].shape)}" if name in shapes else "is missing"
            raise _misfit(stated, inside, f"{name} {state}, its config says {list(shape)}")
    size, width = vision["patch_size"], vision["hidden_size"]
    count = (vision["image_size"] // size) ** 2 + (0 if siglip else 1)
    found = {
        "blocks": (depth, {kept, full}),
        "patch embedding": (list(patch.shape), [width, vision.get("num_channels", 3), size, size]),
        "positions": (list(positions.shape), [count, width]),
    }
    for what, (have, wanted) in found.items():
        if have not in wanted if isinstance(wanted, set) else have != wanted:
            said = sorted(wanted) if isinstance(wanted, set) else wanted
            raise _misfit(stated, inside, f"{what}: {have}, its config says {said}")
    return int(kept)


def _block_shapes(vision: Mapping[str, Any], depth: int) -> dict[str, tuple[int, ...]]:
    """Return the matrices and norms that every block of a CLIP or SigLIP tower has."""
    width, inter = vision["hidden_size"], vision["intermediate_size"]
    matrices = {f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
    matrices |= {"mlp.fc1": (inter, width), "mlp.fc2": (width, inter)}
    shapes: dict[str, tuple[int, ...]] = {}
    for index in range(depth):
        block = f"vision_model.encoder.layers.{index}."
        for name, shape in matrices.items():
            shapes[f"{block}{name}.weight"] = shape
            shapes[f"{block}{name}.bias"] = shape[:1]
        for name in ("layer_norm1", "layer_norm2"):
            shapes[f"{block}{name}.weight"] = shapes[f"{block}{name}.bias"] = (width,)
    return shapes


def _misfit(stated: str, inside: bool, problem: str) -> AnatomyError:
    where = "inside the checkpoint" if inside else "as found"
    last = PurePosixPath(stated).name
    return AnatomyError(
        f"the vision tower {stated!r} {where} does not fit its config: {problem}",
        hint=f"name the tower it was trained with: --tower {last}=PATH",
    )


def _preprocessor(vision: Mapping[str, Any]) -> dict[str, Any]:
    """Return the image processor that the tower's family is published with."""
    side = vision["image_size"]
    square = {"height": side, "width": side}
    steps = dict.fromkeys(("do_convert_rgb", "do_normalize", "do_rescale", "do_resize"), True)
    common = {**steps, "resample": 3, "rescale_factor": 1 / 255}
    if vision["model_type"] == "siglip_vision_model":
        half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        return {"image_processor_type": "SiglipImageProcessor", **common, **half, "size": square}
    return {
        "image_processor_type": "CLIPImageProcessor",
        **common,
        "do_center_crop": True,
        "crop_size": square,
        "size": {"shortest_edge": side},
        "image_mean": _CLIP_MEAN,
        "image_std": _CLIP_STD,
    }


def image_processor(tower: Tower, pinpoints: Sequence[Sequence[int]] | None) -> dict[str, Any]:
    """Return preprocessor_config.json for LLaVA, or for LLaVA-NeXT with a grid of `pinpoints`."""
    made = {**tower.preprocessor, "processor_class": "LlavaProcessor"}
    # What CLIP was published with is called a feature extractor, in words transformers 5 dropped.
    made.pop("feature_extractor_type", None)
    default = "SiglipImageProcessor" if tower.is_siglip else "CLIPImageProcessor"
    made.setdefault("image_processor_type", default)
    if pinpoints is None:
        return made
    side = tower.config["image_size"]
    # Tiles are cut at the crop size; without one this processor would crop to 224 pixels.
    return {
        **made,
        "image_processor_type": "LlavaNextImageProcessor",
        "processor_class": "LlavaNextProcessor",
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
        "size": {"shortest_edge": side},
        "image_grid_pinpoints": [list(pair) for pair in pinpoints],
    }
